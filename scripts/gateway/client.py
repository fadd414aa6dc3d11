"""One keep-alive connection of the load client: what came of a request, and when.

Knows HTTP and server-sent events, not who asks how often. Every time is that of the read that
brought the bytes: chunks that came in one read came at once.
"""

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

import httptools

# What a person would see appear: not the chunk that only names the role, nor the last, empty one.
SAID = re.compile(rb'"(?:content|text)"\s*:\s*"[^"]')
DONE = b"data: [DONE]"
ERROR = (b"event: error", b'data: {"error"', b'data: {"object":"error"')
EVENT_END = b"\n\n"


@dataclass(slots=True)
class Outcome:
    """What came of one request; times on ``time.perf_counter``, 0 while nothing came.

    ``due`` is when it was to be sent: waiting for its turn counts. ``failed`` is the kind of
    failure, empty when the answer was whole; until it is, an answer is late.
    """

    due: float
    sent: float = 0.0
    first_byte: float = 0.0
    said: list[float] = field(default_factory=list)
    ended: float = 0.0
    failed: str = "late"

    @property
    def gaps(self) -> list[float]:
        """Seconds from each chunk that said something to the next."""
        return [later - sooner for sooner, later in pairwise(self.said)]


class Client(asyncio.Protocol):
    """A connection that is asked one thing at a time; ``on_end`` is told when that is over."""

    def __init__(self, on_end: Callable[["Client", Outcome], None]) -> None:
        self._on_end = on_end
        self._parser = httptools.HttpResponseParser(self)
        self._outcome: Outcome | None = None
        self._now = 0.0
        self.usable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It stands."""
        # uvloop's own kind of transport is no subclass.
        self._transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes, outcome: Outcome, *, stream: bool) -> None:
        """Send a request; ``stream``: its answer is one of events."""
        self._outcome, self._stream = outcome, stream
        self._rest = b""
        self._error = ""
        self._done = False
        outcome.sent = time.perf_counter()
        self._transport.write(request)

    def give_up(self) -> None:
        """Wait no longer."""
        self._now = time.perf_counter()
        self._finish("late", usable=False)

    def close(self) -> None:
        """Hang up."""
        self.usable = False
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer."""
        self._now = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            # A fault of ours.
            raise
        except httptools.HttpParserError:
            self._finish("not HTTP", usable=False)

    def connection_lost(self, error: Exception | None) -> None:
        """The server hung up, or something on the way did."""
        self.usable = False
        self._now = time.perf_counter()
        if self._outcome:
            begun = "cut" if self._outcome.first_byte else "closed"
            self._finish("reset" if error else begun, usable=False)
        # Each holds the other.
        del self._parser

    def on_body(self, body: bytes) -> None:
        """A piece of an answer (httptools)."""
        outcome = self._outcome
        if outcome is None:
            return
        if not outcome.first_byte:
            outcome.first_byte = self._now
        self._rest += body
        if self._stream:
            *events, self._rest = self._rest.split(EVENT_END)
            for event in events:
                self._event(event, outcome)

    def _event(self, event: bytes, outcome: Outcome) -> None:
        if SAID.search(event):
            outcome.said.append(self._now)
        elif event == DONE:
            self._done = True
        elif event.startswith(ERROR):
            self._error = "error event"

    def on_message_complete(self) -> None:
        """An answer is whole as HTTP; whether it is as an answer is found here (httptools)."""
        if self._outcome is None:
            # Nobody asked.
            self.close()
            return
        status = self._parser.get_status_code()
        failed = self._error
        if status != 200:
            failed = f"status {status}"
        elif self._stream and not self._done:
            failed = failed or "cut"
        elif not self._stream and not SAID.search(self._rest):
            failed = "empty"
        self._finish(failed, usable=self._parser.should_keep_alive())

    def _finish(self, failed: str, *, usable: bool) -> None:
        outcome, self._outcome = self._outcome, None
        if not usable:
            self.close()
        if outcome:
            outcome.failed, outcome.ended = failed, self._now
            self._on_end(self, outcome)
