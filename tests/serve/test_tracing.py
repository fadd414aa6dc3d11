"""Spans as a collector gets them, and the context that the engine sees."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.serve.live import process

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """A server that takes spans, and the spans."""
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            asked = ExportTraceServiceRequest.FromString(body)
            for resource in asked.resource_spans:
                for scope in resource.scope_spans:
                    spans.extend(scope.spans)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", spans
        finally:
            server.shutdown()
            thread.join()


def sent(seen: dict[str, Any], name: str) -> str:
    (value,) = [value for key, value in seen["headers"] if key.lower() == name]
    return str(value)


def test_a_span_stands_between_the_clients_and_the_engines(tmp_path: Path) -> None:
    with collector() as (url, spans), process(tmp_path, PREHEAT_OTLP_ENDPOINT=url) as started:
        started.until_ready()
        headers = {"traceparent": PARENT, "tracestate": "a=b", "x-request-id": "mine"}
        seen = httpx.post(f"{started.url}/v1/responses", headers=headers).json()
        started.popen.terminate()
        # What waits is sent before the end.
        assert started.ended() == 0
        (span,) = [span for span in spans if span.name == "POST /v1/responses"]
        version, trace, parent, flags = sent(seen, "traceparent").split("-")
        assert (version, trace, flags) == ("00", TRACE, "01")
        assert parent == span.span_id.hex() != SPAN
        assert sent(seen, "tracestate") == "a=b"
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, SPAN)
        told = {one.key: one.value for one in span.attributes}
        assert told["http.response.status_code"].int_value == 200
        assert told["preheat.request_id"].string_value == "mine"
        assert "preheat.queue_seconds" in told


def test_without_a_collector_a_context_goes_on_as_it_came(tmp_path: Path) -> None:
    with process(tmp_path) as started:
        started.until_ready()
        seen = httpx.post(f"{started.url}/v1/responses", headers={"traceparent": PARENT}).json()
        assert sent(seen, "traceparent") == PARENT
        plain = httpx.post(f"{started.url}/v1/responses").json()
        assert not [name for name, _ in plain["headers"] if name.lower() == "traceparent"]


def test_a_collector_that_is_not_there_costs_no_request(tmp_path: Path) -> None:
    with process(tmp_path, PREHEAT_OTLP_ENDPOINT="http://127.0.0.1:9") as started:
        started.until_ready()
        for _ in range(20):
            assert httpx.post(f"{started.url}/v1/responses").status_code == 200
        started.popen.terminate()
        assert started.ended() == 0


@pytest.mark.parametrize("endpoint", ["collector:4318", "ftp://x", "http://"])
def test_an_endpoint_that_is_no_url_is_refused(tmp_path: Path, endpoint: str) -> None:
    with process(tmp_path, PREHEAT_OTLP_ENDPOINT=endpoint) as started:
        assert started.ended() == 2
        assert f"PREHEAT_OTLP_ENDPOINT={endpoint}: expected http" in started.said
