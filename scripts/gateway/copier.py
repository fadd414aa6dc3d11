"""The least that a process between client and engine adds: it copies bytes and looks at none.

    python -m scripts.gateway.copier http://127.0.0.1:PORT

What the gateway adds above this is its work; this much is two more wake-ups and four more system
calls on the machine that measures.
"""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast
from urllib.parse import urlsplit

import uvloop

from scripts.gateway.costs import Processes
from scripts.gateway.systems import System
from serve.settings import REPOSITORY

NAME = "copy"


class Copied(asyncio.Protocol):
    """One side of a connection; ``other`` is given all that comes here."""

    other: "Copied"
    transport: asyncio.Transport | None = None

    def __init__(self) -> None:
        self._early = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hand on what came before there was somebody to take it."""
        self.transport = cast(asyncio.Transport, transport)
        self.take(b"")

    def data_received(self, data: bytes) -> None:
        """Copy."""
        self.other.take(data)

    def take(self, data: bytes) -> None:
        """Send, now or once connected."""
        self._early += data
        if self.transport and self._early:
            self.transport.write(self._early)
            self._early = b""

    def connection_lost(self, exc: Exception | None) -> None:
        """Both sides end together."""
        if self.other.transport:
            self.other.transport.close()


async def copy(host: str, port: int) -> None:
    """Listen on a free port, which is printed, and connect each client to ``host`` and ``port``."""
    loop = asyncio.get_running_loop()
    connecting: set[asyncio.Task[object]] = set()

    def connected() -> Copied:
        client, engine = Copied(), Copied()
        client.other, engine.other = engine, client
        task = asyncio.ensure_future(loop.create_connection(lambda: engine, host, port))
        connecting.add(task)
        task.add_done_callback(connecting.discard)
        return client

    server = await loop.create_server(connected, "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def copier(upstream: str) -> Iterator[System]:
    """One before the engine at ``upstream``; gone at the end.

    :raises OSError: it did not start.
    """
    words = [sys.executable, "-m", "scripts.gateway.copier", upstream]
    with subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout  # noqa: S101 - asked for above
            port = process.stdout.readline().strip()
            if not port:
                raise OSError(f"{NAME} did not start")
            yield System(NAME, f"http://127.0.0.1:{port}", Processes(process.pid))
        finally:
            process.terminate()


if __name__ == "__main__":
    to = urlsplit(sys.argv[1])
    uvloop.run(copy(to.hostname or "", to.port or 0))
