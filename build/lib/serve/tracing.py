"""Spans of requests, for a collector that speaks OTLP; W3C trace context to the engine.

A client's ``traceparent`` goes to the engine as it came. Where a collector is named
(``PREHEAT_OTLP_ENDPOINT``), the gateway's own span stands between: a child of the client's, and the
parent of the engine's. OpenTelemetry is imported only then.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.types import Scope

from serve import __version__
from serve.errors import ConfigError

if TYPE_CHECKING:
    from serve.telemetry import Seen

CONTEXT = (b"traceparent", b"tracestate")
NOT_TRACED: AbstractContextManager[None] = contextlib.nullcontext()
# Between a span's end and its being sent.
DELAY_MS = 1000
# Tried again within it; the end of the process waits for it once.
EXPORT_SECONDS = 2


class Tracer:
    """Makes spans and sends them to ``endpoint``, the base URL of an OTLP/HTTP collector.

    ``variant`` tells what is served when one ends.

    :raises ConfigError: it is no URL, or OpenTelemetry is not installed.
    """

    def __init__(self, endpoint: str, variant: Callable[[], str]) -> None:
        self.variant = variant
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ConfigError(f"PREHEAT_OTLP_ENDPOINT={endpoint}: expected http://HOST:4318")
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise ConfigError(
                f"PREHEAT_OTLP_ENDPOINT={endpoint}: {error.name} is not installed",
                "pip install 'preheat[otlp]'",
            ) from error
        named = {"service.name": "preheat", "service.version": __version__}
        self._provider = TracerProvider(resource=Resource(named))
        traces = f"{endpoint.rstrip('/')}/v1/traces"
        exporter = OTLPSpanExporter(traces, timeout=EXPORT_SECONDS)
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter, schedule_delay_millis=DELAY_MS)
        )
        self._tracer = self._provider.get_tracer("preheat")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, name: str, carried: dict[str, str]) -> Any:
        """A span below what ``carried`` names, and what the engine is to carry in its place."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        parent = self._propagator.extract(carried)
        span = self._tracer.start_span(name, context=parent, kind=SpanKind.SERVER)
        onward: dict[str, str] = {}
        self._propagator.inject(onward, set_span_in_context(span))
        return span, onward

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()


@contextmanager
def traced(tracer: Tracer, scope: Scope, seen: "Seen") -> Iterator[None]:
    """A span around one request, with what becomes known of it."""
    carried = {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in scope["headers"]
        if name in CONTEXT
    }
    span, onward = tracer.begin(f"{scope['method']} {seen.route.path}", carried)
    seen.sent.extend((name.encode(), value.encode()) for name, value in onward.items())
    try:
        yield
    finally:
        told = {
            "http.request.method": scope["method"],
            "http.route": seen.route.path,
            "http.response.status_code": seen.status,
            "preheat.variant": tracer.variant(),
            "preheat.request_id": seen.request_id,
            "preheat.key": seen.key,
            "preheat.queue_seconds": seen.queued,
            "preheat.first_byte_seconds": seen.first_byte,
            "preheat.refused": seen.refused,
        }
        span.set_attributes(
            {name: value for name, value in told.items() if value not in (None, "")}
        )
        span.end()
