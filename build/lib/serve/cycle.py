"""One request and its answer: what uvicorn's own cycle leaves out.

Trailers, the OpenAI-shaped answer to our own faults, answers of unknown length to clients of
HTTP/1.0, and an end of the connection that is the protocol's to choose.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.types import Receive
from uvicorn._types import ASGISendEvent, HTTPResponseStartEvent, HTTPResponseTrailersEvent
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    RequestResponseCycle,
)

from serve.errors import Refusal, refusal_body

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# Go's client takes sizes of up to 16 digits.
MOST_ZEROS = 8
# The traceback goes to the log; a client can do nothing with it.
OUR_FAULT = Refusal(500, "internal_error", "the gateway failed")


# In a message: the next one follows at once.
MORE = "preheat.more"


class Exit:
    """The transport as a cycle knows it: ``close`` asks the protocol first, and what is written can
    wait for what comes right behind it, which saves a system call and the client a wake-up.
    """

    __slots__ = ("_held", "_write", "close", "hold", "is_closing")

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._write = transport.write
        self.is_closing = transport.is_closing
        self.close = close
        self.hold = False
        self._held = b""

    def write(self, data: bytes) -> None:
        """Write, or keep until the next."""
        if self.hold:
            self._held, self.hold = self._held + data, False
        elif self._held:
            data, self._held = self._held + data, b""
            self._write(data)
        else:
            self._write(data)


class Flow(FlowControl):
    """Reading stays paused while it is held, whoever asks for more."""

    held = False

    def hold(self) -> None:
        """Read no more for now."""
        self.held = True
        self.pause_reading()

    def release(self) -> None:
        """Read on."""
        self.held = False
        self.resume_reading()

    def resume_reading(self) -> None:
        """Read on unless held: an application that waits for its body asks in vain."""
        if self.read_paused and not (self.held or self._transport.is_closing()):
            super().resume_reading()


class Cycle(RequestResponseCycle):
    """What an application calls ``receive`` and ``send`` of."""

    until_close = False
    trailers: list[tuple[bytes, bytes]] | None = None
    zeros = 0
    left: Callable[[], None] | None = None

    # Not itself a coroutine function: what is not special costs one call, not one more coroutine.
    def send(self, message: ASGISendEvent) -> Coroutine[Any, Any, None]:
        """Take one message of the application's."""
        # Set anew each time: one that was cancelled before it wrote must not hold back the next. An
        # answer to HEAD has nothing behind its head.
        hold = MORE in message and self.scope["method"] != "HEAD"
        self.transport.hold = hold  # type: ignore[attr-defined]
        if message["type"] == "http.response.start":
            self._prepare(message)
        elif self.trailers is not None:
            return self._before_trailers(message)
        elif self.until_close and message["type"] == "http.response.body":
            # The end of the connection says what the length would: any length is right.
            self.expected_content_length = len(message.get("body", b""))
        # super() costs as much again, and this is done for every chunk.
        return RequestResponseCycle.send(self, message)

    def nothing(self) -> bytes:
        """Bytes that mean nothing to whoever reads this answer, where it now stands.

        In a body of known length there are none.
        """
        if not self.response_started:
            return CONTINUE
        if self.chunked_encoding and not self.response_complete and self.zeros < MOST_ZEROS:
            # The next chunk's size follows them.
            self.zeros += 1
            return b"0"
        return b""

    def _prepare(self, message: HTTPResponseStartEvent) -> None:
        if self.waiting_for_100_continue:
            # Whether the body will come is not known, so neither is where a next request begins.
            self.keep_alive = False
        if self.scope["http_version"] == "1.0" and not _has_length(message):
            # Chunks are unknown to HTTP/1.0.
            self.until_close, self.chunked_encoding = True, False
        elif message.get("trailers"):
            self.trailers = []

    async def _before_trailers(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.trailers":
            await self._take_trailers(message)
        elif (
            self.chunked_encoding
            and message["type"] == "http.response.body"
            and not message.get("more_body", False)
        ):
            # The last chunk is ours to write, with the trailers.
            body = message.get("body", b"")
            await super().send({"type": "http.response.body", "body": body, "more_body": True})
        else:
            await super().send(message)

    async def _take_trailers(self, message: HTTPResponseTrailersEvent) -> None:
        assert self.trailers is not None  # noqa: S101 - the caller looked
        self.trailers.extend(message.get("headers", ()))
        # An answer that is not in chunks has no place for them, and has ended already.
        if self.disconnected or not self.chunked_encoding or message.get("more_trailers", False):
            return
        self.transport.write(b"0\r\n" + b"".join(map(_line, self.trailers)) + b"\r\n")
        # Ends the answer without a last chunk of uvicorn's.
        self.chunked_encoding = False
        self.trailers = None
        await super().send({"type": "http.response.body", "body": b"", "more_body": False})

    def leave(self) -> None:
        """The client is gone: ``receive`` says so, and who watches is told."""
        self.disconnected = True
        self.message_event.set()
        if self.left is not None:
            self.left()

    async def send_500_response(self) -> None:
        """The application failed before it had begun an answer."""
        body = refusal_body(OUR_FAULT)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})


def watch(receive: Receive, left: Callable[[], None] | None) -> None:
    """Have ``left`` called when the client of ``receive`` leaves; None stops that.

    A task that waits for ``receive`` to say it would cost a tenth of a request's time.
    """
    cycle = getattr(receive, "__self__", None)
    if isinstance(cycle, Cycle):
        cycle.left = left
        if left is not None and cycle.disconnected:
            left()


def _has_length(message: HTTPResponseStartEvent) -> bool:
    return any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))


def _line(trailer: tuple[bytes, bytes]) -> bytes:
    name, value = trailer
    if HEADER_RE.search(name) or HEADER_VALUE_RE.search(value):
        raise RuntimeError("Invalid HTTP trailer.")
    return b"%s: %s\r\n" % trailer
