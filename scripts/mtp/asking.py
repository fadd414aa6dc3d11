"""Completions of many prompts, alone or side by side: tokens, text, times, and log-probabilities.

Greedy, without a repetition penalty: what a variant changes beside that must not change the text.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from bake.progress import Shown, silent
from scripts.served import Failed, Served

__all__ = ["Ask", "Failed", "Said", "complete", "complete_all"]

PATH = "/v1/completions"


@dataclass(frozen=True)
class Ask:
    """One request: a prompt, its most tokens, and texts that end it."""

    source: str
    prompt: str
    max_tokens: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Said:
    """One answer: prompt's and answer's token ids, the text, why it ended, and its seconds."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    ended: str
    seconds: float


def served_name(running: Served) -> str:
    """The name that the engine answers to."""
    return str(json.loads(running.get("/v1/models"))["data"][0]["id"])


def complete(running: Served, model: str, ask: Ask, **more: Any) -> Said:
    """One answer.

    :raises Failed: there is none.
    """
    begun = time.perf_counter()
    choice = running.post(PATH, _body(model, ask) | more)["choices"][0]
    return Said(
        tuple(choice["prompt_token_ids"]),
        tuple(choice["token_ids"]),
        choice["text"],
        choice["finish_reason"],
        time.perf_counter() - begun,
    )


def complete_all(
    running: Served,
    asks: Sequence[Ask],
    concurrency: int,
    shown: Shown = silent,
    **more: Any,
) -> list[Said]:
    """Answers in the order of `asks`, so many at a time; `more` goes into each request.

    :raises Failed: one request has none.
    """
    model = served_name(running)
    with ThreadPoolExecutor(concurrency) as pool:
        found = []
        for said in pool.map(lambda ask: complete(running, model, ask, **more), asks):
            found.append(said)
            shown(len(found), len(asks))
    return found


def logprobs_after(
    running: Served, tokens: Sequence[int], candidates: Sequence[int]
) -> dict[int, float]:
    """Natural log-probabilities of `candidates` as the token after `tokens`.

    :raises Failed: the engine does not tell them.
    """
    asked = {"logprobs": 1, "logprob_token_ids": list(candidates)}
    top = _next_logprobs(running, tokens, asked)
    told = {int(name.removeprefix("token_id:")): value for name, value in top.items()}
    if missing := set(candidates) - told.keys():
        raise Failed(f"no log-probability of token {min(missing)} in {sorted(told)[:8]}")
    return {token: told[token] for token in candidates}


def likeliest(running: Served, tokens: Sequence[int], count: int = 5) -> list[float]:
    """Natural log-probabilities of the likeliest tokens after `tokens`.

    :raises Failed: the engine does not tell them.
    """
    top = _next_logprobs(running, tokens, {"logprobs": count})
    return [float(value) for value in top.values()]


def _next_logprobs(
    running: Served, tokens: Sequence[int], asked: Mapping[str, Any]
) -> dict[str, float]:
    """What the engine tells of the token after `tokens`, by names that hold ids: two tokens of one
    text are told apart.
    """
    body = {
        "model": served_name(running),
        "prompt": list(tokens),
        "max_tokens": 1,
        "temperature": 0,
        "repetition_penalty": 1.0,
        "return_tokens_as_token_ids": True,
        **asked,
    }
    choice = running.post(PATH, body)["choices"][0]
    told: dict[str, float] = choice["logprobs"]["top_logprobs"][0]
    return told


def _body(model: str, ask: Ask) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "prompt": ask.prompt,
        "max_tokens": ask.max_tokens,
        "temperature": 0,
        "repetition_penalty": 1.0,
        "return_token_ids": True,
    }
    return body | ({"stop": list(ask.stop)} if ask.stop else {})
