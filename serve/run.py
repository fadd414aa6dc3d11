"""One gateway and one engine, from the first check to the last process gone."""

import asyncio
import contextlib
import logging
import select
import shutil
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

import uvicorn
import uvloop

from serve import wire
from serve.admission import Admission, Bounds
from serve.app import Rooms, create_app
from serve.baked import tell
from serve.boundary import boundary_of
from serve.command import INHERITED, served_names
from serve.engine import Limits
from serve.flight import ENGINE_FAILED, GATEWAY_STOPS, Flights
from serve.gate import Gate, parsed_keys
from serve.identity import instructions
from serve.keys import Keys
from serve.launch import Launcher
from serve.limits import WireLimits
from serve.logs import configure_logging
from serve.plan import Plan
from serve.preflight import (
    MIB,
    bind,
    check_compiler,
    check_kernels,
    check_keys,
    check_memory,
    check_socket,
    free_memory,
    needed_bytes,
    raise_open_files,
)
from serve.proxy import Patience
from serve.serving import Prepare, Serving, Setup
from serve.settings import Settings
from serve.signals import LEAVING, STOPPING
from serve.telemetry import Metrics
from serve.tracing import Tracer

logger = logging.getLogger(__name__)

# At the engine at once, where a variant does not say how many sequences it takes.
IN_FLIGHT = 512
# What clients have sent before a signal is read for so long: those who never pause are cut off.
HEAR_SECONDS = 1.0
HEAR_POLL_SECONDS = 0.001
# For answers that were cut at the end of the drain time to reach their clients.
CUT_SECONDS = 5
# Makes the plan and the launcher of a variant beside those that are served.
Replan = Callable[[str], tuple[Plan, Launcher, Path]]


class Server(uvicorn.Server):
    """uvicorn, less its signal handling: the engine is stopped after it, so we hold the signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Hear what was said before, then close: what lies unread would be reset unanswered."""
        loop = asyncio.get_running_loop()
        until = loop.time() + HEAR_SECONDS
        while not self.force_exit and self._is_spoken_to(sockets or []) and loop.time() < until:
            await asyncio.sleep(HEAR_POLL_SECONDS)
        await super().shutdown(sockets)

    def _is_spoken_to(self, listeners: list[socket.socket]) -> bool:
        """Whether anything is unread: a request on a kept connection, or a new connection."""
        poll = select.poll()
        for one in self.server_state.connections:
            transport = getattr(one, "transport", None)
            if transport is not None and not transport.is_closing():
                poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        for listener in listeners:
            poll.register(listener.fileno(), select.POLLIN)
        return bool(poll.poll(0))


def run(
    settings: Settings,
    plan: Plan,
    launcher: Launcher,
    environ: Mapping[str, str],
    replan: Replan | None = None,
) -> int:
    """Serve until a signal. Exit status 0 after SIGTERM, 130 after Ctrl-C.

    :raises ConfigError: keys are damaged, or wanted and not there; the map of a pruned vocabulary
        is damaged.
    :raises PreflightError: too little memory, or the port is taken.
    :raises EngineFailed: the engine cannot be started, or keeps dying.
    """
    with closing(configure_logging(settings.log_format)) as log:
        keys = Keys(settings.keys_file, parsed_keys(settings.keys))
        check_keys(settings.host, asked=keys.on, waived=settings.no_keys)
        check(plan, memory=settings.check_memory)
        setup = setup_of(plan, launcher, settings)
        raise_open_files()
        _tell(plan, environ)
        with bind(settings.host, settings.port) as listener:
            logger.info("gateway on %s", url(listener))
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                made = partial(rooms, settings, setup, keys, plan, replan, lambda: log.lost)
                return runner.run(serve(settings, made, listener))


def check(plan: Plan, *, memory: bool) -> None:
    """What can be known before half a minute of imports.

    :raises PreflightError: it cannot be started here and now.
    """
    if memory:
        check_memory(needed_bytes(plan.model, plan.target), *free_memory(plan.target, plan.gpu))
    if plan.target.device == "cpu":
        check_kernels(plan.model, plan.variant, instructions())
    if plan.target.device == "cpu" and not plan.cache.used:
        check_compiler(shutil.which("g++", path=plan.command.env.get("PATH")))
    check_socket(plan.command.socket)


def setup_of(
    plan: Plan, launcher: Launcher, settings: Settings, folder: Path | None = None
) -> Setup:
    """``plan``, ready to be served; ``folder`` is what goes with it.

    :raises ConfigError: the map of a pruned vocabulary is damaged.
    """
    names = served_names(plan.model, plan.variant)
    sequences = plan.variant.max_num_seqs
    return Setup(
        plan.variant.name,
        names[0],
        plan.command,
        plan.describe(),
        boundary_of(plan, aliases(settings.model_aliases, names[0])),
        launcher,
        plan.fallback,
        settings.max_in_flight or (2 * sequences if sequences else IN_FLIGHT),
        folder,
    )


def aliases(text: str | None, name: str) -> dict[str, str]:
    """What stands for the model's own name in requests."""
    words = (word.strip() for word in (text or "").split(","))
    return {word: name for word in words if word}


def rooms(  # noqa: PLR0913 - each a room's own
    settings: Settings,
    setup: Setup,
    keys: Keys,
    plan: Plan,
    replan: Replan | None,
    log_lost: Callable[[], int],
) -> Rooms:
    """The gateway's parts, in the loop that they live in."""
    # How many at once is its setup's to say.
    bounds = Bounds(0, settings.max_queued, settings.max_held_mib * MIB)
    admission, flights = Admission(bounds), Flights()
    limits = Limits(
        settings.start_seconds, settings.stop_seconds, settings.max_restarts, settings.hang_seconds
    )
    endpoint = settings.otlp_endpoint
    serving = Serving(setup, limits, admission, flights, settings.drain_seconds)
    return Rooms(
        Metrics(admission),
        serving,
        admission,
        flights,
        Gate(keys),
        Patience(
            settings.max_body_mib * MIB,
            settings.queue_seconds,
            settings.request_seconds,
            settings.log_prompts,
        ),
        preparing(replan, settings) if replan else None,
        Tracer(endpoint, lambda: serving.variant) if endpoint else None,
        log_lost,
    )


def preparing(replan: Replan, settings: Settings) -> Prepare:
    """``replan`` in a thread: it reads files, hashes caches and starts a process."""

    def prepared(variant: str) -> Setup:
        plan, launcher, folder = replan(variant)
        try:
            check(plan, memory=False)
            return setup_of(plan, launcher, settings, folder)
        except BaseException:
            launcher.close()
            shutil.rmtree(folder, ignore_errors=True)
            raise

    async def prepare(variant: str) -> Setup:
        return await asyncio.to_thread(prepared, variant)

    return prepare


async def serve(settings: Settings, make: Callable[[], Rooms], listener: socket.socket) -> int:
    """Listen until a signal; the exit status."""
    made = make()
    limits = WireLimits(connections=settings.max_connections, write_seconds=settings.stall_seconds)
    protocol = wire.protocol(limits, lambda code: made.metrics.refused.labels(code, "-").inc())
    server = Server(
        uvicorn.Config(
            create_app(made),
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            # No request's address is looked at, and no header is believed about it.
            proxy_headers=False,
            # Cut by us before, with a word to each client; this is for those who do not listen.
            timeout_graceful_shutdown=settings.drain_seconds + CUT_SECONDS,
        )
    )

    def leave() -> None:
        logger.info("leaving: not ready for others, and an answer that begins ends its connection")
        made.serving.leave()
        protocol.leaving = True
        for connection in server.server_state.connections:
            if isinstance(connection, wire.Wire):
                connection.leave()

    asyncio.get_running_loop().add_signal_handler(LEAVING, leave)
    try:
        return await _until_signal(made, server, listener, settings.drain_seconds)
    finally:
        if made.tracer:
            await asyncio.to_thread(made.tracer.close)


async def _until_signal(
    made: Rooms, server: Server, listener: socket.socket, drain_seconds: float
) -> int:
    received: list[int] = []
    loop = asyncio.get_running_loop()
    serving = made.serving

    def on_signal(number: int) -> None:
        if received:
            # The second one does not wait for requests in flight.
            made.flights.end(GATEWAY_STOPS)
            server.force_exit = True
        received.append(number)
        server.should_exit = True
        serving.close()
        loop.call_later(drain_seconds, made.flights.end, GATEWAY_STOPS)

    for number in STOPPING:
        loop.add_signal_handler(number, on_signal, number)
    # Our caller may have held them back until they can be taken.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*STOPPING, LEAVING))
    listening = asyncio.create_task(server.serve(sockets=[listener]))
    supervising = asyncio.create_task(serving.run())
    try:
        await asyncio.wait({listening, supervising}, return_when=asyncio.FIRST_COMPLETED)
        if supervising.done():
            # No engine will come: nobody need wait for one.
            serving.close()
            made.flights.end(GATEWAY_STOPS if received else ENGINE_FAILED)
        server.should_exit = True
        await listening
    finally:
        serving.stop()
        await asyncio.wait({supervising})
    supervising.result()
    logger.info("stopped")
    return 128 + signal.SIGINT if signal.SIGINT in received else 0


def url(listener: socket.socket) -> str:
    """Where the gateway can be reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


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
