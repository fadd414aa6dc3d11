"""The model's own continuations, from a running engine: token ids, greedy and sampled.

Written a line at a time as they come, so that an interrupted run goes on where it was. Sampled text
has no seed of its own: on vLLM 0.32's CPU backend a seeded request beside a prompt that is read in
two parts ends the engine ("CPU Generator does not use offset"). What was said is kept, and its
digest goes with the head.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scripts.mtp.prompts import Prompt
from scripts.served import Failed, post

TEMPERATURE = 0.8
PATH = "/v1/completions"


@dataclass(frozen=True)
class Asking:
    """How much of what: tokens a prompt at most, share of sampled ones, requests at a time."""

    tokens: int = 160
    sampled_in: int = 4
    concurrency: int = 64

    def is_sampled(self, number: int) -> bool:
        """Whether the prompt of this number is answered by sampling: one in `sampled_in`."""
        return bool(self.sampled_in) and number % self.sampled_in == self.sampled_in - 1


@dataclass(frozen=True)
class Continuation:
    """A prompt's tokens and those that the model said; `number` is the prompt's."""

    number: int
    source: str
    prompt: list[int]
    said: list[int]
    sampled: bool


def read(path: Path) -> list[Continuation]:
    """What was written, in the order of the prompts; the rest of a broken last line is dropped."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return sorted((Continuation(**json.loads(line)) for line in lines), key=lambda c: c.number)


def gather(
    url: str,
    prompts: Sequence[Prompt],
    asking: Asking,
    path: Path,
    shown: Callable[[int, int], None],
) -> list[Continuation]:
    """Ask the engine at `url` for all that `path` does not hold yet.

    :raises scripts.served.Failed: it is not there, does not answer, or with an error.
    :raises OSError: ``path`` cannot be written.
    """
    have = read(path)
    _rewrite(have, path)
    done = {one.number for one in have}
    missing = [(n, p) for n, p in enumerate(prompts) if n not in done]
    with path.open("a", encoding="utf-8") as out:
        for count, one in enumerate(_asked(url, missing, asking), start=len(done) + 1):
            out.write(json.dumps(asdict(one), separators=(",", ":")) + "\n")
            out.flush()
            shown(count, len(prompts))
    return read(path)


def _rewrite(have: Sequence[Continuation], path: Path) -> None:
    """Whole lines only: a run may have been killed within one."""
    part = path.with_suffix(".part")
    lines = (json.dumps(asdict(one), separators=(",", ":")) for one in have)
    part.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    part.replace(path)


def _asked(
    url: str, missing: Sequence[tuple[int, Prompt]], asking: Asking
) -> Iterator[Continuation]:
    model = _served_name(url)

    def one(item: tuple[int, Prompt]) -> Continuation:
        number, prompt = item
        said = post(url, PATH, body(model, prompt.prompt, number, asking))
        try:
            choice = said["choices"][0]
            ids, more = choice["prompt_token_ids"], choice["token_ids"]
        except (LookupError, TypeError) as error:
            raise Failed(f"{url}{PATH}: gave no token ids: is it vLLM? ({error!r})") from error
        return Continuation(number, prompt.source, ids, more, asking.is_sampled(number))

    with ThreadPoolExecutor(asking.concurrency) as pool:
        yield from pool.map(one, missing)


def _served_name(url: str) -> str:
    try:
        with urllib.request.urlopen(url + "/v1/models", timeout=30) as answer:  # noqa: S310
            return str(json.load(answer)["data"][0]["id"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise Failed(f"{url}/v1/models: no engine answers there: {error}") from error


def body(model: str, prompt: str, number: int, asking: Asking) -> dict[str, Any]:
    """One request. No repetition penalty: the head learns what the model itself would choose."""
    sampled = asking.is_sampled(number)
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": asking.tokens,
        "temperature": TEMPERATURE if sampled else 0,
        "repetition_penalty": 1.0,
        "return_token_ids": True,
    }
