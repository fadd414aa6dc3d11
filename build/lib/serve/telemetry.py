"""What can be seen from outside: request ids, counters, log lines, spans."""

import asyncio
import logging
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.admission import Admission
from serve.engine import State, Status
from serve.logs import REQUEST_ID
from serve.routes import UNKNOWN, Route
from serve.tracing import NOT_TRACED, Tracer, traced
from serve.upstream import Headers

# A client's own id is kept when it is harmless in a log line and a header.
SAFE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# Where a request's ``Seen`` lies in its scope.
SEEN = "preheat.seen"
access = logging.getLogger("access")

# Asked every few seconds by machines: counted, but not worth a line each.
POLLED = ("/health", "/ready", "/metrics")

# From a health check to a long generation.
SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)


@dataclass
class Seen:
    """What becomes known of one request on its way; times in seconds since it came."""

    route: Route
    request_id: str
    began: float
    # The key's id, never the key.
    key: str = "-"
    status: int = 0
    refused: str = ""
    queued: float | None = None
    first_byte: float | None = None
    answered_bytes: int = 0
    # Headers that the engine is told besides the client's.
    sent: Headers = field(default_factory=list)


class Metrics:
    """The gateway's own counters, in a registry of their own beside the engine's."""

    def __init__(self, admission: Admission | None = None) -> None:
        # A line for each that says when it was first counted, which nobody asks.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._admission = admission
        self._found: dict[tuple[object, ...], tuple[Counter, Histogram, Histogram, Histogram]] = {}
        self.requests = Counter(
            "preheat_requests",
            "Requests answered, by route, status and key.",
            ["route", "status", "key"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "preheat_request_seconds",
            "Time from a request's arrival to the last byte of its answer.",
            ["route", "status", "key"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.phases = Histogram(
            "preheat_request_phase_seconds",
            "Time from a request's arrival to its turn at the engine, and to the first byte of the "
            "answer's body.",
            ["route", "phase", "key"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.refused = Counter(
            "preheat_requests_refused",
            "Requests that the gateway refused or cut, by why.",
            ["code", "key"],
            registry=self.registry,
        )
        self.tokens = Counter(
            "preheat_tokens",
            "Tokens of answers to known keys, read by the engine and said by it.",
            ["key", "kind"],
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "preheat_requests_in_flight",
            "Requests that the engine is answering.",
            registry=self.registry,
        )
        self.waiting = Gauge(
            "preheat_requests_waiting",
            "Requests that wait for their turn.",
            registry=self.registry,
        )
        self.cancelled = Counter(
            "preheat_requests_cancelled",
            "Requests whose client left before the answer ended.",
            registry=self.registry,
        )
        self._log_lost = Gauge(
            "preheat_log_lines_lost",
            "Lines that nobody took in time.",
            registry=self.registry,
        )
        self._state = Gauge(
            "preheat_engine_state", "1 for the engine's state.", ["state"], registry=self.registry
        )
        self._restarts = Gauge(
            "preheat_engine_restarts",
            "How often the engine was started again after it died.",
            registry=self.registry,
        )
        self._phase = Gauge(
            "preheat_start_phase_seconds",
            "Time of each phase of the last start.",
            ["phase"],
            registry=self.registry,
        )
        self._graphs = Gauge(
            "preheat_compiled_graphs",
            "Graphs of the last start, by where they came from.",
            ["origin"],
            registry=self.registry,
        )

    async def expose(self, status: Status, log_lost: int = 0) -> bytes:
        """Prometheus text, with the engine's status and the queue as they are now."""
        if self._admission:
            self.in_flight.set(self._admission.at_work)
            self.waiting.set(self._admission.waiting)
        self._log_lost.set(log_lost)
        for state in State:
            self._state.labels(state).set(state is status.state)
        self._restarts.set(status.restarts)
        self._phase.clear()
        for phase, seconds in status.phases.items():
            self._phase.labels(phase).set(seconds)
        self._graphs.labels("loaded").set(len(status.loaded))
        self._graphs.labels("compiled").set(len(status.compiled))
        # Of a hundred keys it takes a quarter of a second, in which streams go on.
        return await asyncio.to_thread(generate_latest, self.registry)

    def count(self, seen: Seen, seconds: float) -> None:
        """One request, at its end."""
        # The pattern, not the path: a client must not be able to invent label values.
        route, status = seen.route.path, seen.status or "left"
        requests, whole, queue, first_byte = self._children(route, status, seen.key)
        requests.inc()
        whole.observe(seconds)
        if seen.queued is not None:
            queue.observe(seen.queued)
        if seen.first_byte is not None:
            first_byte.observe(seen.first_byte)
        if seen.refused:
            self.refused.labels(seen.refused, seen.key).inc()

    def _children(self, *labels: object) -> tuple[Counter, Histogram, Histogram, Histogram]:
        """What a request of these labels is counted in; to look that up anew takes longer than to
        count.
        """
        if (found := self._found.get(labels)) is None:
            route, status, key = labels
            found = self._found[labels] = (
                self.requests.labels(route, status, key),
                self.seconds.labels(route, status, key),
                self.phases.labels(route, "queue", key),
                self.phases.labels(route, "first byte", key),
            )
        return found


class Observed:
    """ASGI middleware: gives each request an id and a route, counts it, writes one line about it.

    ``find`` tells the route of a path; ``tracer`` makes spans where somebody collects them.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        find: Callable[[str], Route | None],
        tracer: Tracer | None = None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._find = find
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, observed."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        REQUEST_ID.set(request_id)
        seen = Seen(self._find(scope["path"]) or UNKNOWN, request_id, time.perf_counter())
        scope[SEEN] = seen
        seen.sent.append((b"x-request-id", request_id.encode()))

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.body":
                if body := message.get("body"):
                    if not seen.answered_bytes:
                        seen.first_byte = time.perf_counter() - seen.began
                    seen.answered_bytes += len(body)
            elif message["type"] == "http.response.start":
                seen.status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        tracing = traced(self._tracer, scope, seen) if self._tracer else NOT_TRACED
        try:
            with tracing:
                await self._app(scope, receive, observed)
        except Exception:
            # Whoever called us answers it.
            seen.status = seen.status or 500
            raise
        finally:
            seconds = time.perf_counter() - seen.began
            self._metrics.count(seen, seconds)
            _tell(scope, seen, seconds)


def _tell(scope: Scope, seen: Seen, seconds: float) -> None:
    """One line: no header, no body, and so no key and no prompt."""
    level = logging.DEBUG if seen.route.path in POLLED else logging.INFO
    if not access.isEnabledFor(level):
        return
    # As it came, still percent-encoded: a decoded line break would forge a line.
    path = scope["raw_path"].decode("latin-1")
    facts = {
        "method": scope["method"],
        "path": path,
        "route": seen.route.path,
        "status": seen.status,
        "key": seen.key,
        "seconds": round(seconds, 6),
        "queue_seconds": seen.queued,
        "first_byte_seconds": seen.first_byte,
        "bytes": seen.answered_bytes,
        "refused": seen.refused,
    }
    access.log(
        level,
        "%s %s %s %.3f s",
        scope["method"],
        path,
        seen.status or "left",
        seconds,
        extra={"facts": {k: v for k, v in facts.items() if v not in (None, "")}},
    )


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and SAFE_ID.fullmatch(given := value.decode("latin-1")):
            return str(given)
    # It need not be hard to guess, and this is a system call less.
    return f"{random.getrandbits(128):032x}"
