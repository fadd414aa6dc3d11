"""Sends an engine one request of every shape that serving will meet, so that each is compiled.

``rounds`` is pure: which requests, from the limits of the engine. ``run`` sends them. A round's
requests go out together, so that its number is the batch. Prompts are token ids, to have exactly
the length that is meant.
"""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bake.errors import BakeError
from serve.upstream import Lost, Upstream

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
# vLLM's own default where a variant names none.
CHUNK_TOKENS = 2048
# Without a limit of the variant's own, batches beyond this are not waited for.
LARGEST_BATCH = 32
NEW_TOKENS = 8
# Small ids are special in some vocabularies, large ones missing in others.
FIRST_TOKEN, TOKENS = 100, 400
# A first request may compile.
REQUEST_SECONDS = 900.0
SCHEMA = {
    "type": "object",
    "properties": {
        "word": {"type": "string", "maxLength": 8},
        "kind": {"enum": ["a", "b"]},
        "sure": {"type": "boolean"},
    },
    "required": ["word", "kind", "sure"],
    "additionalProperties": False,
}
TALK = [{"role": "user", "content": "Say one word."}]


@dataclass(frozen=True)
class Limits:
    """Of the engine: tokens of a step and of a sequence, sequences of a step."""

    chunk: int
    sequences: int
    length: int


@dataclass(frozen=True)
class Request:
    """One request: a path and its JSON body; those of a round leave the model's name out."""

    path: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Round:
    """Requests that go out together."""

    name: str
    requests: Sequence[Request]


def rounds(limits: Limits) -> list[Round]:
    """Everything that is sent, in order."""
    return [*_prefills(limits), *_batches(limits), *_samplings(), *_mixed(limits)]


def _prefills(limits: Limits) -> Iterator[Round]:
    """One sequence of each length that is handled differently, in chunks and whole."""
    edge = limits.chunk
    most = limits.length - NEW_TOKENS
    lengths = (1, 2, 3, 17, 128, edge - 1, edge, edge + 1, min(2 * edge + 3, most))
    for length in sorted({length for length in lengths if 0 < length <= most}):
        yield Round(f"prompt of {length} tokens", [prompt(length)])


def _batches(limits: Limits) -> Iterator[Round]:
    for size in batch_sizes(limits.sequences):
        yield Round(f"batch of {size}", [prompt(5 + index) for index in range(size)])


def batch_sizes(sequences: int) -> list[int]:
    """Every size up to 16, then powers of two, then the largest."""
    most = min(sequences, LARGEST_BATCH)
    powers = [2**power for power in range(5, most.bit_length()) if 2**power <= most]
    return sorted({*range(1, min(most, 16) + 1), *powers, most})


def _samplings() -> Iterator[Round]:
    sampled: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "seed": 1}
    kinds: dict[str, dict[str, Any]] = {
        "greedy": {"temperature": 0},
        "temperature": {"temperature": 0.8, "seed": 1},
        "top-p": sampled,
        # Not min_p: vLLM refuses it while it drafts.
        "top-k": {**sampled, "top_k": 20},
        "penalties": {"presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1},
        "logprobs": {"temperature": 0, "logprobs": True, "top_logprobs": 3},
        "two choices": {**sampled, "n": 2},
        "structured output": {"temperature": 0, "response_format": _grammar(), "max_tokens": 48},
        "sampled structured output": {**sampled, "response_format": _grammar(), "max_tokens": 48},
        "stream": {"temperature": 0, "stream": True},
    }
    for name, fields in kinds.items():
        body = {"messages": TALK, "max_tokens": NEW_TOKENS, **fields}
        yield Round(name, [Request(CHAT, body)])
    yield Round("prompt logprobs", [prompt(9, prompt_logprobs=1)])


def _mixed(limits: Limits) -> Iterator[Round]:
    """Prefill beside decoding, greedy beside sampled, grammar beside none."""
    long = min(limits.chunk + 7, limits.length - NEW_TOKENS)
    several = [
        prompt(long),
        prompt(3, max_tokens=32),
        prompt(4, temperature=0.9, top_p=0.9, seed=2, max_tokens=32),
        Request(CHAT, {"messages": TALK, "max_tokens": 48, "response_format": _grammar()}),
    ]
    yield Round("mixed batch", several[: limits.sequences])


def prompt(length: int, **fields: Any) -> Request:
    """A completion of exactly ``length`` prompt tokens."""
    # A prime step, so that no two prompts begin alike and none is served from a cache.
    ids = [FIRST_TOKEN + (length * 7 + index * 13) % TOKENS for index in range(length)]
    body = {"prompt": ids, "max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True}
    return Request(COMPLETIONS, {**body, **fields})


def _grammar() -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "warm", "schema": SCHEMA}}


async def limits_of(upstream: Upstream, chunk: int | None, sequences: int | None) -> Limits:
    """What the engine tells of itself, beside what the variant says.

    :raises BakeError: it does not tell.
    """
    try:
        _, said = await upstream.fetch("GET", b"/v1/models", seconds=REQUEST_SECONDS)
        length = json.loads(said)["data"][0]["max_model_len"]
    except (Lost, ValueError, LookupError) as error:
        raise BakeError(f"the engine does not tell max_model_len: {error!r}") from error
    return Limits(min(chunk or CHUNK_TOKENS, length), sequences or LARGEST_BATCH, int(length))


async def run(
    upstream: Upstream,
    model: str,
    several: Sequence[Round],
    step: Callable[[str, int, int], None],
) -> None:
    """Send every round, one after the other.

    :raises BakeError: naming the round that the engine did not answer as it should.
    """
    for number, one in enumerate(several, start=1):
        step(one.name, number, len(several))
        named = [replace(r, body={"model": model, **r.body}) for r in one.requests]
        asked = [ask(upstream, request, f"warm-up, {one.name}") for request in named]
        for answer in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(answer, BaseException):
                raise answer


async def ask(upstream: Upstream, request: Request, what: str) -> bytes:
    """The body of the engine's answer to one request, which names its model.

    :raises BakeError: saying ``what`` was asked, and that there was no answer or an error.
    """
    target, body = request.path.encode(), json.dumps(request.body).encode()
    try:
        status, said = await upstream.fetch("POST", target, body, seconds=REQUEST_SECONDS)
    except Lost as error:
        raise BakeError(f"{what}: {error}") from error
    if status != 200:
        told = said.decode(errors="replace")[:500]
        raise BakeError(f"{what}: the engine answered {status}: {told}")
    return said
