"""Forwards one request to the engine and its answer back, byte for byte, chunk by chunk.

A raw ASGI application: bodies and unknown fields pass as they came, streams are not buffered,
and a client that leaves closes the upstream connection, which makes vLLM abort the request. Only
where a variant has a ``Boundary``, or a key a limit of tokens, are bodies read on their way.
"""

import asyncio
import logging
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from starlette.types import Receive, Scope, Send

from serve.admission import Admission
from serve.answer import EVENT_STREAM, Answer
from serve.boundary import Back, Boundary, aside
from serve.cycle import watch
from serve.errors import Refusal
from serve.flight import GONE, Flight, Flights
from serve.gate import Gate, spent
from serve.keys import NOBODY, Key
from serve.quota import Quota
from serve.telemetry import SEEN, Metrics, Seen
from serve.translate import Refused
from serve.translate_json import Unreadable
from serve.upstream import Connection, Headers, Lost, Unreachable, Upstream
from serve.usage import Meter, Withheld, asking

logger = logging.getLogger(__name__)
prompts = logging.getLogger("prompt")

# Meant for one connection only (RFC 9110, 7.6.1), plus what each side states for itself.
HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
# The gateway's keys are no business of the engine's; length and host belong to the connection.
NOT_SENT = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"authorization",
    b"x-api-key",
    b"x-request-id",
    b"expect",
}
NOT_RETURNED = HOP_BY_HOP | {b"server", b"date", b"x-request-id"}
TIMEOUT = b"x-request-timeout"
# An engine that was just killed is ready for as long as its supervisor takes to see it.
AGAIN_SECONDS = 0.05
# Of a body in a log that is asked to hold them.
LOGGED_BYTES = 2000
# Beyond a client's patience; larger numbers mean none.
LONGEST_SECONDS = 7 * 24 * 3600.0

DEADLINE = Refusal(504, "deadline_exceeded", "the request's time is over")


class Engines(Protocol):
    """What a proxy asks of whoever holds the engine."""

    @property
    def upstream(self) -> Upstream:
        """The way to the engine that answers now."""

    @property
    def boundary(self) -> Boundary:
        """What its variant changes of bodies."""

    def unready(self, *, patient: bool) -> Refusal | None:
        """Why it is no use to wait; ``patient`` for a client that said how long it would."""


@dataclass(frozen=True)
class Patience:
    """``body_bytes`` is the most of one request; times in seconds: for a turn, for all of it."""

    body_bytes: int
    queue: float
    request: float | None = None
    log_prompts: bool = False


class BodyTooLarge(Exception):
    """The client sends more than the gateway takes."""


class TooMuchHeld(Exception):
    """The bodies of all requests together are more than the gateway holds."""


class ClientGone(Exception):
    """The client closed its connection before it had sent everything."""


@dataclass(frozen=True)
class Proxy:
    """The ASGI application behind every forwarded route."""

    engines: Engines
    gate: Gate
    admission: Admission
    flights: Flights
    metrics: Metrics
    patience: Patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        seen: Seen = scope[SEEN]
        answer = Answer(send, named=seen.route.named_events)
        flight = self.flights.begin()
        try:
            refusal = await Visit(self, scope, receive, answer, flight).refusal()
        except asyncio.CancelledError:
            if (refusal := flight.caught()) is None:
                raise
        except ClientGone:
            refusal = GONE
        finally:
            self.flights.over(flight)
        if refusal is GONE:
            # A client that has everything may leave before its connection is free.
            self.metrics.cancelled.inc(not answer.ended)
        elif refusal is not None:
            seen.refused = refusal.code
            await answer.cut(refusal)


class Visit:
    """One request through the proxy, from its head to the last byte of its answer."""

    def __init__(
        self, proxy: Proxy, scope: Scope, receive: Receive, answer: Answer, flight: Flight
    ) -> None:
        self._proxy = proxy
        self._scope = scope
        self._receive = receive
        self._answer = answer
        self._flight = flight
        self._seen: Seen = scope[SEEN]
        self._route = self._seen.route.path
        self._key: Key = NOBODY
        self._meter: Meter | None = None
        self._withheld: Withheld | None = None
        self._held = 0
        self._asked = False

    async def refusal(self) -> Refusal | None:
        """Serve it. Why not, or not to its end, if so.

        :raises ClientGone: before its body was there.
        """
        key = self._proxy.gate.caller(self._scope["headers"])
        if isinstance(key, Refusal):
            return key
        self._key, self._seen.key = key, key.id
        if isinstance(denied := self._proxy.gate.admitted(key, self._seen.route), Refusal):
            return denied
        seconds = asked_seconds(self._scope["headers"])
        if isinstance(seconds, Refusal):
            return seconds
        quota = self._proxy.gate.quota(key)
        if quota and (why := quota.refusal(time.monotonic())):
            return spent(why)
        patient = seconds is not None
        if refusal := self._proxy.engines.unready(patient=patient) or self._no_room():
            return refusal
        timer = self._flight.ends_in(seconds or self._proxy.patience.request, DEADLINE)
        try:
            return await self._counted(quota) if quota else await self._with_body()
        finally:
            if timer:
                timer.cancel()

    def _no_room(self) -> Refusal | None:
        admission = self._proxy.admission
        if not admission.full:
            return None
        message = f"{admission.at_work} requests are at work and {admission.waiting} wait"
        headers = {"retry-after": str(admission.retry_after())}
        return Refusal(429, "queue_full", message, headers=headers)

    async def _counted(self, quota: Quota) -> Refusal | None:
        quota.begin(time.monotonic())
        try:
            return await self._with_body()
        finally:
            quota.end()
            if self._meter and self._worked_on:
                read, said = self._meter.tokens(ended=self._answer.ended)
                quota.use(read + said, time.monotonic())
                self._proxy.metrics.tokens.labels(self._key.id, "read").inc(read)
                self._proxy.metrics.tokens.labels(self._key.id, "said").inc(said)

    @property
    def _worked_on(self) -> bool:
        """Whether the engine did work for it: not when it refused, died, or was never asked."""
        return self._asked and self._answer.status in (0, 200)

    async def _with_body(self) -> Refusal | None:
        admission, most = self._proxy.admission, self._proxy.patience.body_bytes
        try:
            body = await self._read_body(most)
            if self._key is not NOBODY:
                body = await self._metered(body)
            return await self._watched(body)
        except Refused as refused:
            return Refusal(400, refused.code, str(refused), refused.field or None)
        except BodyTooLarge:
            message = f"the request body is larger than {most} bytes"
            # Closed, because the rest of the body is still to come and nobody will read it.
            return Refusal(413, "body_too_large", message, headers={"connection": "close"})
        except TooMuchHeld:
            message = f"bodies of {admission.bounds.held_bytes} bytes wait already"
            headers = {"connection": "close", "retry-after": str(admission.retry_after())}
            return Refusal(429, "bodies_full", message, headers=headers)
        finally:
            admission.held_bytes -= self._held

    async def _read_body(self, most: int) -> bytes:
        """The whole request body.

        :raises BodyTooLarge: it has, or is announced to have, more than ``most`` bytes.
        :raises TooMuchHeld: with all others' it is too much.
        :raises ClientGone: the client left before the end.
        """
        if announced(self._scope["headers"]) > most:
            raise BodyTooLarge
        parts: list[bytes] = []
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            parts.append(message.get("body", b""))
            size = len(parts[-1])
            if self._held + size > most:
                raise BodyTooLarge
            if not self._proxy.admission.hold(size, self._held):
                raise TooMuchHeld
            self._held += size
            if not message.get("more_body", False):
                break
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        if self._proxy.patience.log_prompts:
            # As a literal: what it holds must not end a line, or command a terminal.
            prompts.info("%r", body[:LOGGED_BYTES].decode(errors="replace"))
        return body

    async def _watched(self, body: bytes) -> Refusal | None:
        """Go on, and end as soon as the client leaves."""
        watch(self._receive, partial(self._flight.end, GONE))
        try:
            return await self._in_turn(body)
        finally:
            watch(self._receive, None)

    async def _metered(self, body: bytes) -> bytes:
        self._meter = Meter(len(body))
        if not self._key.counts_tokens:
            return body
        told = await aside(partial(asking, self._route), body)
        self._withheld = None if told is body else Withheld()
        return told

    async def _in_turn(self, body: bytes) -> Refusal | None:
        """Wait for a turn and use it; again, where there was no engine to use it on."""
        admission, came = self._proxy.admission, asyncio.get_running_loop().time()
        until = came + self._proxy.patience.queue
        while True:
            if admission.free:
                admission.take()
            elif admission.full:
                return self._no_room()
            else:
                await self._wait(until)
            self._seen.queued = asyncio.get_running_loop().time() - came
            self._flight.at_work = True
            try:
                return await self._forward(body)
            except Unreachable as error:
                if asyncio.get_running_loop().time() > until:
                    return lost(error)
            finally:
                self._flight.at_work = False
                admission.leave(time.monotonic())
            await asyncio.sleep(AGAIN_SECONDS)

    async def _wait(self, until: float) -> None:
        left = until - asyncio.get_running_loop().time()
        timer = self._flight.ends_in(left, self._waited_too_long())
        try:
            await self._proxy.admission.wait(self._key.id)
        finally:
            if timer:
                timer.cancel()

    def _waited_too_long(self) -> Refusal:
        message = f"no turn in {self._proxy.patience.queue:g} s"
        return Refusal(503, "queue_timeout", message, headers={"retry-after": "2"})

    async def _forward(self, body: bytes) -> Refusal | None:
        engines, scope = self._proxy.engines, self._scope
        # Only now: while it waited, the engine may have been changed for another variant's.
        body = await aside(partial(engines.boundary.request, self._route), body)
        back = engines.boundary.back(self._route)
        headers = request_headers(scope["headers"], self._seen.sent)
        if back or self._withheld:
            # What is compressed could not be read.
            headers = [(name, value) for name, value in headers if name != b"accept-encoding"]
        target = scope["raw_path"]
        if query := scope["query_string"]:
            target += b"?" + query
        upstream = None
        self._asked = True
        try:
            upstream = await engines.upstream.ask(scope["method"], target, headers, body)
            await self._pass_on(upstream, back if upstream.status == 200 else None)
        except Unreachable:
            self._asked = False
            raise
        except Lost as error:
            self._asked = self._answer.started
            return lost(error)
        except Unreadable as error:
            message = f"the engine's answer cannot be translated: {error}"
            return Refusal(502, "engine_answer_unreadable", message)
        finally:
            # Not sooner: a slow client may have its answer yet to take, and the next to ask would
            # be given what is read from it then.
            if upstream:
                upstream.leave()
        return None

    async def _pass_on(self, upstream: Connection, back: Back | None) -> None:
        if back or (self._withheld and upstream.status == 200):
            await self._changed(upstream, back)
            return
        answer, meter = self._answer, self._meter
        headers = response_headers(upstream.headers)
        said = [pair for pair in upstream.headers if pair[0] == b"trailer"]
        trailers, more = bool(said), upstream.more
        await answer.start(upstream.status, headers + said, more=more, trailers=trailers)
        while True:
            chunk = await upstream.read()
            if meter:
                meter.feed(chunk)
            if upstream.ended:
                # Before it is somebody else's connection.
                behind = upstream.trailers
                await answer.end(chunk)
                if trailers:
                    await answer.trail(behind)
                return
            await answer.write(chunk, more=upstream.more)

    async def _changed(self, upstream: Connection, back: Back | None) -> None:
        """A stream event by event, any other answer as a whole.

        :raises Unreadable: it is no JSON.
        """
        headers = response_headers(upstream.headers)
        headers = [(name, value) for name, value in headers if name != b"content-length"]
        kind = dict(headers).get(b"content-type", b"")
        if kind.startswith(EVENT_STREAM):
            await self._answer.start(upstream.status, headers)
            await self._changed_stream(upstream, back)
            return
        body = await whole(upstream)
        if self._meter:
            self._meter.feed(body)
        if back:
            body = await aside(back.whole, body)
        await self._answer.start(
            upstream.status, [*headers, (b"content-length", b"%d" % len(body))]
        )
        await self._answer.end(body)

    async def _changed_stream(self, upstream: Connection, back: Back | None) -> None:
        events = back.events() if back else None
        while not upstream.ended:
            chunk = await upstream.read()
            if self._meter:
                self._meter.feed(chunk)
            if self._withheld:
                chunk = self._withheld.feed(chunk)
            if events:
                chunk = await aside(events.feed, chunk, events.held_bytes)
            if chunk:
                await self._answer.write(chunk)
        left = self._withheld.end() if self._withheld else b""
        await self._answer.end(events.feed(left) + events.end() if events else left)


def lost(error: Lost) -> Refusal:
    """The engine is gone, or is not what it should be."""
    message = f"the engine ended the connection: {error}"
    logger.warning("%s", message)
    return Refusal(502, "engine_connection_lost", message)


def asked_seconds(headers: Iterable[tuple[bytes, bytes]]) -> float | None | Refusal:
    """What ``X-Request-Timeout`` says, in seconds."""
    for name, value in headers:
        if name == TIMEOUT:
            try:
                seconds = float(value)
            except ValueError:
                seconds = math.nan
            if not seconds > 0:
                message = f"X-Request-Timeout: expected seconds above 0, got {value[:40]!r}"
                return Refusal(400, "invalid_timeout", message)
            return min(seconds, LONGEST_SECONDS)
    return None


async def whole(upstream: Connection) -> bytes:
    """All of a body."""
    parts = [await upstream.read()]
    while not upstream.ended:
        parts.append(await upstream.read())
    return b"".join(parts)


def request_headers(headers: Iterable[tuple[bytes, bytes]], ours: Headers) -> Headers:
    """What the engine is told: the client's headers less those that end at the gateway, and
    ``ours``, which take the place of what the client calls the same.
    """
    headers = list(headers)
    # Whatever Connection names is meant for this connection only, too.
    named = {
        token.strip().lower()
        for name, value in headers
        if name == b"connection"
        for token in value.split(b",")
    }
    named.update(name for name, _ in ours)
    kept = [pair for pair in headers if pair[0] not in NOT_SENT and pair[0] not in named]
    return [*kept, *ours]


def response_headers(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """What the client is told: the engine's headers less those of the connection."""
    return [pair for pair in headers if pair[0] not in NOT_RETURNED]


def announced(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """The length that a body says it has; 0 where it says none."""
    # The server has checked that it is a number.
    return next((int(value) for name, value in headers if name == b"content-length"), 0)
