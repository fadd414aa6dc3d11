"""A whole gateway over the fake engine, for tests: in this process, or as one of its own."""

import asyncio
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from aiohttp import ClientSession, UnixConnector

from serve import wire
from serve.admission import Admission, Bounds
from serve.app import Rooms, create_app
from serve.boundary import UNBOUND, Boundary
from serve.command import Command
from serve.engine import Engine, Limits, State
from serve.flight import Flights
from serve.gate import Gate
from serve.keeper import descendants
from serve.keys import Keys
from serve.limits import WireLimits
from serve.preflight import MIB, bind
from serve.proxy import Patience
from serve.run import Server, url
from serve.serving import Prepare, Serving, Setup
from serve.telemetry import Metrics

FAKE_ENGINE = Path(__file__).parents[1] / "fake_engine.py"
SERVED = Path(__file__).with_name("served.py")
PATIENT = Limits(start=60, stop=10, restarts=3)
# Until a test gives up: never waited for when all is well.
DEADLINE_SECONDS = 40
MODEL = "tiny"
ROOMY = Bounds(at_work=2000, waiting=100, held_bytes=64 * MIB)
WAITING = Patience(body_bytes=MIB, queue=DEADLINE_SECONDS)
UNLIMITED = WireLimits()


def fake_command(folder: Path, *switches: str) -> Command:
    """The fake engine in place of vLLM, on a socket in ``folder``."""
    socket = folder / "engine.sock"
    argv = (sys.executable, str(FAKE_ENGINE), *switches, "--uds", str(socket))
    return Command(argv, {"PATH": "/usr/bin:/bin"}, ())


@dataclass
class Gateway:
    """One gateway in this process; ``client`` talks to it, ``behind`` to the engine itself."""

    rooms: Rooms
    url: str
    client: ClientSession
    behind: ClientSession
    running: "asyncio.Task[None]"

    @property
    def engine(self) -> Engine:
        return self.rooms.serving.engine

    async def metrics(self) -> str:
        async with self.client.get("/metrics") as answer:
            return await answer.text()


@asynccontextmanager
async def running_engine(
    folder: Path, *switches: str, limits: Limits = PATIENT
) -> AsyncIterator[tuple[Engine, "asyncio.Task[None]"]]:
    """An engine that is being run, and is stopped at the end."""
    engine = Engine(fake_command(folder, *switches), MODEL, limits)
    running = asyncio.create_task(engine.run())
    try:
        yield engine, running
    finally:
        engine.stop()
        await asyncio.wait({running})


def behind(command: Command) -> ClientSession:
    """A client of the engine's own socket."""
    return ClientSession("http://engine", connector=UnixConnector(str(command.socket)))


def fake_setup(folder: Path, *switches: str, name: str = "fake", **more: Any) -> Setup:
    return Setup(name, MODEL, fake_command(folder, *switches), {"variant": name}, **more)


def rooms(
    setup: Setup,
    *,
    limits: Limits = PATIENT,
    bounds: Bounds = ROOMY,
    patience: Patience = WAITING,
    keys: Keys | None = None,
    drain_seconds: float = 5,
    prepare: Prepare | None = None,
) -> Rooms:
    """The parts of a gateway, for the loop that runs."""
    admission, flights = Admission(bounds), Flights()
    serving = Serving(setup, limits, admission, flights, drain_seconds)
    metrics = Metrics(admission)
    return Rooms(metrics, serving, admission, flights, Gate(keys or Keys(None)), patience, prepare)


@asynccontextmanager
async def gateway(
    folder: Path,
    *switches: str,
    boundary: Boundary = UNBOUND,
    wired: WireLimits = UNLIMITED,
    **more: Any,
) -> AsyncIterator[Gateway]:
    """A gateway that listens; its engine is only just starting. ``more`` as of ``rooms``."""
    setup = fake_setup(folder, *switches, boundary=boundary)
    made = rooms(setup, **more)
    config = uvicorn.Config(
        create_app(made),
        http=wire.protocol(wired),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
    server = Server(config)
    running = asyncio.create_task(made.serving.run())
    with bind("127.0.0.1", 0) as listener:
        where = url(listener)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            async with ClientSession(where) as client, behind(setup.command) as past:
                yield Gateway(made, where, client, past, running)
        finally:
            server.should_exit = server.force_exit = True
            await serving
            made.serving.stop()
            await asyncio.wait({running})


async def until(condition: Callable[[], bool], what: str) -> None:
    """Return as soon as ``condition`` holds; a failure when it never does."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        await asyncio.sleep(0.01)


async def until_ready(engine: Engine) -> None:
    await until(lambda: engine.status.state is State.READY, "ready")


def wait_for(condition: Callable[[], object], what: str) -> None:
    """``until`` for tests that are not asynchronous."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def family(pid: int) -> list[int]:
    """Everyone below ``pid`` once the fake engine's worker and its runaway child are there."""
    wait_for(lambda: _sleepers(pid) == 2, "worker and runaway child")
    return descendants(pid)


def _sleepers(root: int) -> int:
    return sum(_name(pid) == "sleep" for pid in descendants(root))


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def assert_gone(pids: list[int]) -> None:
    wait_for(lambda: not any(map(alive, pids)), f"all of {pids} gone")


class Process:
    """``preheat serve run`` over the fake engine, as a process of its own."""

    def __init__(self, log: Path, switches: tuple[str, ...], env: dict[str, str]) -> None:
        self.log = log
        with log.open("wb") as file:
            self.popen = subprocess.Popen(
                [sys.executable, str(SERVED), *switches],
                # A gateway that is killed leaves its socket's folder: here, not in /tmp.
                env={
                    "PATH": "/usr/bin:/bin",
                    "TMPDIR": str(log.parent),
                    "PREHEAT_CHECK_MEMORY": "false",
                    "PORT": "0",
                    **env,
                },
                stderr=file,
                stdout=file,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def url(self) -> str:
        self.until_said("gateway on ")
        found = re.search(r"gateway on (http://[^\s\"]+)", self.said)
        assert found, self.said
        return found[1]

    def until_said(self, words: str) -> None:
        wait_for(lambda: words in self.said or self.popen.poll() is not None, words)
        assert words in self.said, self.said

    def until_ready(self) -> None:
        self.until_said("engine ready after")

    def ended(self) -> int:
        return self.popen.wait(DEADLINE_SECONDS)


@contextmanager
def process(folder: Path, *switches: str, **env: str) -> Iterator[Process]:
    """A gateway process, killed at the end if the test did not end it."""
    started = Process(folder / "gateway.log", switches, env)
    try:
        yield started
    finally:
        if started.popen.poll() is None:
            below = descendants(started.popen.pid)
            started.popen.send_signal(signal.SIGKILL)
            started.popen.wait()
            assert_gone(below)
