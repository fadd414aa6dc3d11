"""The gateway's app with one part exchanged for a library's: a process for each.

    python -m scripts.gateway.other_parts NAME --uds SOCKET --port N

Only the way of a request is here: no engine is started, no key asked. The exchanged part does less
than ours (aiohttp: trailers; uvicorn's parsers: limits, and whether a client is still there).
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import uvicorn
import uvloop
from aiohttp import ClientResponse, ClientSession, ClientTimeout, DummyCookieJar, UnixConnector
from fastapi import FastAPI
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from yarl import URL

from serve import wire
from serve.admission import Admission, Bounds
from serve.app import Rooms, create_app
from serve.boundary import UNBOUND, Boundary
from serve.errors import Refusal
from serve.flight import Flights
from serve.gate import Gate
from serve.keys import Keys
from serve.limits import WireLimits
from serve.logs import configure_logging
from serve.proxy import Patience
from serve.routes import FORWARDED
from serve.run import Server
from serve.telemetry import Metrics
from serve.upstream import Headers, Upstream

OURS = "as it ships"
AIOHTTP, H11, HTTPTOOLS = "aiohttp as client", "h11 as parser", "uvicorn's httptools"
ASYNCIO, FASTAPI, NO_LOG = "asyncio's loop", "FastAPI's routes", "no access log"
NAMES = (OURS, AIOHTTP, H11, HTTPTOOLS, ASYNCIO, FASTAPI, NO_LOG)
ROOM = Bounds(at_work=10_000, waiting=10_000, held_bytes=1 << 30)


class Answer:
    """aiohttp's answer with the names of ours."""

    def __init__(self, answer: ClientResponse) -> None:
        self._answer = answer
        self.status = answer.status
        self.headers = [(name.lower(), value) for name, value in answer.raw_headers]
        self.ended = False
        self.more = False
        self.trailers: Headers = []

    async def read(self) -> bytes:
        """What has come; the end as soon as it is known."""
        chunk = await self._answer.content.readany()
        self.ended = self._answer.content.at_eof()
        return chunk

    def leave(self) -> None:
        """Kept where it was read to its end, else closed."""
        if not self.ended:
            self._answer.close()


class Aiohttp:
    """An upstream that is aiohttp's client."""

    def __init__(self, path: str) -> None:
        self._session = ClientSession(
            "http://engine",
            connector=UnixConnector(path, limit=0),
            timeout=ClientTimeout(total=None),
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("Accept-Encoding", "Accept", "User-Agent", "Content-Type"),
            read_bufsize=2**18,
        )

    async def ask(self, method: str, target: bytes, headers: Headers, body: bytes) -> Answer:
        """Send one request."""
        url = URL.build(scheme="http", host="engine", path=target.decode(), encoded=True)
        told = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
        return Answer(await self._session.request(method, url, data=body or None, headers=told))


class Engines:
    """An engine that is there."""

    ready = True
    boundary: Boundary = UNBOUND

    def __init__(self, upstream: Any) -> None:
        self.upstream = upstream

    def unready(self, *, patient: bool) -> Refusal | None:
        """Never."""
        return None


def routed(app: ASGIApp) -> ASGIApp:
    """``app`` behind FastAPI's router and middleware."""

    class Behind:
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await app(scope, receive, send)

    front = FastAPI(openapi_url=None)
    for route in FORWARDED:
        front.router.routes.append(Route(route.path, Behind(), methods=list(route.methods)))
    return front


async def serve(name: str, socket: str, port: int) -> None:
    """Until it is stopped."""
    admission = Admission(ROOM)
    admission.unshut()
    engines: Any = Engines(Aiohttp(socket) if name == AIOHTTP else Upstream(socket))
    made = Rooms(
        Metrics(admission),
        engines,
        admission,
        Flights(),
        Gate(Keys(None)),
        Patience(1 << 26, queue=30),
    )
    app = create_app(made)
    parsers: dict[str, Any] = {H11: "h11", HTTPTOOLS: "httptools"}
    await Server(
        uvicorn.Config(
            routed(app) if name == FASTAPI else app,
            port=port,
            http=parsers.get(name) or wire.protocol(WireLimits()),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
        )
    ).serve()


def main() -> int:
    """Serve one of ``NAMES``."""
    top = argparse.ArgumentParser(prog="python -m scripts.gateway.other_parts", description=__doc__)
    top.add_argument("name", choices=NAMES)
    top.add_argument("--uds", required=True)
    top.add_argument("--port", type=int, required=True)
    parsed = top.parse_args()
    if parsed.name != NO_LOG:
        configure_logging("text")
    run: Callable[[Coroutine[Any, Any, None]], None] = (
        asyncio.run if parsed.name == ASYNCIO else uvloop.run
    )
    run(serve(parsed.name, parsed.uds, parsed.port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
