"""An HTTP/1.1 client of one Unix socket: requests as bytes in, answers as bytes out.

Only what stands between a gateway and its engine: kept connections, answers in the pieces in
which they were read, and an end at once when nobody wants the rest. Written here because a
general client costs more than all else on the way (``make bench-gateway``; docs/gateway.md).
Knows nothing of what is asked.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterable
from typing import cast

import httptools

# vLLM closes a connection that was idle for 5 s; a request must not go out on it just then.
IDLE_SECONDS = 2.0
# Bytes of an answer that wait for a slow reader before the engine's socket is read no further.
HELD_BYTES = 256 * 1024

Headers = list[tuple[bytes, bytes]]


class Lost(Exception):
    """The engine cannot be reached, or ended the connection before its answer was whole."""


class Unreachable(Lost):
    """There is no connection to be had, and so nothing was asked."""


class Upstream:
    """Requests to whoever listens at ``path``."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._idle: deque[Connection] = deque()

    async def ask(self, method: str, target: bytes, headers: Headers, body: bytes) -> "Connection":
        """Send one request and return once the answer's head is there.

        The connection is the caller's until ``leave``.

        :raises Lost: there is no answer.
        """
        connection = self._kept() or await self._new()
        try:
            head = request_head(method, target, headers, len(body))
            await connection.ask(head, body, bare=method == "HEAD")
        except BaseException:
            connection.drop()
            raise
        return connection

    async def fetch(
        self, method: str, target: bytes, body: bytes = b"", *, seconds: float
    ) -> tuple[int, bytes]:
        """Status and body of a small answer.

        :raises Lost: there was none, or not in time.
        """
        headers = [(b"content-type", b"application/json")] if body else []
        connection = None
        try:
            async with asyncio.timeout(seconds):
                connection = await self.ask(method, target, headers, body)
                parts = [await connection.read()]
                while not connection.ended:
                    parts.append(await connection.read())
        except TimeoutError as error:
            raise Lost(f"no answer in {seconds:g} s") from error
        finally:
            if connection:
                connection.leave()
        return connection.status, b"".join(parts)

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop().drop()

    def _kept(self) -> "Connection | None":
        """The connection that was used last: the others grow old, and are closed."""
        now = time.monotonic()
        while self._idle and (self._idle[0].idle_since < now - IDLE_SECONDS or self._idle[0].gone):
            self._idle.popleft().drop()
        return self._idle.pop() if self._idle and not self._idle[-1].gone else None

    async def _new(self) -> "Connection":
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_unix_connection(
                lambda: Connection(self._idle), self._path
            )
        except OSError as error:
            raise Unreachable(f"cannot connect: {error.strerror or error}") from error
        return connection


class Connection(asyncio.Protocol):
    """One connection, and the answer that is on it; puts itself into ``idle`` when it is free."""

    def __init__(self, idle: "deque[Connection]") -> None:
        self._idle = idle
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._paused = self._bare = self._whole = self._framed = self._keep = False
        self._headed = self._asked = self._surplus = False
        self.idle_since = 0.0
        self.gone = False
        self.status = 0
        self.headers: Headers = []
        self.trailers: Headers = []

    async def ask(self, head: bytes, body: bytes, *, bare: bool) -> None:
        """Send a request; ``bare`` says that its answer has no body whatever its head says.

        :raises Lost: no head came back.
        """
        self._bare, self._whole, self._framed, self._keep = bare, False, False, False
        self._headed, self._asked = False, True
        self.status, self.headers, self.trailers = 0, [], []
        if self._transport is None or self.gone:
            raise Lost("the connection was closed")
        # Not joined: a large body would be held twice.
        self._transport.writelines((head, body) if body else (head,))
        while not self._headed:
            await self._news()

    async def read(self) -> bytes:
        """The next piece of the body: a chunk as it was sent, or a part of a large one. ``ended``
        says whether it was the last.

        :raises Lost: the body ended before its end.
        """
        while not (self._pieces or self._whole):
            await self._news()
        data = self._pieces.popleft() if self._pieces else b""
        self._held -= len(data)
        if not (self._pieces or self._whole):
            self._resume()
        return data

    @property
    def more(self) -> bool:
        """Whether ``read`` will return at once."""
        return bool(self._pieces) or self._whole

    @property
    def ended(self) -> bool:
        """Whether the whole body has been read."""
        return self._whole and not self._pieces

    def leave(self) -> None:
        """The caller is done: kept for another's request where the answer was read to its end."""
        if self.ended and self._keep and not (self._bare or self.gone):
            self._resume()
            self._asked = False
            self.idle_since = time.monotonic()
            self._idle.append(self)
        else:
            self.drop()

    def drop(self) -> None:
        """Close at once: an engine that is not done hears that nobody wants the rest."""
        self.gone = True
        if self._transport is not None:
            self._transport.abort()

    async def _news(self) -> None:
        if self.gone:
            raise Lost("it closed the connection")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _resume(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # uvloop's is one, and says it is none.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Parse, and wake who waits."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            # No HTTP, or bytes that nobody asked for.
            self.drop()
        if self._held > HELD_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, _: Exception | None) -> None:
        """An answer without a length ends so; any other is lost."""
        if self._headed and not self._framed:
            self._whole = True
        self.gone = True
        self._transport = None
        self._wake()

    # httptools

    def on_message_begin(self) -> None:
        """An answer; a second one, or one to nothing, would be taken for the next client's."""
        self._surplus = self._whole or not self._asked
        if self._surplus:
            self.drop()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of the head, or after the last chunk."""
        if not self._surplus:
            (self.trailers if self._headed else self.headers).append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is whole; one of the 1xx is none of ours."""
        if self._surplus:
            return
        self.status = self._parser.get_status_code()
        if self.status < 200:
            self.headers = []
            return
        self._keep = self._parser.should_keep_alive()
        names = {name for name, _ in self.headers}
        self._framed = not names.isdisjoint((b"content-length", b"transfer-encoding"))
        self._headed = True
        self._whole = self._bare

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if not self._surplus:
            self._pieces.append(body)
            self._held += len(body)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        if self._headed:
            self._whole = True


def request_head(
    method: str, target: bytes, headers: Iterable[tuple[bytes, bytes]], length: int
) -> bytes:
    """One request as it goes over the wire, up to its body of ``length`` bytes."""
    lines = [b"%s: %s\r\n" % pair for pair in headers]
    if length or method not in ("GET", "HEAD", "OPTIONS"):
        lines.append(b"content-length: %d\r\n" % length)
    return b"".join(
        (method.encode(), b" ", target, b" HTTP/1.1\r\nhost: engine\r\n", *lines, b"\r\n")
    )
