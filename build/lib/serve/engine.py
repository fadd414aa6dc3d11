"""Supervises one engine: starts it, says where it is, restarts it, stops it without a trace.

    stopped ─► starting (phases) ─► ready ─► draining ─► stopped
                   ▲                  │
                   └── back-off ◄─────┘  it died

``Engine.run`` is the only writer of the state; everyone else reads ``status``. How a process
comes to be, and that it dies with the gateway however that happens, is ``serve.launch``'s.
"""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from serve import keeper, probe
from serve.command import Command
from serve.errors import EngineFailed
from serve.launch import KEEPER_SECONDS, Execute, Launcher, Life
from serve.output import TAIL_LINES, read_lines
from serve.startlog import StartLog, causes
from serve.upstream import Upstream

logger = logging.getLogger(__name__)
engine_output = logging.getLogger("engine")

FIRST_BACKOFF_SECONDS = 0.25
LONGEST_BACKOFF_SECONDS = 30.0
# Ready for this long, a death is a new trouble and not the same one again.
STABLE_SECONDS = 60.0
# Of one that has nothing to finish; vLLM's front end takes no SIGTERM before it is ready.
START_GRACE = 1.0


class State(StrEnum):
    """Where the engine is in its life."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True)
class Limits:
    """How long and how often; times in seconds. ``hang`` is the longest silence, 0 for ever."""

    start: float
    stop: float
    restarts: int
    hang: float = 0.0


@dataclass(frozen=True)
class Status:
    """A snapshot for readers. ``phase`` is empty unless starting; times are in seconds."""

    state: State
    phase: str = ""
    phases: dict[str, float] = field(default_factory=dict)
    loaded: tuple[str, ...] = ()
    compiled: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    restarts: int = 0
    reason: str = ""
    fell_back: bool = False
    weights: tuple[Mapping[str, Any], ...] = ()
    patches: tuple[str, ...] = ()


class Engine:
    """One supervised engine, answering on the socket of its command.

    ``model`` is the name under which the first token is asked for. ``fallback`` takes the
    place of ``command`` when a start by it fails, the first or a later one. ``changed`` is called
    after every change of state.
    """

    def __init__(  # noqa: PLR0913 - what it runs, and with whom
        self,
        command: Command,
        model: str,
        limits: Limits,
        *,
        launcher: Launcher | None = None,
        fallback: Command | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.command = command
        self._fallback = fallback
        self._fell_back = False
        self._launcher = launcher or Execute()
        self._upstream = Upstream(str(command.socket))
        self._model = model
        self._limits = limits
        self._changed = changed
        self._stop = asyncio.Event()
        self._now = State.STOPPED
        self._startlog = StartLog(time.monotonic())
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._restarts = 0
        self._reason = ""
        self._pid: int | None = None

    @property
    def status(self) -> Status:
        """Where the engine is now."""
        log = self._startlog
        return Status(
            state=self._state,
            phase=log.current if self._state is State.STARTING else "",
            phases=log.seconds(),
            loaded=tuple(log.loaded),
            compiled=tuple(log.compiled),
            refused=tuple(log.refused),
            weights=tuple(log.weights),
            patches=tuple(sorted(log.patches)),
            restarts=self._restarts,
            reason=self._reason,
            fell_back=self._fell_back,
        )

    @property
    def _state(self) -> State:
        return self._now

    @_state.setter
    def _state(self, state: State) -> None:
        self._now = state
        self._changed()

    @property
    def ready(self) -> bool:
        """Whether requests can be forwarded."""
        return self._state is State.READY

    def stop(self) -> None:
        """Ask ``run`` to stop the engine and return."""
        self._stop.set()

    async def run(self) -> None:
        """Keep an engine ready until ``stop`` is called.

        :raises EngineFailed: the first start failed, or it died too often in a row.
        """
        try:
            await self._keep_alive()
        finally:
            self._upstream.close()
            self._state = State.STOPPED

    async def _keep_alive(self) -> None:
        deaths = 0
        while not self._stop.is_set():
            began_ready = await self._live()
            if self._stop.is_set():
                break
            if began_ready is None and self._fall_back():
                continue
            if began_ready is None and self._restarts == 0:
                raise self._failed("the engine died at start")
            stable = began_ready and time.monotonic() - began_ready > STABLE_SECONDS
            deaths = 1 if stable else deaths + 1
            if deaths > self._limits.restarts:
                raise self._failed(f"the engine died {deaths} times in a row; not restarted")
            await self._back_off(deaths)
            self._restarts += not self._stop.is_set()

    def _fall_back(self) -> bool:
        """Whether there is another command to start by; from now on it is the command."""
        if self._fallback is None:
            return False
        for line in causes(list(self._tail)):
            logger.warning("engine | %s", line)
        logger.warning("the engine did not start from the baked cache; starting without it")
        self.command, self._fallback = self._fallback, None
        self._fell_back = True
        return True

    async def _live(self) -> float | None:
        """One life, start to end. When it became ready, or None if it never did."""
        self._state, self._startlog = State.STARTING, StartLog(time.monotonic())
        self._tail.clear()
        self._pid = None
        # vLLM binds without unlinking: after a crash the old socket would stop every restart.
        self.command.socket.unlink(missing_ok=True)
        if not await self._prepare():
            return None
        command = self.command
        process = await self._launcher.launch(command.argv, command.env, self._limits.stop)
        reading = asyncio.create_task(self._read(process))
        starting = asyncio.create_task(self._start())
        ended = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(self._stop.wait())
        ready_since, reason = None, ""
        try:
            await asyncio.wait({starting, ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done() and not ended.done():
                reason = starting.result()
                if not reason:
                    ready_since = time.monotonic()
                    self._state, self._reason = State.READY, ""
                    self._announce()
                    reason = await self._watch(ended, stopping)
        finally:
            starting.cancel()
            stopping.cancel()
            if ready_since or self._stop.is_set():
                # Nobody is to be sent to one that is about to be stopped, or is dead.
                self._state = State.DRAINING
            # One that hangs, or was never ready, has nothing to finish.
            finishes = ready_since and not reason
            grace = self._limits.stop if finishes else min(START_GRACE, self._limits.stop)
            code = await self._end(process, ended, grace)
            await self._finish(reading)
        if not self._stop.is_set():
            self._state = State.STOPPED
            self._reason = reason or f"the engine ended with exit status {code}"
            logger.error("%s", self._reason)
        return ready_since

    async def _watch(self, *others: "asyncio.Task[Any]") -> str:
        """Wait for the end, or for one of ``others``. Why it is no use any more, if it is not."""
        dead = asyncio.create_task(probe.until_dead(self._upstream))
        watching: set[asyncio.Task[Any]] = {dead, *others}
        hung = None
        if self._limits.hang:
            asks = probe.until_hung(self._upstream, self._model, self._limits.hang)
            hung = asyncio.create_task(asks)
            watching.add(hung)
        await asyncio.wait(watching, return_when=asyncio.FIRST_COMPLETED)
        reason = ""
        if dead.done():
            reason = "the engine's core has died"
        elif hung and hung.done():
            reason = f"the engine hangs: no token in {self._limits.hang:g} s"
        dead.cancel()
        if hung:
            hung.cancel()
        return reason

    async def _prepare(self) -> bool:
        """Wait until a launch costs no import. Whether one is still wanted then."""
        ready = asyncio.create_task(self._launcher.ready())
        stopping = asyncio.create_task(self._stop.wait())
        pending: set[asyncio.Task[Any]] = {ready, stopping}
        first = asyncio.FIRST_COMPLETED
        await asyncio.wait(pending, return_when=first, timeout=self._limits.start)
        stopping.cancel()
        if not ready.done():
            ready.cancel()
            await asyncio.wait({ready})
            if self._stop.is_set():
                return False
            raise EngineFailed(f"the engine was not imported in {self._limits.start:g} s")
        ready.result()
        if self._launcher.preloads:
            self._startlog.end("imports", time.monotonic())
        return not self._stop.is_set()

    async def _start(self) -> str:
        """Wait for the first token. The reason when there was none in time, or empty."""
        try:
            async with asyncio.timeout(self._limits.start):
                await probe.until_listening(self._upstream)
                await probe.first_token(self._upstream, self._model)
        except TimeoutError:
            phase = self._startlog.current
            return f"the engine was not ready in {self._limits.start:g} s; it was in {phase!r}"
        except probe.ProbeFailed as error:
            return f"the engine cannot generate: {error}"
        self._startlog.end("first token", time.monotonic())
        return ""

    async def _read(self, process: Life) -> None:
        interpreter = None
        async for line in read_lines(process.stdout):
            if line.startswith(keeper.PID_LINE) and self._pid is None:
                self._pid = int(line.removeprefix(keeper.PID_LINE))
                interpreter = asyncio.create_task(self._watch_interpreter(self._pid))
                continue
            self._tail.append(line)
            if self._state is State.STARTING:
                self._startlog.observe(line, time.monotonic())
            engine_output.info("%s", line)
        if interpreter:
            interpreter.cancel()

    async def _watch_interpreter(self, pid: int) -> None:
        """The interpreter is up when it begins to load torch: a process state, no log line."""
        maps = Path(f"/proc/{pid}/maps")
        with contextlib.suppress(OSError):
            while not self._startlog.intervals:
                if b"libtorch" in maps.read_bytes():
                    self._startlog.end("interpreter", time.monotonic())
                await asyncio.sleep(0.02)

    async def _end(self, process: Life, ended: "asyncio.Task[int]", grace: float) -> int:
        """Have the keeper stop the engine, killing it after ``grace``; wait until all is gone."""
        process.close()
        if grace < self._limits.stop:
            # The keeper, which knows the longer one, sees it end and reaps what it leaves.
            await asyncio.wait({ended}, timeout=grace)
            if not ended.done() and self._pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._pid, signal.SIGKILL)
        done, _ = await asyncio.wait({ended}, timeout=self._limits.stop + KEEPER_SECONDS)
        if not done:
            logger.error("the keeper does not end; killing it and the engine")
            process.kill()
            if self._pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._pid, signal.SIGKILL)
        return await ended

    async def _finish(self, reading: "asyncio.Task[None]") -> None:
        """Read to the end. All that lives holds the pipe, so its end says that all is gone."""
        done, _ = await asyncio.wait({reading}, timeout=self._limits.stop + KEEPER_SECONDS)
        if not done:
            logger.error("a process of the engine is left and holds its output")
            reading.cancel()
        else:
            reading.result()

    async def _back_off(self, deaths: int) -> None:
        seconds = min(FIRST_BACKOFF_SECONDS * 2 ** (deaths - 1), LONGEST_BACKOFF_SECONDS)
        logger.warning("starting the engine again in %g s (death %d)", seconds, deaths)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    def _announce(self) -> None:
        log = self._startlog
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in log.seconds().items())
        total = sum(log.seconds().values())
        logger.info("engine ready after %.1f s (%s)", total, parts)
        logger.info(
            "compile cache: %d loaded, %d compiled, %d refused",
            len(log.loaded),
            len(log.compiled),
            len(log.refused),
        )

    def _failed(self, what: str) -> EngineFailed:
        phase = self._startlog.current
        where = f" in phase {phase!r}" if "at start" in what else ""
        return EngineFailed(f"{what}{where}: {self._reason}", causes(list(self._tail)))
