"""Which engine is served, whether requests may go to it, and the change to another variant.

    run ─► the engine of one setup ─► change asked: drain it, stop it ─► the engine of the other
                  ▲                                                            │ does not get ready
                  └────────────────────────────────────────────────────────────┘

The listening socket is nobody's business here: requests wait in ``Admission`` meanwhile. ``run`` is
the only one who starts and stops engines.
"""

import asyncio
import logging
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from serve.admission import Admission
from serve.boundary import UNBOUND, Boundary
from serve.command import Command
from serve.engine import Engine, Limits, Status
from serve.errors import Refusal
from serve.flight import GATEWAY_STOPS, Flights
from serve.launch import Execute, Launcher
from serve.upstream import Lost, Upstream

logger = logging.getLogger(__name__)

# How often a drain, or a start, looks whether it is done.
POLL_SECONDS = 0.01
METRICS_SECONDS = 5.0
CHANGED_AWAY = Refusal(
    503,
    "engine_changing",
    "the engine is being changed, and the request took longer than the drain time",
    headers={"retry-after": "2"},
)
ENDS = "the gateway ends"


@dataclass(frozen=True)
class Setup:
    """All that one variant needs to be served.

    ``told`` is what ``/variant`` says of it, ``at_once`` how many requests its engine is given;
    ``folder`` is removed when it is served no more.
    """

    name: str
    model: str
    command: Command
    told: dict[str, Any]
    boundary: Boundary = UNBOUND
    launcher: Launcher | None = None
    fallback: Command | None = None
    at_once: int | None = None
    folder: Path | None = None


# Makes the setup of a variant beside the one that is served; a ServeError when it cannot.
Prepare = Callable[[str], Awaitable[Setup]]


@dataclass(frozen=True)
class Changed:
    """The outcome of a change: what is served, after how long; else what went wrong."""

    variant: str
    seconds: float
    fault: str = ""


@dataclass(frozen=True)
class Change:
    """What was asked for, when, and who waits to hear of it."""

    setup: Setup
    began: float
    done: "asyncio.Future[Changed]"


class Serving:
    """The engine that is served now. Made in the loop that it runs in."""

    def __init__(
        self,
        first: Setup,
        limits: Limits,
        admission: Admission,
        flights: Flights,
        drain_seconds: float,
    ) -> None:
        self._limits = limits
        self._admission = admission
        self._flights = flights
        self._drain_seconds = drain_seconds
        self._asked: asyncio.Queue[Change] = asyncio.Queue()
        self._changing = False
        self._stopping = False
        self._running: asyncio.Task[None]
        self._was_ready = False
        self._put(first)

    def _put(self, setup: Setup) -> None:
        self._setup = setup
        if setup.at_once:
            self._admission.bounds = replace(self._admission.bounds, at_work=setup.at_once)
        self._engine = Engine(
            setup.command,
            setup.model,
            self._limits,
            launcher=setup.launcher or Execute(),
            fallback=setup.fallback,
            changed=self._engine_changed,
        )
        self._upstream = Upstream(str(setup.command.socket))

    @property
    def engine(self) -> Engine:
        """The engine, in whatever state."""
        return self._engine

    @property
    def status(self) -> Status:
        """Where the engine is."""
        return self._engine.status

    @property
    def ready(self) -> bool:
        """Whether a request that comes now is answered without waiting for a start."""
        return self._admission.open and not self._stopping

    @property
    def upstream(self) -> Upstream:
        """The way to the engine that is served."""
        return self._upstream

    @property
    def boundary(self) -> Boundary:
        """What its variant changes of bodies."""
        return self._setup.boundary

    @property
    def variant(self) -> str:
        """Its name."""
        return self._setup.name

    @property
    def told(self) -> dict[str, Any]:
        """What is on."""
        return self._setup.told

    def unready(self, *, patient: bool) -> Refusal | None:
        """Why a request need not wait. Once there was an engine, another comes, and it may; before
        the first, only one that is ``patient``: its client said how long it would wait.
        """
        if self._stopping:
            return GATEWAY_STOPS
        if self._was_ready or patient or self.ready:
            return None
        status = self.status
        where = f"{status.state}, phase {status.phase!r}" if status.phase else str(status.state)
        message = f"the engine is not ready ({where}){': ' if status.reason else ''}{status.reason}"
        return Refusal(503, "engine_not_ready", message, headers={"retry-after": "2"})

    def close(self) -> None:
        """Take no request any more; those that were taken go on."""
        self._stopping = True

    def stop(self) -> None:
        """The same, and stop the engine and have ``run`` return."""
        self.close()
        self._engine.stop()

    async def metrics(self) -> bytes:
        """The engine's own exposition, or nothing when it does not answer in time."""
        if not self._engine.ready:
            return b""
        try:
            status, said = await self._upstream.fetch("GET", b"/metrics", seconds=METRICS_SECONDS)
        except Lost:
            return b""
        return said if status == 200 else b""

    async def run(self) -> None:
        """Keep an engine ready until ``stop``.

        :raises EngineFailed: the first start failed, or it died too often in a row.
        """
        self._running = asyncio.create_task(self._engine.run())
        try:
            while not self._running.done():
                asked = asyncio.create_task(self._asked.get())
                await asyncio.wait({self._running, asked}, return_when=asyncio.FIRST_COMPLETED)
                if asked.done():
                    await self._carry_out(asked.result())
                asked.cancel()
        finally:
            self._upstream.close()
            while not self._asked.empty():
                await self._not_changed(self._asked.get_nowait())
            await _closed(self._setup)
        self._running.result()

    async def change(self, prepare: Prepare, variant: str) -> Changed | Refusal:
        """Serve another variant: prepared while this one serves, then put in its place.

        :raises ServeError: it cannot even be prepared; nothing was changed.
        """
        if self._changing or self._stopping:
            return Refusal(409, "change_under_way", "another change, or the end, is under way")
        self._changing = True
        try:
            began, done = time.monotonic(), asyncio.get_running_loop().create_future()
            setup = await prepare(variant)
            if self._stopping or self._running.done():
                await _closed(setup)
                return GATEWAY_STOPS
            self._asked.put_nowait(Change(setup, began, done))
            # Whoever asked may leave; what was begun is ended.
            return await asyncio.shield(done)
        finally:
            self._changing = False

    async def _carry_out(self, change: Change) -> None:
        before, after = self._setup, change.setup
        if not self._stopping:
            logger.info("changing from %s to %s", before.name, after.name)
            await self._drain()
        if self._stopping or self._running.done():
            # Who was accepted is served by the engine that is there.
            self._engine_changed()
            await self._not_changed(change)
            return
        fault = await self._replace(after)
        if fault:
            fault = await self._way_back(before, after, fault)
        await _closed(before if self._setup is after else after)
        self._tell(change, fault)

    async def _way_back(self, before: Setup, after: Setup, fault: str) -> str:
        """Serve again what was served; what there is to tell of it."""
        failed = f"{after.name} did not get ready"
        if self._ends:
            return f"{failed}: {fault}"
        logger.error("%s, back to %s: %s", failed, before.name, fault)
        if again := await self._replace(before):
            logger.error("%s did not get ready again: %s", before.name, again)
            return f"{failed}: {fault}; nor did {before.name} again: {again}"
        return f"{failed}, {before.name} is served: {fault}"

    @property
    def _ends(self) -> bool:
        """Whether nobody wants an engine any more: those who wait are served before the end."""
        return self._stopping and not self._admission.waiting

    async def _not_changed(self, change: Change) -> None:
        await _closed(change.setup)
        self._tell(change, f"nothing was changed: {ENDS}")

    def _tell(self, change: Change, fault: str) -> None:
        seconds = time.monotonic() - change.began
        change.done.set_result(Changed(self._setup.name, seconds, fault))

    async def _drain(self) -> None:
        """No more turns; those at work have the drain time, unless all is to end anyway."""
        self._admission.shut()
        until = time.monotonic() + self._drain_seconds
        while self._admission.at_work and not self._stopping:
            if time.monotonic() > until:
                self._flights.end(CHANGED_AWAY, at_work=True)
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _replace(self, setup: Setup) -> str:
        """Stop the engine and start that of ``setup``. Why it did not get ready, or nothing."""
        self._engine.stop()
        await asyncio.wait({self._running})
        self._upstream.close()
        if self._ends:
            return ENDS
        self._put(setup)
        self._running = asyncio.create_task(self._engine.run())
        while not (self._engine.ready or self._running.done()):
            await asyncio.sleep(POLL_SECONDS)
        error = self._running.exception() if self._running.done() else None
        return str(error or "it ended") if self._running.done() else ""

    def _engine_changed(self) -> None:
        if self._engine.ready:
            self._was_ready = True
            self._admission.unshut()
        else:
            self._admission.shut()


async def _closed(setup: Setup) -> None:
    """End what stands ready to start its engines, which waits for processes, and what it left."""
    if setup.launcher:
        await asyncio.to_thread(setup.launcher.close)
    if setup.folder:
        await asyncio.to_thread(shutil.rmtree, setup.folder, ignore_errors=True)
