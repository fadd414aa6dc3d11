"""How an engine answers: as vLLM does, or with one of the faults that a request can ask for.

Knows one connection and what is asked on it, not how it came to be.
"""

import asyncio
import contextlib
import json
import random
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

NOISE_BYTES = 4096
FLOOD_BYTES = 64 * 1024
FLOODS = 400
BABBLE_LINES = 20_000
LATE_SECONDS = 0.05
STREAM = ("Content-Type: text/event-stream; charset=utf-8", "Transfer-Encoding: chunked")
JSON = "Content-Type: application/json"
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    method: str
    path: str
    fault: str
    body: bytes


class Closed(Exception):
    """A fault: the connection is closed here and now."""


class Channel:
    """One connection of the gateway's."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        note: Callable[[str], None],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self.note = note

    async def request(self) -> Request:
        """The next one.

        :raises asyncio.IncompleteReadError: there is none any more.
        """
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in map(_parted, lines)}
        body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        method, target, _ = first.split(" ", 2)
        return Request(method, target.partition("?")[0], headers.get("x-fault", ""), body)

    async def head(self, status: str, *headers: str) -> None:
        """Status and headers."""
        await self.send("\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode())

    async def answer(self, status: str, body: bytes, *headers: str) -> None:
        """A whole answer."""
        await self.send(_whole(status, body, *headers))

    async def chunk(self, data: bytes) -> None:
        """A piece of a stream."""
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def send(self, data: bytes) -> None:
        """Bytes, whatever they are."""
        self._writer.write(data)
        await self._writer.drain()

    async def wait(self, seconds: float | None) -> None:
        """Sleep (None: for ever).

        :raises ConnectionResetError: the gateway left meanwhile.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._reader.read(1)
                raise ConnectionResetError

    def close(self, *, reset: bool = False) -> None:
        """Hang up."""
        if reset:
            self._writer.transport.abort()
        self._writer.close()


Asked = dict[str, Any]
Fault = Callable[[Asked, Channel], Awaitable[None]]


def parsed(body: bytes) -> Asked | None:
    """What a request asks, or None when it is none."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(asked, dict):
        return None
    asked = {"prompt": "", "max_tokens": 4, "first": 0, "gap": 0, **asked}
    sound = type(asked["max_tokens"]) is int and asked["max_tokens"] >= 0
    sound = sound and all(type(asked[name]) in (int, float) for name in ("first", "gap"))
    return asked if sound else None


def tokens(asked: Asked) -> list[str]:
    """What is said in answer."""
    return [f"{asked['prompt']}-{number} " for number in range(asked["max_tokens"])]


def whole(asked: Asked) -> bytes:
    """The body of an answer that is no stream."""
    choice = {"index": 0, "text": "".join(tokens(asked)), "finish_reason": "length"}
    return json.dumps({"id": "1", "object": "text_completion", "choices": [choice]}).encode()


def event(token: str) -> bytes:
    """One token of a stream."""
    choice = {"index": 0, "text": token, "finish_reason": None}
    said = json.dumps({"id": "1", "object": "text_completion", "choices": [choice]})
    return f"data: {said}\n\n".encode()


async def completed(asked: Asked, channel: Channel) -> None:
    """No fault: all tokens at the pace that was asked for."""
    said = tokens(asked)
    first, gap = asked["first"], asked["gap"]
    if not asked.get("stream"):
        if seconds := first + gap * len(said):
            await channel.wait(seconds)
        await channel.answer("200 OK", whole(asked), JSON)
        return
    await channel.head("200 OK", *STREAM)
    for number, token in enumerate(said):
        if seconds := gap if number else first:
            await channel.wait(seconds)
        await channel.chunk(event(token))
    await channel.chunk(DONE)
    await channel.send(b"0\r\n\r\n")


async def no_answer(_: Asked, __: Channel) -> None:
    """Closed before any byte."""
    raise Closed


async def reset(_: Asked, channel: Channel) -> None:
    """The same, and what was asked lies unread."""
    channel.close(reset=True)
    raise Closed


async def half_head(_: Asked, channel: Channel) -> None:
    """Closed within the head."""
    await channel.send(b"HTTP/1.1 200 OK\r\nContent-Le")
    raise Closed


async def no_body(_: Asked, channel: Channel) -> None:
    """Closed between head and body."""
    await channel.head("200 OK", JSON, "Content-Length: 100")
    raise Closed


async def half_body(asked: Asked, channel: Channel) -> None:
    """Closed within a body that has a length."""
    await channel.send(_whole("200 OK", whole(asked), JSON)[:-10])
    raise Closed


async def half_event(asked: Asked, channel: Channel) -> None:
    """Closed within an event, at the end of a chunk."""
    await _begin(asked, channel)
    await channel.chunk(b'data: {"half":')
    raise Closed


async def half_chunk(asked: Asked, channel: Channel) -> None:
    """Closed within a chunk."""
    await _begin(asked, channel)
    await channel.send(b'40\r\ndata: {"half":')
    raise Closed


async def no_end(asked: Asked, channel: Channel) -> None:
    """Closed where the last chunk would have been."""
    await channel.head("200 OK", *STREAM)
    for token in tokens(asked):
        await channel.chunk(event(token))
    raise Closed


async def noise(asked: Asked, channel: Channel) -> None:
    """Bytes at random where an answer should be."""
    await channel.send(random.Random(str(asked["prompt"])).randbytes(NOISE_BYTES))  # noqa: S311


async def odd_status(_: Asked, channel: Channel) -> None:
    """A status that is no number."""
    await channel.head("2OO OK", "Content-Length: 0")


async def two_lengths(_: Asked, channel: Channel) -> None:
    """A body of two lengths at once."""
    await channel.head("200 OK", JSON, "Content-Length: 2", "Content-Length: 4")
    await channel.send(b"{}{}")


async def both_framings(_: Asked, channel: Channel) -> None:
    """A body with a length and in chunks."""
    await channel.head("200 OK", JSON, "Content-Length: 2", "Transfer-Encoding: chunked")
    await channel.send(b"2\r\n{}\r\n0\r\n\r\n")


async def switched(_: Asked, channel: Channel) -> None:
    """Another protocol, which nobody asked for."""
    await channel.head("101 Switching Protocols", "Upgrade: noise", "Connection: upgrade")
    await channel.send(b"\0" * NOISE_BYTES)


async def noise_in_chunks(asked: Asked, channel: Channel) -> None:
    """A stream that turns into something else."""
    await _begin(asked, channel)
    await channel.send(b"zz\r\n" + bytes(range(256)))


async def two_answers(asked: Asked, channel: Channel) -> None:
    """A second answer behind the first, which would be the next client's."""
    stray = whole({**asked, "prompt": "stray"})
    answers = (_whole("200 OK", body, JSON) for body in (whole(asked), stray))
    await channel.send(b"".join(answers))


async def late_answer(asked: Asked, channel: Channel) -> None:
    """The same, a moment later; it is noted."""
    await channel.answer("200 OK", whole(asked), JSON)
    await channel.wait(LATE_SECONDS)
    await channel.answer("200 OK", whole({**asked, "prompt": "stray"}), JSON)
    channel.note(f"late {asked['prompt']}")


async def babble(asked: Asked, channel: Channel) -> None:
    """No fault of the answer's: more lines of log than a gateway holds."""
    for number in range(BABBLE_LINES):
        print(f"line {number}")
    sys.stdout.flush()
    await completed(asked, channel)


async def silent(_: Asked, channel: Channel) -> None:
    """Nothing."""
    await channel.wait(None)


async def flood(asked: Asked, channel: Channel) -> None:
    """More than anybody buffers, as fast as it is taken."""
    await channel.head("200 OK", *STREAM)
    for _number in range(FLOODS):
        await channel.chunk(event(f"{asked['prompt']}-" + "x" * FLOOD_BYTES))
    await channel.chunk(DONE)
    await channel.send(b"0\r\n\r\n")


FAULTS: dict[str, Fault] = {
    "no answer": no_answer,
    "reset": reset,
    "half head": half_head,
    "no body": no_body,
    "half body": half_body,
    "half event": half_event,
    "half chunk": half_chunk,
    "no end": no_end,
    "noise": noise,
    "odd status": odd_status,
    "two lengths": two_lengths,
    "both framings": both_framings,
    "switched": switched,
    "noise in chunks": noise_in_chunks,
    "two answers": two_answers,
    "late answer": late_answer,
    "babble": babble,
    "silent": silent,
    "flood": flood,
}


async def _begin(asked: Asked, channel: Channel) -> None:
    await channel.head("200 OK", *STREAM)
    await channel.chunk(event(tokens(asked)[0]))


def _whole(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def _parted(line: str) -> tuple[str, str, str]:
    return line.partition(":")
