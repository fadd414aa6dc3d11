"""A file on an HTTP server, as a ``Source``: only the ranges that are asked for are fetched.

A server must know ranges (RFC 9110, section 14) and keep the file as it was at the first answer:
of the same size, and of the same ETag or date, if it says them. Windows of a quarter of a MiB are
read ahead and the latest are kept, as parsers ask for many small ranges that lie together.
"""

import io
import re
import socket
import time
from collections import deque
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import (
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    Request,
    build_opener,
)

from bake.checkpoint.limits import DEFAULT, ParseLimits
from bake.checkpoint.source import check_range
from bake.errors import BakeError, Malformed

AHEAD = 256 * 1024
KEPT = 8
# Seconds without a byte, and for one range in all, redirects and headers with it; a slow server
# gets the latter for each 8 MiB.
SILENCE = 30.0
RANGE = 60.0
PART = 8 * 1024**2
CHUNK = 1024**2
# Headers, and pages that come with a redirect and are read for nothing.
BESIDE = 4 * 1024**2
SCHEMES = ("http", "https")
CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", re.ASCII)
NOTHING = re.compile(r"bytes \*/0", re.ASCII)
# What tells one state of a file from another.
VALIDATORS = ("ETag", "Last-Modified")


class Ranges:
    """Bytes of ``url``. The first window is fetched at once, as it tells the size."""

    def __init__(self, url: str, limits: ParseLimits = DEFAULT) -> None:
        """:raises BakeError: there is no such file, or the server does not know ranges."""
        _check_scheme(url)
        # An address may hold a token, as presigned ones do: not for messages.
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        self.name = parts._replace(netloc=host, query="", fragment="").geturl()
        self.url, self.limits = url, limits
        self.requests = 0
        self.size = -1
        self._state: tuple[str | None, ...] = ()
        self._windows: deque[tuple[int, memoryview]] = deque(maxlen=KEPT)
        self._deadline = _Deadline()
        self._opener = build_opener(_Redirects, _Plain(self._deadline), _Secure(self._deadline))
        self._windows.append((0, self._fetch(0, AHEAD)))

    def read(self, begin: int, end: int) -> memoryview:
        """From what was read ahead, or by one request.

        :raises Malformed: the range is not within the file, or more than may be held.
        :raises BakeError: the server fails, or the file is another than it was.
        """
        check_range(self, begin, end)
        if end - begin > (most := self.limits.allocation_bytes):
            raise Malformed(self.name, f"wants {end - begin} bytes, more than {most}", begin)
        for at, window in self._windows:
            if at <= begin and end <= at + len(window):
                return window[begin - at : end - at]
        # Near the end, what lies in front of it is asked for next: ZIP's directory, for one.
        at = max(0, min(begin, self.size - AHEAD)) if end - begin < AHEAD else begin
        window = self._fetch(at, min(self.size, max(end, at + AHEAD)))
        self._windows.append((at, window))
        return window[begin - at : end - at]

    def _fetch(self, begin: int, end: int) -> memoryview:
        """Bytes from ``begin`` to ``end``, or to the file's end."""
        headers = {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        self.requests += 1
        self._deadline.most = end - begin + BESIDE
        self._deadline.until = time.monotonic() + RANGE * (1 + (end - begin) // PART)
        try:
            with self._opener.open(Request(self.url, headers=headers), timeout=SILENCE) as answer:  # noqa: S310
                return self._taken(answer, begin, end)
        except HTTPError as error:
            with error:
                told = error.headers.get("Content-Range", "")
                if error.code == 416 and self.size < 0 and NOTHING.fullmatch(told):
                    self.size = 0
                    return memoryview(b"")
                raise self._failed(f"the server says {error.code}") from error
        except URLError as error:
            raise self._failed(str(error.reason)) from error
        except (OSError, HTTPException, ValueError) as error:
            raise self._failed(f"{type(error).__name__}: {error}") from error

    def _taken(self, answer: HTTPResponse, begin: int, end: int) -> memoryview:
        told = answer.headers.get("Content-Range", "")
        if answer.status != 206 or not (found := CONTENT_RANGE.fullmatch(told)):
            raise self._failed("the server does not give ranges of a file")
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise self._failed("the server packs what it gives")
        first, last, size = map(int, found.groups())
        state = (str(size), *(answer.headers.get(name) for name in VALIDATORS))
        if self.size < 0:
            self.size, self._state = size, state
        if state != self._state:
            raise self._failed("the file changed while it was read")
        if (first, last + 1) != (begin, min(end, size)):
            raise self._failed(f"asked for bytes {begin} to {end}, the server gave {told[:60]}")
        return memoryview(self._body(answer, last + 1 - first))

    def _body(self, answer: HTTPResponse, size: int) -> bytes:
        """Exactly ``size`` bytes."""
        parts, left = [], size
        while left:
            # One read of the connection: what a server drips comes back between the drops.
            part = answer.read1(min(left, CHUNK))
            if not part:
                raise self._failed(f"the server ended {left} bytes early")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def _failed(self, what: str) -> BakeError:
        return BakeError(f"{self.name}: {what}", "download the file, and look at that")


@dataclass
class _Deadline:
    """When a request must be over, on the clock that only goes forward, and what it may bring."""

    until: float = 0.0
    most: int = 0

    def take(self, count: int) -> None:
        """:raises OSError: so many more bytes are too many."""
        self.most -= count
        if self.most < 0:
            raise OSError("the server gives more than was asked for")

    def left(self) -> float:
        """Seconds.

        :raises TimeoutError: none.
        """
        if (left := self.until - time.monotonic()) <= 0:
            raise TimeoutError("the server is too slow")
        return left


class _Timed(io.RawIOBase):
    """A connection's bytes: silence ends it, and so does the deadline, whatever is dripped."""

    def __init__(self, connection: socket.socket, raw: Any, deadline: _Deadline) -> None:
        self._connection, self._raw, self._deadline = connection, raw, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._connection.settimeout(min(SILENCE, self._deadline.left()))
        try:
            got: int | None = self._raw.readinto(buffer)
        except TimeoutError:
            self._deadline.left()
            raise
        self._deadline.take(got or 0)
        return got

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Plain(HTTPHandler):
    """Requests that end by the deadline."""

    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._made = _timed(HTTPConnection, deadline)

    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(self._made, req)


class _Secure(HTTPSHandler):
    """The same over TLS."""

    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._made = _timed(HTTPSConnection, deadline)

    def https_open(self, req: Request) -> HTTPResponse:
        return self.do_open(self._made, req)


def _timed(kind: Any, deadline: _Deadline) -> Any:
    """A kind of connections whose answers, their headers too, are read by the deadline."""

    class Answer(HTTPResponse):
        def __init__(self, sock: socket.socket, *asked: Any, **named: Any) -> None:
            super().__init__(sock, *asked, **named)
            raw = self.fp.detach()
            self.fp = io.BufferedReader(_Timed(sock, raw, deadline))

    return type(f"Timed{kind.__name__}", (kind,), {"response_class": Answer})


class _Redirects(HTTPRedirectHandler):
    """To another address of a web server, and nowhere else; the range goes along."""

    def redirect_request(self, *asked: Any, **named: Any) -> Request | None:
        _check_scheme(asked[-1])
        return super().redirect_request(*asked, **named)


def _check_scheme(url: str) -> None:
    """:raises BakeError: it is no address of a web server."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in SCHEMES and bool(parts.hostname)
    except ValueError:
        sound = False
    if not sound:
        raise BakeError(f"{url[:60]!r} is no address of a file on a web server")
