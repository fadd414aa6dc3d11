"""Requests that are told apart: how they are asked, and what came of each.

Knows addresses, not who starts what listens there.
"""

import asyncio
import json
from dataclasses import dataclass

from scripts.gateway.line import Answer, Line
from scripts.gateway.verdict import NO_TIME, word

# Until a scenario gives up: never waited for when all is well.
PATIENCE_SECONDS = 40
COMPLETIONS = "/v1/completions"
# Whose streams have events with names.
NAMED = ("/v1/messages", "/v1/responses")


@dataclass(frozen=True)
class Ask:
    """One request; the engine repeats its number in each token."""

    number: int
    path: str = COMPLETIONS
    stream: bool = False
    tokens: int = 4
    first: float = 0.0
    gap: float = 0.0
    fault: str = ""
    timeout: float | None = None
    headers: tuple[str, ...] = ()

    def raw(self) -> bytes:
        """As it goes over the wire."""
        asked = {"model": "fake", "prompt": str(self.number), "max_tokens": self.tokens}
        asked |= {"stream": self.stream, "first": self.first, "gap": self.gap}
        headers = list(self.headers)
        if self.fault:
            headers.append(f"x-fault: {self.fault}")
        if self.timeout is not None:
            headers.append(f"x-request-timeout: {self.timeout:g}")
        return post(self.path, json.dumps(asked).encode(), *headers)


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A request with a body."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def get(path: str, *headers: str) -> bytes:
    """A request without one."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def bearer(key: str) -> str:
    """The header that shows a key."""
    return f"Authorization: Bearer {key}"


@dataclass
class Asking:
    """A request that is on its way on a line of its own."""

    ask: Ask
    line: Line
    task: "asyncio.Task[str]"

    async def begun(self) -> None:
        """Return once some of its answer is there, or all is over."""
        begun = asyncio.create_task(self.line.begun.wait())
        await asyncio.wait({begun, self.task}, return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()


async def outcome(line: Line, ask: Ask) -> str:
    """What came of a request that was sent, in a word; hangs up."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            answer = await line.answer()
            line.shut()
            # To the end: what else comes was asked for by nobody.
            surplus = (await line.answer()).status > 0
    except TimeoutError:
        return NO_TIME
    finally:
        line.leave()
    return word(answer, ask.number, surplus=surplus, named=ask.path in NAMED)


async def fetched(address: tuple[str, int] | str, path: str, *headers: str) -> Answer:
    line = await Line.open(address)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await line.send(get(path, *headers))
            return await line.answer()
    finally:
        line.leave()


def gauge(exposition: str, name: str) -> float:
    """A figure of a Prometheus text, of several with labels the sum.

    :raises LookupError: it is not told.
    """
    lines = (line.rpartition(" ") for line in exposition.splitlines())
    found = [float(value) for key, _, value in lines if key.partition("{")[0] == name]
    if not found:
        raise LookupError(f"no {name} in {exposition[:200]!r}")
    return sum(found)
