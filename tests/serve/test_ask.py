"""The health check as the image runs it: an interpreter without site-packages, a real server."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import AF_INET6

import pytest

from tests.serve.live import process

ASK = Path(__file__).parents[2] / "serve" / "ask.py"


class Handler(BaseHTTPRequestHandler):
    """Answers with what was asked, or fails as the path says."""

    def answer(self) -> None:
        length = int(self.headers.get("content-length", 0))
        body = self.rfile.read(length).decode()
        kind = self.headers.get("content-type")
        said = json.dumps([self.command, self.path, kind, body]).encode()
        status = {"/503": 503, "/204": 204, "/307": 307}.get(self.path, 200)
        if self.path == "/garbage":
            self.wfile.write(b"\x00\xff garbage\r\n\r\n")
            return
        self.send_response(status)
        if status == 204:
            self.end_headers()
            return
        self.send_header("Content-Length", str(len(said) + (10 if self.path == "/short" else 0)))
        self.end_headers()
        if self.path == "/drip":
            for byte in said:
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(bytes([byte]))
                if self.server.stopped.wait(0.1):  # type: ignore[attr-defined]
                    return
        self.wfile.write(said)

    do_GET = do_POST = answer  # noqa: N815 - names of the base class

    def log_message(self, *_: object) -> None:
        pass


class Server6(ThreadingHTTPServer):
    address_family = AF_INET6


@contextmanager
def server(address: str = "127.0.0.1") -> Iterator[int]:
    kind = Server6 if ":" in address else ThreadingHTTPServer
    with kind((address, 0), Handler) as listening:
        listening.stopped = threading.Event()
        listening.daemon_threads = True
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        yield listening.server_address[1]
        listening.stopped.set()
        listening.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with server() as port:
        yield port


def ask(*arguments: str, **env: object) -> tuple[int, str, str]:
    """Exit status, output and errors of the script, as the image runs it."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(ASK), *arguments],
        env={name: str(value) for name, value in env.items()},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_a_path_alone_is_got_and_the_answer_printed(port):
    status, out, err = ask("/ready", PORT=port)
    assert (status, err) == (0, "")
    assert json.loads(out) == ["GET", "/ready", None, ""]


def test_a_body_is_posted_as_it_is(port):
    body = '{"prompt":  "é", "n": 1}'
    status, out, _ = ask("/v1/completions", body, PORT=port)
    assert status == 0
    assert json.loads(out) == ["POST", "/v1/completions", "application/json", body]


def test_any_success_is_one(port):
    assert ask("/204", PORT=port) == (0, "", "")


@pytest.mark.parametrize("code", ["503", "307"])
def test_any_other_answer_fails_with_its_body_and_one_line(port, code):
    status, out, err = ask(f"/{code}", PORT=port)
    assert status == 1
    assert json.loads(out)[1] == f"/{code}"
    assert err == f"ask: /{code} at 127.0.0.1 port {port}: status {code}\n"


@pytest.mark.parametrize("path", ["/garbage", "/short"])
def test_an_answer_that_is_none_fails_in_one_line(port, path):
    status, out, err = ask(path, PORT=port)
    assert (status, out) == (1, "")
    assert err.startswith(f"ask: {path} at 127.0.0.1 port {port}: no answer: ")
    assert err.count("\n") == 1


def test_nobody_there_fails_in_one_line():
    with server() as port:
        pass
    status, _, err = ask("/ready", PORT=port)
    assert status == 1
    assert "no answer: ConnectionRefusedError" in err


def test_an_answer_that_comes_byte_by_byte_is_given_up_in_time(port):
    status, out, err = ask("/drip", "--timeout", "0.3", PORT=port)
    assert (status, out) == (1, "")
    assert err.endswith("no answer: none within 0.3 s\n")


@pytest.mark.parametrize(
    ("listening", "host"),
    [
        ("127.0.0.1", "0.0.0.0"),
        ("127.0.0.1", ""),
        ("127.0.0.1", "localhost"),
        ("127.0.0.2", "127.0.0.2"),
        ("::1", "::"),
        ("::1", "::1"),
    ],
)
def test_the_gateway_is_asked_where_it_listens(listening, host):
    with server(listening) as port:
        status, out, err = ask("/ready", PORT=port, PREHEAT_HOST=host)
    assert status == 0, err
    assert out


def test_an_address_that_is_none_is_no_traceback():
    status, _, err = ask("/ready", PREHEAT_HOST="a" * 300 + ".é")
    assert status == 1
    assert "no answer" in err


@pytest.mark.parametrize(
    ("arguments", "env", "words"),
    [
        ([], {}, "got 0 words"),
        (["/a", "{}", "{}"], {}, "got 3 words"),
        (["ready"], {}, "'ready' is not a path"),
        (["/a b"], {}, "is not a path"),
        (["/é"], {}, "is not a path"),
        (["/a\r\nX: y"], {}, "is not a path"),
        (["/a", "{"], {}, "BODY is not JSON"),
        (["/a", ""], {}, "BODY is not JSON"),
        (["/a", "[" * 100_000], {}, "BODY is not JSON"),
        (["/a", "--timeout"], {}, "--timeout="),
        (["/a", "--timeout", "0"], {}, "--timeout="),
        (["/a", "--timeout", "nan"], {}, "--timeout="),
        (["/a", "--timeout", "soon"], {}, "--timeout='soon': above 0 and at most 3600 seconds"),
        (["/a", "--timeout", "4000"], {}, "--timeout='4000'"),
        (["/a"], {"PORT": "http"}, "PORT='http' is not a port"),
        (["/a"], {"PORT": "0"}, "PORT='0' is not a port"),
        (["/a"], {"PORT": "65536"}, "PORT='65536' is not a port"),
    ],
)
def test_wrong_usage_exits_2_and_says_what(arguments, env, words):
    status, out, err = ask(*arguments, **env)
    assert (status, out) == (2, "")
    assert words in err
    assert "usage: ask.py PATH" in err


def test_a_reader_that_has_had_enough_is_no_error(port):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(ASK), "/ready"],
            env={"PORT": str(port)},
            stdout=closed,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_it_imports_nothing_but_what_comes_with_python():
    script = f"import sys; exec(open({str(ASK)!r}).read(), {{}}); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True
    )
    roots = {name.partition(".")[0] for name in done.stdout.split()} - {"__main__"}
    assert roots <= sys.stdlib_module_names
    # What would make it dear.
    assert not roots & {"argparse", "asyncio", "subprocess", "logging", "typing", "inspect"}


def test_a_real_gateway_is_asked_before_and_after_it_is_ready(tmp_path):
    with process(tmp_path, "--ready-after", "1") as running:
        port = int(running.url.rpartition(":")[2])
        status, out, err = ask("/ready", PORT=port)
        assert (status, json.loads(out)["state"]) == (1, "starting")
        assert "status 503" in err
        running.until_ready()
        assert ask("/ready", PORT=port)[0] == 0
        body = '{"model": "tiny", "prompt": "x", "max_tokens": 2}'
        answer = json.loads(ask("/v1/completions", body, PORT=port)[1])
        assert answer["choices"][0]["text"] == "x-0 x-1 "
