"""One client's connection: what may come over it, how much, how slowly, and how it ends.

uvicorn's HTTP protocol with bounds. A request that breaks one is answered in the gateway's
envelope and never reaches an application; whatever cannot be read in one way only is refused.
Knows nothing of routes, keys or the engine.
"""

import asyncio
import logging
import math
import socket
import urllib.parse
from collections.abc import Callable
from enum import Enum, auto
from typing import ClassVar, NoReturn

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serve.cycle import Cycle, Exit, Flow
from serve.errors import Refusal, refusal_body
from serve.limits import (
    BODY_TOO_SLOW,
    HEAD_TOO_LARGE,
    HEAD_TOO_SLOW,
    NO_DATA,
    TOO_MANY_CONNECTIONS,
    TOO_MANY_HEADERS,
    WireLimits,
    malformed,
)
from serve.sweep import Sweep

logger = logging.getLogger(__name__)

# What is parsed at once where a request may begin: a read of 250 KB holds 14,000 tiny ones.
PIECE_BYTES = 4096
# Connections over the limit that are held until their clients have read why.
LINGERING = 256
# A reset takes a round trip.
ROUND_TRIP_SECONDS = 0.05
TCP_CLOSE = 7

LENGTH = b"content-length"

EXTENSIONS: dict[str, dict[object, object]] = {"http.response.trailers": {}}


class Phase(Enum):
    """What the parser is in the middle of."""

    BETWEEN = auto()
    HEAD = auto()
    BODY = auto()
    # Nothing is parsed any more: the client is given time to read the last answer.
    PARTING = auto()


# Asked for several times in a request, and a member of an enumeration costs 0.1 µs each time.
BETWEEN, HEAD, BODY, PARTING = Phase


class Stopped(Exception):
    """Leaves the parser from inside one of its callbacks."""


class Wire(HttpToolsProtocol):
    """One connection. ``protocol`` makes the class that a server is given."""

    limits: ClassVar[WireLimits]
    sweep: ClassVar[Sweep]
    refused: Callable[[str], None]
    # An answer that begins is its connection's last: the server will soon be gone.
    leaving: ClassVar[bool] = False

    flow: Flow
    cycle: Cycle
    _exit: Exit
    _phase = BETWEEN
    # Nothing that comes is looked at any more.
    _deaf = False
    # The server stops.
    _stopping = False
    # The client has shut its writing side, or has left.
    _eof = False
    # The cycle whose application runs, or ran last; ``cycle`` is the one that was parsed last.
    _running: Cycle | None = None
    # Why the parser was left, and what is still to be said when all before it is answered.
    _verdict: Refusal | None = None
    _last_words: Refusal | None = None
    # Read and not yet parsed: other requests wait.
    _unparsed = memoryview(b"")
    # Bytes that came since the head began, or since the last byte of a body.
    _fed = 0
    _taken = 0
    _codings: tuple[bytes, ...] = ()
    # It is the client's turn since then, and it may take so long.
    _since = 0.0
    _patience = math.inf
    # As many bytes waited for the client to read them when it was last seen to read.
    _unread = 0
    _read_at = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=self.limits.write_buffer)
        self.flow = Flow(transport)
        self._exit = Exit(transport, self._leave)
        self._wait(self.limits.head_seconds)
        self.sweep.add(self)
        if len(self.connections) > self.limits.connections:
            self._refuse(TOO_MANY_CONNECTIONS)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed, by whomever."""
        self.sweep.remove(self)
        super().connection_lost(exc)
        # uvicorn tells the request that was parsed last, which may be one that waits.
        if self._running is not None and not self._running.response_complete:
            self._running.leave()
        self.pipeline.clear()
        # Else the two keep each other alive until the garbage collector comes.
        self._exit.close = self.transport.close

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """The client sends no more. True keeps the connection: an answer is owed."""
        self._eof = True
        running = self._running
        if (
            running is None
            or not self._busy
            or self._phase is not BETWEEN
            or self.scheme == "https"
            # It has no interim answers, so there is no telling whether the client is still there.
            or running.scope["http_version"] == "1.0"
        ):
            return None
        self._probe()
        self.loop.call_later(ROUND_TRIP_SECONDS, self._end_if_reset)
        return True

    def leave(self) -> None:
        """Have the last answer that is owed end the connection, if it has not begun."""
        # Of several requests the last alone: all of them are answered.
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """The server stops: close after the answer that is owed, or now."""
        self._stopping = True
        if self._phase is PARTING:
            self.transport.close()
        else:
            super().shutdown()

    # What comes.

    def data_received(self, data: bytes) -> None:
        """Bytes of the client's, at most 256 KB."""
        if self._deaf:
            return
        if len(data) <= PIECE_BYTES and not self._unparsed:
            self._parse(data)
            if self.pipeline:
                self.flow.hold()
        else:
            self._unparsed = memoryview(bytes(self._unparsed) + data)
            self._parse_on()

    def _parse_on(self) -> None:
        """Parse what was read, until a request waits: at most one piece's requests ever do."""
        while self._unparsed and not self.pipeline:
            size = self._piece()
            piece, self._unparsed = self._unparsed[:size], self._unparsed[size:]
            self._parse(piece)
        if self.pipeline:
            self.flow.hold()
        elif self.flow.held:
            self.flow.release()

    def _piece(self) -> int:
        """Of a body whose length is known there may be more at once: no request begins in it."""
        if self._phase is not BODY:
            return PIECE_BYTES
        lengths = (int(value) for name, value in self.cycle.scope["headers"] if name == LENGTH)
        return max(next(lengths, 0) - self._taken, PIECE_BYTES)

    def _parse(self, data: bytes | memoryview) -> None:
        self._fed += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._stay_with_http1(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            logger.debug("%s: the parser was left", self.client, exc_info=error)
            self._refuse(self._verdict or malformed(error))
        if self._phase is not BETWEEN:
            self._more_is_to_come()

    def _more_is_to_come(self) -> None:
        limits = self.limits
        if self._phase is HEAD:
            if not self._fed:
                self._wait(limits.head_seconds)
            elif self._fed > limits.header_bytes:
                self._refuse(HEAD_TOO_LARGE)
        elif self._phase is BODY:
            if self._fed > limits.header_bytes:
                self._refuse(malformed(NO_DATA))
            elif not (self._fed or self.cycle.response_complete):
                self._wait(limits.body_seconds)

    def _stop(self, verdict: Refusal) -> NoReturn:
        self._verdict = verdict
        raise Stopped

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._phase = HEAD
        self._fed = self._taken = 0
        self._codings = ()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or one of the trailers behind a body, which nobody is told of."""
        name = name.lower()
        if name == b"transfer-encoding":
            self._codings += (value.lower(),)
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """A head is whole: its request is begun, or waits for those before it."""
        parser, scope = self.parser, self.scope
        scope["method"] = parser.get_method().decode("ascii")
        scope["http_version"] = version = parser.get_http_version()
        self._check_head(version)
        if parser.should_upgrade():
            if scope["method"] == "CONNECT":
                self._stop(malformed("CONNECT is for proxies"))
            return
        self._locate()
        scope["extensions"] = EXTENSIONS
        kept = parser.should_keep_alive() and not (self._stopping or self.leaving)
        self.cycle = cycle = Cycle(
            scope=scope,
            transport=self._exit,  # type: ignore[arg-type]
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version == "1.1" and kept,
            on_response=self.on_response_complete,
        )
        # From here on they are trailers: a head that was judged does not change.
        self.headers = []
        self._fed = 0
        self._phase = BODY
        if self._running is None or self._running.response_complete:
            self._running = cycle
            self._start_asgi_task(cycle, self.app)
        else:
            self.pipeline.appendleft((cycle, self.app))

    def _check_head(self, version: str) -> None:
        if version not in ("1.1", "1.0"):
            self._stop(malformed(f"HTTP/{version}"))
        if len(self.headers) > self.limits.headers:
            self._stop(TOO_MANY_HEADERS)
        # Any other coding would reach the application undone, and unannounced.
        if self._codings and (self._codings != (b"chunked",) or version == "1.0"):
            self._stop(malformed("the only transfer coding is chunked, once, of HTTP/1.1"))
        most = self.limits.header_bytes
        # What came with this piece is not in ``_fed`` where the head began in it.
        if self._fed + PIECE_BYTES > most and self._head_bytes() > most:
            self._stop(HEAD_TOO_LARGE)

    def _head_bytes(self) -> int:
        line = len(f"{self.scope['method']}  HTTP/1.1\r\n") + len(self.url)
        return line + sum(len(name) + len(value) + 4 for name, value in self.headers) + 2

    def _locate(self) -> None:
        try:
            url = httptools.parse_url(self.url)
        except httptools.HttpParserInvalidURLError:
            url = None
        if url is None or url.path is None:
            self._stop(malformed("the request's target has no path"))
        path = url.path.decode("ascii")
        self.scope["path"] = urllib.parse.unquote(path) if "%" in path else path
        self.scope["raw_path"] = url.path
        self.scope["query_string"] = url.query or b""

    def _stay_with_http1(self, rest: bytes | memoryview) -> None:
        """The same request once more without its Upgrade: the parser would not read its body.

        Java's own client asks for HTTP/2 in this way with the first request that it sends, and
        what uvicorn takes for the next request is that one's body.
        """
        scope = self.scope
        head = [f"{scope['method']} ".encode(), self.url, b" HTTP/1.1\r\n"]
        head += [b"%s: %s\r\n" % each for each in self.headers if each[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._parse(b"".join([*head, b"\r\n"]))
        if not self._deaf:
            self._parse(rest)

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        cycle = self.cycle
        self._taken += len(body)
        self._fed = 0
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        """A request is whole."""
        if self._phase is HEAD:
            # One that asked for an upgrade, and will be read again.
            return
        self._phase = BETWEEN
        cycle = self.cycle
        if cycle.response_complete:
            self._wait(self.timeout_keep_alive)
        else:
            self._patience = math.inf
            cycle.more_body = False
            cycle.message_event.set()
            # A large body's last piece stopped it, and whoever has all of a body asks no more: it
            # would not be seen that the client leaves.
            self.flow.resume_reading()

    # What goes.

    @property
    def _busy(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def on_response_complete(self) -> None:
        """An answer is whole: on to the next request."""
        self.server_state.total_requests += 1
        if self._phase is PARTING or self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._running = cycle  # type: ignore[assignment]
            self._start_asgi_task(cycle, app)
        if self._unparsed or self.flow.held:
            self._parse_on()
        if self._busy:
            return
        if self._last_words is not None:
            self._say(self._last_words)
            self._linger()
        elif self._eof:
            self.transport.close()
        elif self._phase is BETWEEN:
            self._wait(self.timeout_keep_alive)
        elif self._phase is BODY:
            # It was answered unread. What is still to come is let pass, for so long altogether.
            self._wait(self.limits.body_seconds)

    def _refuse(self, refusal: Refusal) -> None:
        """Say why, after the answers that are owed, and end the connection."""
        logger.debug("%s: refused: %s", self.client, refusal.message)
        self.refused(refusal.code)
        self._deaf = True
        self._unparsed = memoryview(b"")
        broken = self._phase is BODY
        self._phase, self._patience = BETWEEN, math.inf
        if broken and self.pipeline:
            # It was parsed last, so it waits last; nobody has heard of it.
            self.pipeline.popleft()
            self._last_words = refusal
        elif broken:
            self._break_off(refusal)
        elif self._busy:
            self._last_words = refusal
        else:
            self._say(refusal)
            self._linger()

    def _break_off(self, refusal: Refusal) -> None:
        """The rest of a request that is being served will not come."""
        cycle = self.cycle
        # Nothing more is written for it.
        cycle.waiting_for_100_continue = False
        cycle.leave()
        if not cycle.response_started:
            self._say(refusal)
        self._linger()

    def _say(self, refusal: Refusal) -> None:
        body = refusal_body(refusal)
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            *((name.encode(), value.encode()) for name, value in refusal.headers.items()),
        ]
        lines = [b"%s: %s\r\n" % header for header in headers]
        self.transport.write(b"".join([STATUS_LINE[refusal.status], *lines, b"\r\n", body]))

    def _leave(self) -> None:
        """Close after an answer that said so."""
        if self._phase is BODY or self.flow.held:
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        """Close when the client does: one that still sends would lose the answer to a reset."""
        transport = self.transport
        if transport.is_closing() or self._phase is PARTING:
            return
        crowded = len(self.connections) > self.limits.connections + LINGERING
        if self._eof or self._stopping or crowded or not transport.can_write_eof():
            transport.close()
            return
        self._phase = PARTING
        self._deaf = True
        self._unparsed = memoryview(b"")
        self._wait(self.limits.body_seconds)
        self.flow.release()
        transport.write_eof()

    # What does not come.

    def _wait(self, seconds: float) -> None:
        """It is the client's turn."""
        self._since = self.loop.time()
        self._patience = seconds

    def look(self, now: float) -> None:
        """What a client has failed to do by now."""
        closing = self.transport.is_closing()
        if closing or self.flow.write_paused:
            self._look_at_reader(now)
        if closing:
            return
        if now - self._since > self._patience:
            self._overdue(now)
        if self._eof:
            self._end_if_reset()
            self._probe()

    def _overdue(self, now: float) -> None:
        if self._phase is HEAD:
            self._refuse(HEAD_TOO_SLOW)
        elif self._phase is PARTING:
            self.transport.abort()
        elif self._phase is BETWEEN or self.cycle.response_complete:
            self.transport.close()
        elif self._is_waited_for:
            self._since = now
        else:
            self._refuse(BODY_TOO_SLOW)

    @property
    def _is_waited_for(self) -> bool:
        """Whether a body does not come because it is not asked for, or no longer matters."""
        cycle = self.cycle
        return self.flow.read_paused or cycle.waiting_for_100_continue or cycle.response_started

    def resume_writing(self) -> None:
        """The reader has taken most of what waited."""
        super().resume_writing()
        self._unread = 0

    def _look_at_reader(self, now: float) -> None:
        # It can only shrink: nothing is added to what is paused or closing.
        waiting = self.transport.get_write_buffer_size()
        if waiting < self._unread or not self._unread:
            self._unread, self._read_at = waiting, now
        elif now - self._read_at > self.limits.write_seconds:
            self.transport.abort()

    def _probe(self) -> None:
        """Send what a client that only shut its writing side passes over.

        One that has left answers it with a reset, which is how the two are told apart.
        """
        if self._running is not None and not self.transport.is_closing():
            # Behind a head that waits for its body, not before it.
            self._exit.write(self._running.nothing())

    def _end_if_reset(self) -> None:
        """Nothing is read any more, so nothing else tells us."""
        if self.transport.is_closing():
            return
        connection: socket.socket = self.transport.get_extra_info("socket")
        # The first byte is the state.
        state = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        if state == TCP_CLOSE:
            self.transport.abort()


def _ignored(_: str) -> None:
    pass


def protocol(limits: WireLimits, refused: Callable[[str], None] = _ignored) -> type[Wire]:
    """The class for ``uvicorn.Config(http=…)``, one for each server.

    ``refused`` is told the code of each refusal.
    """

    class Limited(Wire):
        pass

    Limited.limits = limits
    Limited.sweep = Sweep(limits.look_seconds)
    Limited.refused = staticmethod(refused)
    return Limited
