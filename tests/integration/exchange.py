"""One raw request on a connection of its own, and its answer as it came: nothing is decoded.

Also what of two answers to the same request must be the same.
"""

import json
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools

from scripts.served import Served

SECONDS = 120
READ_BYTES = 65536
HEAD_END = b"\r\n\r\n"
EVENT_END = b"\n\n"
# What each connection states for itself; the gateway adds x-request-id.
OF_THE_CONNECTION = frozenset(
    ("connection", "date", "keep-alive", "server", "transfer-encoding", "x-request-id")
)
# vLLM's ids end in 16 hexadecimal digits of its own, or in the request id, which has 32.
ID = re.compile(rb"\b((?:[a-z]+[-_])+)([0-9a-f]{32}|[0-9a-f]{16})(?![0-9a-f])")
TIME = re.compile(rb'("(?:created|created_at|completed_at)": ?)[0-9.]+')

Connect = Callable[[], socket.socket]


def through(served: Served) -> Connect:
    """Connects to the gateway."""
    where = urlsplit(served.url)
    return lambda: socket.create_connection((where.hostname, where.port), SECONDS)


def past(served: Served) -> Connect:
    """Connects to vLLM itself."""

    def connect() -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(SECONDS)
        connection.connect(str(served.socket))
        return connection

    return connect


@dataclass
class Answer:
    """One answer; ``chunks`` is its body, in one piece unless it came chunked."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)
    chunked: bool = False
    # The statuses below 200 that came before.
    interim: list[int] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def events(self) -> list[bytes]:
        """The body cut where a stream's events end."""
        return [event + EVENT_END for event in self.body.removesuffix(EVENT_END).split(EVENT_END)]

    def header(self, name: str) -> str:
        return dict(self.headers).get(name, "")


@dataclass(frozen=True)
class Settled:
    """What two answers to one request share, byte for byte, where nothing harms them."""

    status: int
    headers: tuple[tuple[str, str], ...]
    chunked: bool
    interim: tuple[int, ...]
    body: bytes


def settled(answer: Answer) -> Settled:
    """The answer without what changes with each: ids are counted, times are blanked."""
    body = still(answer.body)
    headers = [
        # It is checked where the answer is read, and the gateway's ids are longer.
        (name, str(len(body)) if name == "content-length" and answer.body else value)
        for name, value in answer.headers
        if name not in OF_THE_CONNECTION
    ]
    return Settled(answer.status, tuple(headers), answer.chunked, tuple(answer.interim), body)


def still(body: bytes) -> bytes:
    """Every id by the order in which it first appears, so that they still belong together."""
    seen: dict[bytes, bytes] = {}

    def numbered(found: re.Match[bytes]) -> bytes:
        return found[1] + seen.setdefault(found[0], b"<%d>" % len(seen))

    return TIME.sub(rb"\1<time>", ID.sub(numbered, body))


def request(method: str, target: str, headers: Iterable[str] = (), body: bytes = b"") -> bytes:
    """The bytes of one request."""
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1:8000", *headers]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + HEAD_END + body


def posted(target: str, body: Mapping[str, Any], headers: Iterable[str] = ()) -> bytes:
    """The bytes of a request with a JSON body."""
    headers = ("Content-Type: application/json", *headers)
    return request("POST", target, headers, json.dumps(body).encode())


def exchange(connect: Connect, asked: bytes) -> Answer:
    """Send the bytes of one request; a body that asks whether it may come waits for the answer."""
    (answer,) = exchanges(connect, [asked])
    return answer


def exchanges(connect: Connect, several: Iterable[bytes]) -> Iterator[Answer]:
    """One request after the other on one connection, each when the last is answered."""
    with connect() as connection:
        for asked in several:
            head, _, body = asked.partition(HEAD_END)
            reader = _Reader(connection, bare=asked.startswith(b"HEAD "))
            if b"\r\nexpect: 100-continue" in head.lower():
                connection.sendall(head + HEAD_END)
                if reader.may_continue():
                    connection.sendall(body)
            else:
                connection.sendall(asked)
            yield reader.read()


class _Reader:
    """httptools' callbacks, and what they have heard."""

    def __init__(self, connection: socket.socket, *, bare: bool) -> None:
        self._connection = connection
        self._bare = bare
        self._parser = httptools.HttpResponseParser(self)
        self._answer = Answer()
        self._parts: list[bytes] = []
        self._whole = False

    def may_continue(self) -> bool:
        """Whether 100 comes; False when the answer does."""
        while not self._whole and not self._answer.interim:
            if not self._feed():
                break
        return bool(self._answer.interim)

    def read(self) -> Answer:
        while not self._whole and self._feed():
            pass
        # Without a length or chunks, an answer ends with its connection.
        if not self._whole:
            assert not self._answer.header("content-length"), "the answer is shorter than announced"
            assert not self._answer.chunked, "the connection ended before the last chunk"
            self._part_ends()
        return self._answer

    def _feed(self) -> bool:
        data = self._connection.recv(READ_BYTES)
        self._parser.feed_data(data)
        return bool(data)

    def _part_ends(self) -> None:
        if self._parts:
            self._answer.chunks.append(b"".join(self._parts))
            self._parts.clear()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._answer.headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        answer, status = self._answer, self._parser.get_status_code()
        if status < 200:
            answer.interim.append(status)
            answer.headers.clear()
            return
        answer.status = status
        answer.chunked = answer.header("transfer-encoding") == "chunked"
        self._whole = self._bare

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_chunk_complete(self) -> None:
        self._part_ends()

    def on_message_complete(self) -> None:
        if self._answer.status:
            self._part_ends()
            self._whole = True
