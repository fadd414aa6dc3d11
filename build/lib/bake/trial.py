"""One life of an engine on a given root: started as the server starts it, warmed, asked, stopped.

Both the bake and its verification are one. Knows nothing of what is kept of it.
"""

import asyncio
import errno
import os
import shutil
import signal
import tempfile
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from bake import answer, warm
from bake.answer import Answer
from bake.errors import BakeError
from bake.progress import Timer
from serve.command import Command, Place, build, engine_environment, served_names
from serve.engine import Engine, Limits, State, Status
from serve.errors import EngineFailed
from serve.launch import open_launcher
from serve.plan import Plan
from serve.preflight import check_socket
from serve.upstream import Upstream

POLL_SECONDS = 0.1
# An engine that answers with an error because it is dying is gone within this.
DEATH_SECONDS = 10.0
# Less than this left, and whatever failed failed for want of room.
FULL_BYTES = 1024**2
INTERRUPTIONS = (signal.SIGTERM, signal.SIGINT)
MESSAGES = {
    errno.ENOSPC: ("the disk is full", "make room, then bake again: what is there is removed"),
    errno.EROFS: ("the disk is read-only", "PREHEAT_BAKED_ROOT names a folder that can be written"),
    errno.EACCES: ("may not be written", "PREHEAT_BAKED_ROOT names a folder that can be written"),
}
T = TypeVar("T")


@dataclass(frozen=True)
class Trial:
    """What an engine is to live with: ``env`` comes over the server's own environment for it."""

    plan: Plan
    root: Path
    scratch: Path
    env: Mapping[str, str]
    limits: Limits

    @property
    def command(self) -> Command:
        """The server's command on this root. Its temporary files go to ``scratch``."""
        socket = self.scratch / "engine.sock"
        place = Place(Path(self.plan.command.argv[0]), self.root, socket)
        command = build(self.plan.variant, self.plan.model, self.plan.target, place)
        inherited = engine_environment(command, os.environ)
        return replace(command, env={**inherited, "TMPDIR": str(self.scratch), **self.env})


@dataclass(frozen=True)
class Life:
    """How an engine stood when it was warm, and what it then said to the fixed prompt."""

    status: Status
    answer: Answer


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty temporary folder: what lies in the usual one must not help, nor be missed later."""
    with tempfile.TemporaryDirectory(prefix="preheat-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def live(trial: Trial, timer: Timer, names: tuple[str, str, str]) -> Life:
    """Start, warm and stop an engine, a phase each; once it is warm, ask it the fixed prompt.

    :raises EngineFailed: it did not become ready, or died.
    :raises BakeError: it does not answer as it should.
    """
    check_socket(trial.command.socket)
    return asyncio.run(_interruptible(_live(trial, timer, names)))


async def _live(trial: Trial, timer: Timer, names: tuple[str, str, str]) -> Life:
    model = served_names(trial.plan.model, trial.plan.variant)[0]
    command = trial.command
    # As the server starts it: forked where it forks, since that too can change a key.
    with closing(open_launcher(command, trial.limits.stop)) as launcher:
        engine = Engine(command, model, trial.limits, launcher=launcher)
        return await _warmed(engine, trial.plan, timer, names)


async def _warmed(engine: Engine, plan: Plan, timer: Timer, names: tuple[str, str, str]) -> Life:
    model = served_names(plan.model, plan.variant)[0]
    upstream = Upstream(str(engine.command.socket))
    running = asyncio.create_task(engine.run())
    try:
        with timer.phase(names[0]):
            await _until_ready(engine, running, timer)
        with timer.phase(names[1]):
            said = await _beside(running, _warm(upstream, model, plan, timer))
        life = Life(engine.status, said)
        with timer.phase(names[2]):
            engine.stop()
            await running
    finally:
        upstream.close()
        engine.stop()
        await asyncio.wait({running})
    return life


async def _interruptible(work: Coroutine[None, None, T]) -> T:
    """``work``; at SIGTERM or Ctrl-C only that is cancelled, so that it can stop its engine.

    Raising out of the loop would cancel the supervisor too, and leave the engine to its keeper.
    """
    loop, task = asyncio.get_running_loop(), asyncio.create_task(work)
    received: list[int] = []

    def on_signal(number: int) -> None:
        received.append(number)
        task.cancel()

    before = {number: signal.getsignal(number) for number in INTERRUPTIONS}
    for number in INTERRUPTIONS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        await asyncio.wait({task})
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
    if received:
        raise SystemExit(128 + received[0])
    return task.result()


async def _until_ready(engine: Engine, running: "asyncio.Task[None]", timer: Timer) -> None:
    while engine.status.state is not State.READY:
        timer.progress.step(engine.status.phase)
        await asyncio.wait({running}, timeout=POLL_SECONDS)
        if running.done():
            running.result()
            raise EngineFailed("the engine stopped before it was ready")


async def _beside(running: "asyncio.Task[None]", work: Coroutine[None, None, T]) -> T:
    """``work``, given up as soon as the engine is gone; an engine's death explains its failure."""
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task, running}, return_when=asyncio.FIRST_COMPLETED)
        failed = task.done() and task.exception()
        if failed:
            await asyncio.wait({running}, timeout=DEATH_SECONDS)
        if running.done():
            dead = running.exception()
            tail = dead.tail if isinstance(dead, EngineFailed) else ()
            raise EngineFailed(f"the engine died while it was warmed: {failed or dead}", tail)
        return task.result()
    finally:
        task.cancel()
        await asyncio.wait({task})


async def _warm(upstream: Upstream, model: str, plan: Plan, timer: Timer) -> Answer:
    variant = plan.variant
    limits = await warm.limits_of(upstream, variant.max_num_batched_tokens, variant.max_num_seqs)
    await warm.run(upstream, model, warm.rounds(limits), timer.progress.step)
    timer.progress.step("the fixed prompt")
    return answer.parse(await warm.ask(upstream, answer.request(model), "the fixed prompt"))


@contextmanager
def disk(root: Path) -> Iterator[None]:
    """Within: what the disk refuses becomes a sentence, also when the engine was refused it.

    :raises BakeError: naming the folder.
    """
    try:
        yield
    except OSError as error:
        what, advice = MESSAGES.get(error.errno or 0, (error.strerror or str(error), ""))
        raise BakeError(f"{error.filename or root}: {what}", advice) from error
    except (EngineFailed, BakeError) as error:
        if _full(root):
            what, advice = MESSAGES[errno.ENOSPC]
            raise BakeError(f"{root}: {what}\n  {error.what}", advice) from error
        raise


def _full(root: Path) -> bool:
    there = next((folder for folder in (root, *root.parents) if folder.exists()), root)
    return shutil.disk_usage(there).free < FULL_BYTES
