"""An engine that fails in every way one can: what ``scripts.gateway.faults`` puts behind a gateway.

    python -m scripts.gateway.faulty [--crashes FILE] [--deaf] [--seen FILE] --uds PATH

From outside it looks like vLLM's API server: log, socket, health, completions. An answer repeats
its prompt in each token, so that it tells whose it is. A request names its pace in its body
(``first`` and ``gap``, in seconds) and its fault in the header ``x-fault``: one of ``FAULTS``.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

from scripts.gateway.faulty_answers import (
    FAULTS,
    JSON,
    Channel,
    Closed,
    Request,
    completed,
    parsed,
)
from scripts.gateway.upstream import say

MODEL = "fake"
# The signal at which its core is dead.
SICK = signal.SIGUSR1
# Of a head; and of what waits to be read.
HEAD_BYTES = 1024 * 1024
GENERATE = ("/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses")


class Engine:
    """What all connections share."""

    def __init__(self, seen: Path | None) -> None:
        self.running = 0
        self.sick = False
        self._seen = os.open(seen, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600) if seen else None

    def note(self, line: str) -> None:
        """A line in the file of what was seen."""
        if self._seen is not None:
            os.write(self._seen, f"{line}\n".encode(errors="replace"))

    def sicken(self) -> None:
        """The core behind the front end dies."""
        self.sick = True

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer until either side leaves."""
        channel = Channel(reader, writer, self.note)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, Closed):
            while True:
                await self._answer(await channel.request(), channel)
        channel.close()

    async def _answer(self, request: Request, channel: Channel) -> None:
        if request.path == "/health":
            await channel.answer("503 Service Unavailable" if self.sick else "200 OK", b"")
        elif request.path == "/metrics":
            await channel.answer("200 OK", self._metrics(), "Content-Type: text/plain")
        elif request.path == "/v1/models":
            listed = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
            await channel.answer("200 OK", json.dumps(listed).encode(), JSON)
        elif request.path in GENERATE:
            await self._generate(request, channel)
        else:
            await channel.answer("200 OK", b"" if request.method == "HEAD" else b"{}", JSON)

    async def _generate(self, request: Request, channel: Channel) -> None:
        if self.sick:
            # As vLLM's front end does without its core: it waits for tokens that will not come.
            await channel.wait(None)
        self.running += 1
        try:
            asked = parsed(request.body)
            if asked is None:
                told = b'{"error":{"message":"no JSON","type":"BadRequestError","code":400}}'
                await channel.answer("400 Bad Request", told, JSON)
                return
            self.note(str(asked["prompt"]))
            fault = FAULTS.get(request.fault, completed)
            await fault(asked, channel)
        finally:
            self.running -= 1

    def _metrics(self) -> bytes:
        name = "vllm:num_requests_running"
        labels = f'{{engine="0",model_name="{MODEL}"}}'
        return f"# TYPE {name} gauge\n{name}{labels} {self.running}.0\n".encode()


def crashes_now(file: Path | None) -> bool:
    """Whether this start is one of those that fail: ``file`` says how many are still to."""
    if file is None or not (left := int(file.read_text())):
        return False
    file.write_text(str(left - 1))
    return True


async def serve(asked: argparse.Namespace) -> None:
    """Listen until SIGTERM; the socket is bound first and listens later, as vLLM's does."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(asked.uds)
    stopped = asyncio.Event()
    engine = Engine(asked.seen)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    loop.add_signal_handler(SICK, engine.sicken)
    say("[core.py:133] Initializing a V1 LLM engine (faulty) with config: model=fake")
    if not asked.deaf:
        await asyncio.start_unix_server(
            engine.connection, sock=listener, limit=HEAD_BYTES, backlog=4096
        )
        say("INFO:     Application startup complete.")
    await stopped.wait()
    # At once, as vLLM does.
    os._exit(0)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.gateway.faulty",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--uds", required=True, help="path of the Unix socket to listen on")
    top.add_argument("--crashes", type=Path, help="file with the number of starts that shall fail")
    top.add_argument("--deaf", action="store_true", help="start and never listen")
    top.add_argument("--seen", type=Path, help="file that each prompt is added to as it comes")
    return top


def main() -> int:
    """Until SIGTERM; 1 for a start that fails."""
    asked, _ = parser().parse_known_args()
    if crashes_now(asked.crashes):
        say("ERROR [core.py:1] EngineCore failed to start.")
        print("ValueError: No available memory for the cache blocks.", flush=True)
        return 1
    asyncio.run(serve(asked))
    return 0


if __name__ == "__main__":
    sys.exit(main())
