"""Visitors tell an answer that is whole from one that is not."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tests.deploy.visitors import NotWhole, ask, said

USAGE = {"choices": [], "usage": {"completion_tokens": 2}}


def events(*told: object, end: str = "data: [DONE]\n\n") -> bytes:
    return ("".join(f"data: {json.dumps(one)}\n\n" for one in told) + end).encode()


@contextmanager
def answering(raw: bytes) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def test_a_model_may_say_error():
    with answering(events({"choices": [{"text": "error"}]}, USAGE)) as url:
        ask(url, said("m", "x", stream=True, tokens=2))


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (events(USAGE, end=""), "a stream that ends with"),
        (events({"error": {"code": "gateway_stopping"}}, USAGE), "gateway_stopping"),
        (events({"choices": [], "usage": {"completion_tokens": 1}}), "a stream that counts"),
        (b"", "a stream that ends with"),
    ],
)
def test_what_lacks_something_is_not_whole(raw, why):
    with answering(raw) as url, pytest.raises(NotWhole, match=why):
        ask(url, said("m", "x", stream=True, tokens=2))


def test_an_answer_in_one_piece_counts_its_tokens():
    with answering(json.dumps({"usage": {"completion_tokens": 2}}).encode()) as url:
        ask(url, said("m", "x", stream=False, tokens=2))
        with pytest.raises(NotWhole, match="an answer that counts"):
            ask(url, said("m", "x", stream=False, tokens=3))
