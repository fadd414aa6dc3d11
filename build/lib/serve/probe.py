"""Asks an engine whether it really answers: the port first, then one generated token."""

import asyncio
import json
import re
import time

from serve.upstream import Lost, Upstream

POLL_SECONDS = 0.02
WATCH_SECONDS = 0.5
ANSWER_SECONDS = 5.0
# The first token may compile what the warm-up did not meet.
FIRST_TOKEN_SECONDS = 300.0
SAID_BYTES = 2000
WORK = re.compile(rb"^vllm:(?:prompt|generation)_tokens_total(?:{[^}]*})? (\S+)", re.MULTILINE)


class ProbeFailed(Exception):
    """The engine answers its port but cannot generate."""


async def until_listening(upstream: Upstream) -> None:
    """Return once ``/health`` answers 200. Has no deadline of its own."""
    while await _health(upstream) != 200:
        await asyncio.sleep(POLL_SECONDS)


async def until_dead(upstream: Upstream) -> None:
    """Return once ``/health`` answers 503: the front end lives, the core behind it has died.

    vLLM's front end itself looks only every 5 s. No answer at all is no verdict.
    """
    while await _health(upstream) != 503:
        await asyncio.sleep(WATCH_SECONDS)


async def first_token(upstream: Upstream, model: str) -> None:
    """Have one token generated.

    :raises ProbeFailed: any answer but a completion.
    """
    asked = {"model": model, "prompt": "Hello", "max_tokens": 1, "temperature": 0}
    body = json.dumps(asked).encode()
    try:
        status, said = await upstream.fetch(
            "POST", b"/v1/completions", body, seconds=FIRST_TOKEN_SECONDS
        )
    except Lost as error:
        raise ProbeFailed(f"first token: {error}") from error
    if status != 200:
        told = said[:SAID_BYTES].decode(errors="replace")
        raise ProbeFailed(f"first token: status {status}: {told}")


async def until_hung(upstream: Upstream, model: str, seconds: float) -> None:
    """Return once the engine has done nothing for ``seconds`` although a token was asked for.

    What it does is read off its own counters: answers that are not streamed are silent for as long
    as they take, and a probe waits behind them. An engine that refuses does not hang.
    """
    patience = min(ANSWER_SECONDS, seconds / 4)
    done = await _work(upstream, 0.0, patience)
    while True:
        await asyncio.sleep(seconds / 4)
        if (now := await _work(upstream, done, patience)) != done:
            done = now
            continue
        asking = asyncio.create_task(first_token(upstream, model))
        # What went wrong is for others to see: it answered.
        asking.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        since = time.monotonic()
        try:
            while not asking.done():
                if time.monotonic() - since > seconds:
                    return
                await asyncio.wait({asking}, timeout=seconds / 4)
                if (now := await _work(upstream, done, patience)) != done:
                    done, since = now, time.monotonic()
        finally:
            asking.cancel()


async def _work(upstream: Upstream, before: float, seconds: float) -> float:
    """Tokens that the engine has read and said; as ``before`` when it does not tell in time."""
    try:
        _, said = await upstream.fetch("GET", b"/metrics", seconds=seconds)
    except Lost:
        return before
    return sum(float(value) for value in WORK.findall(said))


async def _health(upstream: Upstream) -> int:
    """The status that ``/health`` answers with; 0 when it does not."""
    try:
        return (await upstream.fetch("GET", b"/health", seconds=ANSWER_SECONDS))[0]
    except Lost:
        return 0
