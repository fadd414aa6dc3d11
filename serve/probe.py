"""Asks an engine whether it really answers: the port first, then one generated token."""

import asyncio

from aiohttp import ClientError, ClientSession, ClientTimeout

POLL_SECONDS = 0.02
WATCH_SECONDS = 0.5
ANSWER = ClientTimeout(total=5)
# The first token may compile what the warm-up did not meet.
FIRST_TOKEN = ClientTimeout(total=300)


class ProbeFailed(Exception):
    """The engine answers its port but cannot generate."""


async def until_listening(session: ClientSession) -> None:
    """Return once ``/health`` answers 200. Has no deadline of its own."""
    while await _health(session) != 200:
        await asyncio.sleep(POLL_SECONDS)


async def until_dead(session: ClientSession) -> None:
    """Return once ``/health`` answers 503: the front end lives, the core behind it has died.

    vLLM's front end itself looks only every 5 s. No answer at all is no verdict.
    """
    while await _health(session) != 503:
        await asyncio.sleep(WATCH_SECONDS)


async def first_token(session: ClientSession, model: str) -> None:
    """Have one token generated.

    :raises ProbeFailed: any answer but a completion.
    """
    body = {"model": model, "prompt": "Hello", "max_tokens": 1, "temperature": 0}
    try:
        async with session.post("/v1/completions", json=body, timeout=FIRST_TOKEN) as answer:
            if answer.status != 200:
                said = (await answer.content.read(2000)).decode(errors="replace")
                raise ProbeFailed(f"first token: status {answer.status}: {said}")
            await answer.read()
    except (ClientError, TimeoutError, OSError) as error:
        raise ProbeFailed(f"first token: {error or type(error).__name__}") from error


async def _health(session: ClientSession) -> int:
    """The status that ``/health`` answers with; 0 when it does not."""
    try:
        async with session.get("/health", timeout=ANSWER) as answer:
            return answer.status
    except (ClientError, TimeoutError, OSError):
        return 0
