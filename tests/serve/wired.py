"""A server with the gateway's protocol and a small application, and clients that misbehave."""

import asyncio
import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send

from serve.cycle import MORE
from serve.limits import WireLimits
from serve.preflight import bind
from serve.run import Server
from serve.wire import Wire, protocol
from tests.serve.live import wait_for

# Short enough to wait for, long enough for a busy machine's honest clients.
SOON = {"look_seconds": 0.05}
GIVEN_UP_SECONDS = 60
MIB = 1024 * 1024


@dataclass
class App:
    """Does what the path says, and remembers what it was asked."""

    seen: list[str] = field(default_factory=list)
    # Requests whose client was gone before the answer.
    left: list[str] = field(default_factory=list)
    # Bytes of a large answer that the server has taken.
    taken: int = 0
    # Called at each request, in the server's thread.
    at_request: Callable[[], None] = lambda: None
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        self.seen.append(f"{scope['method']} {path}")
        self.at_request()
        await getattr(self, path.strip("/"), self.echo)(scope, receive, send)

    async def echo(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read(receive)
        if body is None:
            self.left.append(scope["path"])
            return
        headers = [[name.decode(), value.decode("latin-1")] for name, value in scope["headers"]]
        said = {"path": scope["path"], "headers": headers, "body": body.decode("latin-1")}
        await answer(send, 200, json.dumps(said).encode())

    async def unread(self, scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, 200, b"{}")

    async def early(self, scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, 413, b"{}", (b"connection", b"close"))

    async def later(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The body, but not before the test says so."""
        await self.go.wait()
        await self.echo(scope, receive, send)

    async def wait(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An answer when the test says so, or none when the client leaves."""
        await read(receive)
        if await self.stays(scope, receive):
            await answer(send, 200, b"{}")

    async def large(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1024):
            await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
            self.taken += 65536
        await send({"type": "http.response.body", "body": b""})

    async def whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, 200, bytes(16 * MIB))

    async def chunks(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for chunk in (b"one", b"two"):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"three"})

    async def stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A first chunk, and a last when the test says so; none when the client leaves."""
        await read(receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first ", "more_body": True})
        if await self.stays(scope, receive):
            await send({"type": "http.response.body", "body": b"last"})

    async def held(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A head that is kept for a body, which comes when the test says so."""
        start = {"type": "http.response.start", "status": 200, "headers": [], MORE: True}
        await send(start)
        if await self.stays(scope, receive):
            await send({"type": "http.response.body", "body": b"body"})

    async def stays(self, scope: Scope, receive: Receive) -> bool:
        """Whether the test goes on before the client leaves."""
        gone, go = (asyncio.ensure_future(each) for each in (receive(), self.go.wait()))
        await asyncio.wait({gone, go}, return_when=asyncio.FIRST_COMPLETED)
        if left := gone.done() and gone.result()["type"] == "http.disconnect":
            self.left.append(scope["path"])
        gone.cancel()
        go.cancel()
        return not left

    async def trailers(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert "http.response.trailers" in scope["extensions"]
        length = [(b"content-length", b"5")] if scope["query_string"] else []
        start = {"type": "http.response.start", "status": 200, "headers": length}
        await send({**start, "trailers": True})
        await send({"type": "http.response.body", "body": b"hello"})
        one, two = [(b"x-one", b"1")], [(b"x-two", b"2")]
        await send({"type": "http.response.trailers", "headers": one, "more_trailers": True})
        await send({"type": "http.response.trailers", "headers": two})

    async def fail(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError(scope["path"])


async def read(receive: Receive) -> bytes | None:
    """The body, or nothing if the client left before its end."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message["body"]
        if not message["more_body"]:
            return body


async def answer(send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    length = (b"content-length", b"%d" % len(body))
    said = [(b"content-type", b"application/json"), length, *headers]
    await send({"type": "http.response.start", "status": status, "headers": said})
    await send({"type": "http.response.body", "body": body})


@dataclass
class Served:
    """A server in a thread, on uvloop as the gateway's."""

    app: App
    server: Server
    loop: asyncio.AbstractEventLoop
    port: int
    refused: list[str]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), GIVEN_UP_SECONDS)

    def talk(self, *pieces: bytes, half_close: bool = False) -> bytes:
        """What is answered until the server closes."""
        with self.connect() as connection:
            for piece in pieces:
                connection.sendall(piece)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            return rest(connection)

    def go(self) -> None:
        self.loop.call_soon_threadsafe(self.app.go.set)

    @property
    def connections(self) -> list[Wire]:
        return list(self.server.server_state.connections)  # type: ignore[arg-type]


@contextmanager
def serving(*, keep_alive: float = 60, **limits: Any) -> Iterator[Served]:
    """The application behind the protocol with these limits."""
    app, refused = App(), list[str]()
    config = uvicorn.Config(
        app,
        http=protocol(WireLimits(**SOON | limits), refused.append),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=keep_alive,  # type: ignore[arg-type]
        timeout_graceful_shutdown=GIVEN_UP_SECONDS,
    )
    server, loop = Server(config), uvloop.new_event_loop()
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]

        def run() -> None:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(server.serve(sockets=[listener]))

        thread = threading.Thread(target=run)
        thread.start()
        wait_for(lambda: server.started, "started")
        try:
            yield Served(app, server, loop, port, refused)
        finally:
            server.should_exit = True
            # Whoever still waits for it is let go.
            loop.call_soon_threadsafe(app.go.set)
            thread.join(GIVEN_UP_SECONDS)
            assert not thread.is_alive(), "the server does not stop"


def rest(connection: socket.socket) -> bytes:
    """What comes until the server closes, or resets a connection that it has closed."""
    parts = []
    try:
        while part := connection.recv(MIB):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


@contextmanager
def relay(port: int) -> Iterator[int]:
    """Passes one connection on to ``port``, and ends of input as ends of input."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            near, _ = listener.accept()
            far = socket.create_connection(("127.0.0.1", port))
            with near, far:
                back = threading.Thread(target=pump, args=(far, near))
                back.start()
                pump(near, far)
                back.join(GIVEN_UP_SECONDS)

        thread = threading.Thread(target=run)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(GIVEN_UP_SECONDS)


def pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while part := source.recv(65536):
            sink.sendall(part)
        sink.shutdown(socket.SHUT_WR)


def reset(connection: socket.socket) -> None:
    """Leave as a process does that is killed with something unread."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@dataclass
class Answer:
    """One answer of those in a stream of bytes."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def said(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.said["error"]


def answers(data: bytes) -> list[Answer]:
    """All answers in ``data``, each of a length that it states."""
    found = []
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        assert end, f"cut short: {head!r}"
        line, *lines = head.decode().split("\r\n")
        headers = dict(each.lower().split(": ", 1) for each in lines)
        if line.startswith("HTTP/1.1 100 "):
            continue
        length = int(headers["content-length"])
        assert len(data) >= length, f"cut short: {head!r}"
        found.append(Answer(int(line.split()[1]), headers, data[:length]))
        data = data[length:]
    return found


def only(data: bytes) -> Answer:
    """The one answer in ``data``."""
    (found,) = answers(data)
    return found


def get(path: str = "/", *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def post(path: str, body: bytes, *headers: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(head).encode() + body


def chunked(path: str, *headers: str) -> bytes:
    """A head whose body is to come in chunks."""
    head = [f"POST {path} HTTP/1.1", "Host: x", "Transfer-Encoding: chunked", *headers, "", ""]
    return "\r\n".join(head).encode()
