"""One client's connection in bytes: what a fault needs that no client library would do.

Answers are read as they come, so that half of one, or one too many, is told from a whole one.
"""

import asyncio
import contextlib
import socket
import struct
from collections import deque
from dataclasses import dataclass, field

import httptools

READ_BYTES = 256 * 1024
AT_ONCE = struct.pack("ii", 1, 0)


@dataclass
class Answer:
    """What came of one; ``status`` is 0 while no head did, ``whole`` says that its end came."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    whole: bool = False


class Line:
    """A connection that was opened; requests on it are the caller's bytes."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._parser = httptools.HttpResponseParser(self)
        self._whole: deque[Answer] = deque()
        self._coming = Answer()
        self.begun = asyncio.Event()

    @classmethod
    async def open(cls, address: tuple[str, int] | str, *, receive_buffer: int = 0) -> "Line":
        """To a TCP port, or to the Unix socket at a path.

        :raises OSError: nobody listens there.
        """
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        connection = socket.socket(family, socket.SOCK_STREAM)
        connection.setblocking(False)
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            await asyncio.get_running_loop().sock_connect(connection, address)
        except BaseException:
            connection.close()
            raise
        return cls(connection)

    async def send(self, data: bytes) -> None:
        """All of it. A gateway that has hung up may have answered before: that is no error here."""
        with contextlib.suppress(ConnectionError):
            await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def answer(self) -> Answer:
        """The next answer, or what there is of it when the connection ends."""
        while not self._whole and await self._read():
            pass
        if self._whole:
            return self._whole.popleft()
        coming, self._coming = self._coming, Answer()
        return coming

    async def first(self) -> None:
        """Read until some of a body is there, or the connection ends."""
        while not self.begun.is_set() and await self._read():
            pass

    async def _read(self) -> bool:
        try:
            data = await asyncio.get_running_loop().sock_recv(self._socket, READ_BYTES)
        except ConnectionError:
            data = b""
        # What is no HTTP is nothing that a client could use.
        with contextlib.suppress(httptools.HttpParserError):
            self._parser.feed_data(data)
        return bool(data)

    def shut(self) -> None:
        """Send no more, and wait for what is owed."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def leave(self, *, reset: bool = False) -> None:
        """Hang up: by FIN, as far as all was read, or by RST."""
        if reset:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        self._socket.close()
        # Each holds the other.
        del self._parser

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of a head."""
        self._coming.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """A head is whole; an interim one says nothing."""
        status = self._parser.get_status_code()
        if status >= 200:
            self._coming.status = status

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        self._coming.body += body
        self.begun.set()

    def on_message_complete(self) -> None:
        """An answer is whole."""
        if self._coming.status:
            self._coming.whole = True
            self._whole.append(self._coming)
        self._coming = Answer()
