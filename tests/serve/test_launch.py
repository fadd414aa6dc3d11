"""Engines that are forked off a zygote: what ``test_engine`` asks of those that are executed."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import pytest

from serve.command import Command
from serve.engine import Engine, Limits, State
from serve.errors import EngineFailed
from serve.keeper import descendants
from serve.launch import Execute, Zygote, open_launcher
from tests.serve.live import MODEL, PATIENT, alive, fake_command, family, until, until_ready

FAKE_ZYGOTE = Path(__file__).parents[1] / "fake_zygote.py"


def forking(folder: Path, *switches: str, zygote: tuple[str, ...] = ()) -> Command:
    argv = (sys.executable, str(FAKE_ZYGOTE), *zygote, str(folder / "zygote.sock"))
    return replace(fake_command(folder, *switches), zygote=argv)


@asynccontextmanager
async def forked_engine(
    command: Command, limits: Limits = PATIENT, fallback: Command | None = None
) -> AsyncIterator[tuple[Engine, "asyncio.Task[None]", Zygote]]:
    launcher = open_launcher(command, limits.stop)
    assert isinstance(launcher, Zygote)
    with closing(launcher):
        engine = Engine(command, MODEL, limits, launcher=launcher, fallback=fallback)
        running = asyncio.create_task(engine.run())
        try:
            yield engine, running, launcher
        finally:
            engine.stop()
            await asyncio.wait({running})


def test_only_a_command_that_names_a_zygote_gets_one(tmp_path: Path) -> None:
    assert isinstance(open_launcher(fake_command(tmp_path), 1), Execute)


async def test_a_forked_engine_starts_answers_and_leaves_no_process(tmp_path: Path) -> None:
    async with forked_engine(forking(tmp_path)) as (engine, running, zygote):
        await until_ready(engine)
        assert next(iter(engine.status.phases)) == "imports"
        assert [*engine.status.phases][-1] == "first token"
        everyone = descendants(zygote._process.pid)
        below = [engine._pid or 0, *family(engine._pid or 0)]
        assert set(below) < set(everyone)
        engine.stop()
        await running
        assert not any(map(alive, below))
        assert engine.status.state is State.STOPPED
    assert not any(map(alive, everyone))


@pytest.mark.usefixtures("no_back_off")
async def test_a_forked_engine_that_dies_is_forked_again_off_the_same_zygote(
    tmp_path: Path,
) -> None:
    async with forked_engine(forking(tmp_path)) as (engine, _, zygote):
        await until_ready(engine)
        first, server = engine._pid or 0, zygote._process.pid
        below = [first, *family(first)]
        os.kill(first, signal.SIGKILL)
        await until(lambda: engine.status.restarts == 1, "restarted")
        await until_ready(engine)
        assert not any(map(alive, below))
        assert engine._pid != first
        assert zygote._process.pid == server


@pytest.mark.usefixtures("no_back_off")
async def test_a_zygote_that_is_killed_takes_its_engine_along_and_is_started_again(
    tmp_path: Path,
) -> None:
    async with forked_engine(forking(tmp_path)) as (engine, _, zygote):
        await until_ready(engine)
        below = descendants(zygote._process.pid)
        # guard → keeper → zygote
        os.kill(descendants(below[0])[0], signal.SIGKILL)
        await until(lambda: engine.status.restarts == 1, "restarted")
        await until_ready(engine)
        assert not any(map(alive, below))


async def test_the_environment_of_a_fork_is_exactly_the_one_asked_for(tmp_path: Path) -> None:
    command = replace(forking(tmp_path), env={"PATH": "/usr/bin:/bin", "ONLY": "this"})
    async with forked_engine(command) as (engine, _, _):
        await until_ready(engine)
        worker = family(engine._pid or 0)[-1]
        said = Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
        assert {one for one in said if one and not one.startswith(b"PWD=")} == {
            b"PATH=/usr/bin:/bin",
            b"ONLY=this",
        }


async def test_an_engine_that_dies_at_start_tells_its_cause(tmp_path: Path) -> None:
    async with forked_engine(forking(tmp_path, "--crash-at-start")) as (_, running, _):
        with pytest.raises(EngineFailed, match=r"exit status 1(.|\n)*No available memory"):
            await running


async def test_a_start_that_fails_from_the_baked_cache_is_tried_once_without_it(
    tmp_path: Path,
) -> None:
    baked = forking(tmp_path, "--crash-at-start")
    async with forked_engine(baked, fallback=forking(tmp_path)) as (engine, _, _):
        await until_ready(engine)
        assert engine.status.restarts == 0


@pytest.mark.usefixtures("no_back_off")
async def test_a_restart_that_fails_from_the_baked_cache_goes_on_without_it(tmp_path: Path) -> None:
    times = tmp_path / "times"
    times.write_text("0")
    baked = forking(tmp_path, "--crash-times-file", str(times))
    async with forked_engine(baked, fallback=forking(tmp_path)) as (engine, _, _):
        await until_ready(engine)
        times.write_text("9")
        os.kill(engine._pid or 0, signal.SIGKILL)
        await until(lambda: engine.status.fell_back, "fallen back")
        await until_ready(engine)
        assert engine.status.restarts == 1


@pytest.mark.usefixtures("no_back_off")
async def test_a_zygote_whose_guard_is_killed_ends_its_engines_at_once(tmp_path: Path) -> None:
    async with forked_engine(forking(tmp_path)) as (engine, _, zygote):
        await until_ready(engine)
        below = descendants(zygote._process.pid)
        os.kill(zygote._process.pid, signal.SIGKILL)
        await until(lambda: engine.status.restarts == 1, "restarted")
        await until_ready(engine)
        assert not any(map(alive, below))


async def test_a_killed_guard_is_told_as_shells_tell_it(tmp_path: Path) -> None:
    async with forked_engine(forking(tmp_path)) as (engine, _, zygote):
        await until_ready(engine)
        keeper = descendants(zygote._process.pid)[0]
        server = descendants(keeper)[0]
        os.kill(descendants(server)[0], signal.SIGKILL)
        await until(lambda: bool(engine.status.reason), "died")
        assert engine.status.reason == "the engine ended with exit status 137"


async def test_an_engine_that_is_stopped_while_it_starts_gets_no_grace(tmp_path: Path) -> None:
    command = forking(tmp_path, "--ignore-sigterm", "--ready-after", "600")
    limits = Limits(start=60, stop=600, restarts=3)
    async with forked_engine(command, limits) as (engine, running, _):
        await until(lambda: engine.status.phase == "first token", "nearly there")
        below = family(engine._pid or 0)
        engine.stop()
        await running
        assert not any(map(alive, below))


async def test_a_zygote_that_cannot_import_fails_with_what_it_said(tmp_path: Path) -> None:
    async with forked_engine(forking(tmp_path, zygote=("--fail",))) as (engine, running, _):
        with pytest.raises(EngineFailed, match=r"exit status 3(.|\n)*no module named vllm"):
            await running
        assert engine.status.state is State.STOPPED


async def test_a_zygote_that_dies_while_it_is_waited_for_fails_with_what_it_said(
    tmp_path: Path,
) -> None:
    # Our connection is in its queue then, and is reset: that is no cause.
    command = forking(tmp_path, zygote=("--fail-while-waited-for",))
    async with forked_engine(command) as (engine, running, _):
        with pytest.raises(EngineFailed, match=r"exit status 4(.|\n)*MemoryError: while vllm"):
            await running
        assert engine.status.state is State.STOPPED


async def test_imports_that_take_too_long_end_the_start(tmp_path: Path) -> None:
    command = forking(tmp_path, zygote=("--slow", "600"))
    limits = Limits(start=0.5, stop=0.1, restarts=3)
    async with forked_engine(command, limits) as (_, running, _):
        with pytest.raises(EngineFailed, match=r"not imported in 0\.5 s"):
            await running


async def test_stop_while_the_zygote_imports_does_not_wait_for_it(tmp_path: Path) -> None:
    command = forking(tmp_path, zygote=("--slow", "600"))
    limits = Limits(start=60, stop=0.1, restarts=3)
    async with forked_engine(command, limits) as (engine, running, zygote):
        await asyncio.sleep(0.1)
        below = descendants(zygote._process.pid)
        engine.stop()
        await running
    assert not any(map(alive, below))


async def test_an_engine_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    limits = Limits(start=60, stop=0.2, restarts=3)
    async with forked_engine(forking(tmp_path, "--ignore-sigterm"), limits) as (engine, running, _):
        await until_ready(engine)
        below = family(engine._pid or 0)
        engine.stop()
        await running
        assert not any(map(alive, below))


async def test_whoever_connects_and_says_nothing_or_nonsense_harms_nobody(tmp_path: Path) -> None:
    command = forking(tmp_path)
    async with forked_engine(command) as (engine, _, _):
        await until_ready(engine)
        for said in (b"", b"nonsense\n", b"[]\n", b'{"argv": []}\n', b'{"argv": []'):
            reader, writer = await asyncio.open_unix_connection(command.zygote[-1])
            assert await reader.readline() == b"ready\n"
            writer.write(said)
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
        for _ in range(20):
            # Gone before it can be greeted.
            with socket.socket(socket.AF_UNIX) as early:
                early.connect(command.zygote[-1])
        reader, writer = await asyncio.open_unix_connection(command.zygote[-1])
        assert await reader.readline() == b"ready\n"
        writer.close()
        assert engine.ready
