"""One gateway and one engine, from the first check to the last process gone."""

import asyncio
import contextlib
import logging
import shutil
import signal
import socket
from collections.abc import Iterator, Mapping

import uvicorn
import uvloop
from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, UnixConnector

from serve.app import create_app
from serve.baked import tell
from serve.boundary import Boundary, boundary_of
from serve.command import INHERITED, served_names
from serve.engine import Engine, Limits
from serve.launch import Launcher
from serve.plan import Plan
from serve.preflight import (
    MIB,
    bind,
    check_compiler,
    check_memory,
    check_socket,
    free_memory,
    needed_bytes,
)
from serve.settings import Settings
from serve.signals import STOPPING
from serve.telemetry import configure_logging

logger = logging.getLogger(__name__)

# vLLM closes a connection that was idle for 5 s; a request must not go out on it just then.
IDLE_SECONDS = 2


class Server(uvicorn.Server):
    """uvicorn, less its signal handling: the engine is stopped after it, so we hold the signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


def run(settings: Settings, plan: Plan, launcher: Launcher, environ: Mapping[str, str]) -> int:
    """Serve until a signal. Exit status 0 after SIGTERM, 130 after Ctrl-C.

    :raises ConfigError: the map of a pruned vocabulary is damaged.
    :raises PreflightError: too little memory, or the port is taken.
    :raises EngineFailed: the engine cannot be started, or keeps dying.
    """
    configure_logging(settings.log_format)
    if settings.check_memory:
        check_memory(needed_bytes(plan.model, plan.target), *free_memory(plan.target, plan.gpu))
    if plan.target.device == "cpu" and not plan.cache.used:
        check_compiler(shutil.which("g++", path=plan.command.env.get("PATH")))
    check_socket(plan.command.socket)
    boundary = boundary_of(plan)
    _tell(plan, environ)
    with bind(settings.host, settings.port) as listener:
        logger.info("gateway on %s", url(listener))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(settings, plan, launcher, listener, boundary))


async def _serve(
    settings: Settings,
    plan: Plan,
    launcher: Launcher,
    listener: socket.socket,
    boundary: Boundary,
) -> int:
    async with engine_session(str(plan.command.socket)) as session:
        engine = Engine(
            plan.command,
            session,
            served_names(plan.model, plan.variant)[0],
            Limits(settings.start_seconds, settings.stop_seconds, settings.max_restarts),
            launcher=launcher,
            fallback=plan.fallback,
        )
        most = settings.max_body_mib * MIB
        app = create_app(engine, session, plan.describe(), most, boundary)
        server = Server(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=settings.drain_seconds,
            )
        )
        return await _until_signal(engine, server, listener)


async def _until_signal(engine: Engine, server: Server, listener: socket.socket) -> int:
    received: list[int] = []
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        # The second one does not wait for requests in flight.
        server.force_exit = bool(received)
        received.append(number)
        server.should_exit = True

    for number in STOPPING:
        loop.add_signal_handler(number, on_signal, number)
    # Our caller may have held them back until they can be taken.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    supervising = asyncio.create_task(engine.run())
    try:
        await asyncio.wait({serving, supervising}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
    finally:
        engine.stop()
        await asyncio.wait({supervising})
    supervising.result()
    logger.info("stopped")
    return 128 + signal.SIGINT if signal.SIGINT in received else 0


def url(listener: socket.socket) -> str:
    """Where the gateway can be reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def engine_session(path: str) -> ClientSession:
    """A client of the engine's socket that changes nothing of what passes through."""
    return ClientSession(
        "http://engine",
        connector=UnixConnector(path, limit=0, keepalive_timeout=IDLE_SECONDS),
        timeout=ClientTimeout(total=None),
        cookie_jar=DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("Accept-Encoding", "Accept", "User-Agent"),
        read_bufsize=2**18,
    )


def _tell(plan: Plan, environ: Mapping[str, str]) -> None:
    logger.info(
        "variant %s, model %s, target %s", plan.variant.name, plan.model.name, plan.target.name
    )
    logger.info("model %s: %s", plan.model.name, plan.why)
    for dropped in plan.command.dropped:
        logger.warning("%s", dropped)
    for level, line in tell(plan.cache):
        logger.log(level, "%s", line)
    hidden = sorted(name for name in environ if name.startswith("VLLM_") and name not in INHERITED)
    if hidden:
        logger.warning("not passed to the engine: %s", ", ".join(hidden))
