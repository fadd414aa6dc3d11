"""What can be seen from outside: log lines, request ids, counters."""

import json
import logging
import re
import sys
import time
import uuid
from contextvars import ContextVar
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.engine import State, Status

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
# A client's own id is kept when it is harmless in a log line and a header.
SAFE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
access = logging.getLogger("access")

# Asked every few seconds by machines: counted, but not worth a line each.
POLLED = ("/health", "/ready", "/metrics")

# From a health check to a long generation.
SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)


class Metrics:
    """The gateway's own counters, in a registry of their own beside the engine's."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "preheat_requests",
            "Requests answered, by route and status.",
            ["route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "preheat_request_seconds",
            "Time from a request's arrival to the last byte of its answer.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "preheat_requests_in_flight",
            "Requests that the engine is answering.",
            registry=self.registry,
        )
        self.cancelled = Counter(
            "preheat_requests_cancelled",
            "Requests whose client left before the answer ended.",
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

    def expose(self, status: Status) -> bytes:
        """Prometheus text, with the engine's status as it is now."""
        for state in State:
            self._state.labels(state).set(state is status.state)
        self._restarts.set(status.restarts)
        self._phase.clear()
        for phase, seconds in status.phases.items():
            self._phase.labels(phase).set(seconds)
        self._graphs.labels("loaded").set(len(status.loaded))
        self._graphs.labels("compiled").set(len(status.compiled))
        return generate_latest(self.registry)


class Observed:
    """ASGI middleware: gives each request an id, counts it and writes one line about it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, observed."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        REQUEST_ID.set(request_id)
        began, status = time.perf_counter(), 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        try:
            await self._app(scope, receive, observed)
        finally:
            # The pattern, not the path: a client must not be able to invent label values.
            route = getattr(scope.get("route"), "path", "unknown")
            seconds = time.perf_counter() - began
            self._metrics.requests.labels(route, status or "left").inc()
            self._metrics.seconds.labels(route).observe(seconds)
            level = logging.DEBUG if route in POLLED else logging.INFO
            # As it came, still percent-encoded: a decoded line break would forge a line.
            path = scope["raw_path"].decode("latin-1")
            access.log(level, "%s %s %s %.3f s", scope["method"], path, status or "left", seconds)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, request id when there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line: dict[str, object] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := REQUEST_ID.get():
            line["request_id"] = request_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """For people: the engine's own lines behind a bar, ours behind the time."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, or more when it carries an exception."""
        if record.name == "engine":
            return f"engine | {record.getMessage()}"
        line = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname.lower():7} "
        line += record.getMessage()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure_logging(form: Literal["text", "json"]) -> None:
    """Send every record to standard error in one form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # uvicorn announces itself in five lines that say less than our two.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and SAFE_ID.fullmatch(given := value.decode("latin-1")):
            return str(given)
    return uuid.uuid4().hex
