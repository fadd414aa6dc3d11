import asyncio
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve import engine as module
from serve import output
from serve.command import Command
from serve.engine import Engine, Limits, State
from serve.errors import EngineFailed
from serve.output import read_lines
from tests.serve.live import (
    MODEL,
    PATIENT,
    alive,
    fake_command,
    family,
    gateway,
    running_engine,
    until,
    until_ready,
)


async def failure(folder: Path, *switches: str, limits: Limits = PATIENT) -> str:
    async with running_engine(folder, *switches, limits=limits) as (_, running):
        with pytest.raises(EngineFailed) as failed:
            await running
    return str(failed.value)


async def test_a_start_goes_through_phases_to_ready_and_ends_stopped(tmp_path: Path) -> None:
    async with running_engine(tmp_path) as (engine, running):
        await until_ready(engine)
        status = engine.status
        assert [*status.phases][-1] == "first token"
        assert {"imports", "model init", "weights", "compile", "warm-up"} <= set(status.phases)
        assert status.loaded == ("/cache/aaaa/model",)
        assert status.compiled == ("/cache/bbbb/model",)
        assert (status.phase, status.reason, status.restarts) == ("", "", 0)
        engine.stop()
        await running
        assert engine.status.state is State.STOPPED


async def test_an_engine_that_dies_at_start_fails_at_once_with_its_cause(tmp_path: Path) -> None:
    said = await failure(tmp_path, "--crash-at-start")
    assert "died at start" in said
    assert "exit status 1" in said
    assert "engine | ValueError: No available memory for the cache blocks." in said
    assert "Engine core initialization failed" not in said


async def test_an_engine_that_cannot_be_executed_says_so(tmp_path: Path) -> None:
    command = Command(("/no/such/python", "--uds", str(tmp_path / "s")), {}, ())
    with pytest.raises(EngineFailed, match="cannot execute /no/such/python: No such file"):
        await Engine(command, MODEL, PATIENT).run()


async def test_no_process_for_the_keeper_is_a_failure_that_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/no/such/python")
    engine = Engine(fake_command(tmp_path), MODEL, PATIENT)
    with pytest.raises(EngineFailed, match="no process can be started: No such file"):
        await engine.run()
    assert engine.status.state is State.STOPPED


async def test_an_engine_that_is_never_ready_fails_naming_the_phase(tmp_path: Path) -> None:
    limits = Limits(start=1, stop=10, restarts=3)
    said = await failure(tmp_path, "--ready-after", "600", limits=limits)
    assert "not ready in 1 s" in said
    assert "it was in" in said


async def test_an_engine_that_accepts_and_never_answers_is_never_ready(tmp_path: Path) -> None:
    said = await failure(tmp_path, "--hang", limits=Limits(start=1, stop=10, restarts=3))
    assert "not ready in 1 s; it was in 'first token'" in said


@pytest.mark.usefixtures("no_back_off")
async def test_an_engine_that_dies_is_started_again_although_its_socket_is_left(
    tmp_path: Path,
) -> None:
    async with gateway(tmp_path) as running:
        await until_ready(running.engine)
        before = family(running.engine._pid or 0)
        async with running.client.post("/v1/responses", headers={"x-fake": "crash"}) as answer:
            assert answer.status == 502
        await until(lambda: running.engine.status.restarts == 1, "restarted")
        assert running.engine.status.reason == "the engine ended with exit status 9"
        await until_ready(running.engine)
        assert running.engine.status.reason == ""
        assert not any(map(alive, before))


@pytest.mark.usefixtures("no_back_off")
async def test_a_front_end_whose_core_has_died_is_ended_and_started_again(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running:
        await until_ready(running.engine)
        before = family(running.engine._pid or 0)
        async with running.client.post("/v1/responses", headers={"x-fake": "core-dies"}) as answer:
            assert answer.status == 500
        await until(lambda: running.engine.status.restarts == 1, "restarted")
        assert running.engine.status.reason == "the engine's core has died"
        await until_ready(running.engine)
        assert not any(map(alive, before))


@pytest.mark.usefixtures("no_back_off")
async def test_a_crash_loop_ends_and_tells_the_last_reason(tmp_path: Path) -> None:
    times = tmp_path / "times"
    times.write_text("0")
    limits = Limits(start=60, stop=10, restarts=2)
    switches = ("--crash-times-file", str(times))
    async with running_engine(tmp_path, *switches, limits=limits) as (engine, running):
        await until_ready(engine)
        times.write_text("9")
        os.killpg(engine._pid or 0, signal.SIGKILL)
        with pytest.raises(EngineFailed, match="3 times in a row; not restarted") as failed:
            await running
        # The first death was by signal 9; the reason is that of the last life.
        assert "exit status 1" in str(failed.value)
        assert "exit status 137" not in str(failed.value)
        assert engine.status.state is State.STOPPED


@pytest.mark.usefixtures("no_back_off")
async def test_deaths_are_counted_in_a_row_only_while_the_engine_is_not_stable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STABLE_SECONDS", 0.0)
    limits = Limits(start=60, stop=10, restarts=1)
    async with running_engine(tmp_path, "--crash-after", "0.01", limits=limits) as (engine, _):
        await until(lambda: engine.status.restarts == 2, "two restarts where one is allowed")


async def test_stop_during_back_off_does_not_wait_for_it(tmp_path: Path) -> None:
    async with running_engine(tmp_path, "--crash-after", "0") as (engine, running):
        await until(lambda: bool(engine.status.reason), "died")
        assert engine.status.state is State.STOPPED
        engine.stop()
        await running
        assert engine.status.restarts == 0


async def test_stop_before_the_start_and_while_spawning_ends_cleanly(tmp_path: Path) -> None:
    async with running_engine(tmp_path) as (engine, running):
        engine.stop()
        await running
        assert engine.status.state is State.STOPPED
    async with running_engine(tmp_path) as (engine, running):
        # One turn of the loop: the process is asked for and not yet there.
        await asyncio.sleep(0)
        engine.stop()
        await running
        assert engine.status.state is State.STOPPED


async def test_an_engine_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    limits = Limits(start=60, stop=0.2, restarts=3)
    async with running_engine(tmp_path, "--ignore-sigterm", limits=limits) as (engine, running):
        await until_ready(engine)
        below = family(engine._pid or 0)
        engine.stop()
        await running
        assert not any(map(alive, below))


async def test_stopping_leaves_no_process_not_even_one_in_a_session_of_its_own(
    tmp_path: Path,
) -> None:
    async with running_engine(tmp_path) as (engine, running):
        await until_ready(engine)
        pid = engine._pid or 0
        below = [pid, *family(pid)]
        engine.stop()
        await running
        assert not any(map(alive, below))


@pytest.mark.parametrize("steps_above_engine", [1, 2], ids=["keeper", "guard"])
@pytest.mark.usefixtures("no_back_off")
async def test_killing_keeper_or_guard_ends_the_engine_and_starts_another(
    tmp_path: Path, steps_above_engine: int
) -> None:
    async with running_engine(tmp_path) as (engine, _):
        await until_ready(engine)
        pid = engine._pid or 0
        below = [pid, *family(pid)]
        victim = pid
        for _ in range(steps_above_engine):
            victim = parent(victim)
        os.kill(victim, signal.SIGKILL)
        await until(lambda: engine.status.restarts == 1, "restarted")
        assert not any(map(alive, below))
        await until_ready(engine)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def test_garbage_on_the_engines_output_harms_nothing(tmp_path: Path) -> None:
    async with running_engine(tmp_path, "--garbage") as (engine, _):
        await until_ready(engine)
        assert max(map(len, engine._tail)) <= 2 * output.LINE_BYTES


CHUNKS = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.text(alphabet="ab \r\n\té", max_size=40).map(str.encode),
    ),
    max_size=12,
)


async def lines_of(chunks: list[bytes]) -> list[str]:
    stream = asyncio.StreamReader()
    reading = asyncio.create_task(collect(stream))
    for chunk in chunks:
        stream.feed_data(chunk)
        await asyncio.sleep(0)
    stream.feed_eof()
    return await reading


async def collect(stream: asyncio.StreamReader) -> list[str]:
    return [line async for line in read_lines(stream)]


@given(CHUNKS)
def test_any_bytes_in_any_chunks_become_their_lines(chunks: list[bytes]) -> None:
    expected = [
        line.decode(errors="replace")
        for line in re.split(rb"[\r\n]", b"".join(chunks))
        if line.strip()
    ]
    assert asyncio.run(lines_of(chunks)) == expected


@settings(max_examples=50)
@given(st.lists(st.text(alphabet="abc\n", max_size=40).map(str.encode), max_size=12))
def test_long_lines_come_in_bounded_pieces_and_nothing_is_lost(chunks: list[bytes]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output, "LINE_BYTES", 8)
        pieces = asyncio.run(lines_of(chunks))
    assert all(len(piece) <= 2 * 8 for piece in pieces)
    assert "".join(pieces).encode() == b"".join(chunks).replace(b"\n", b"")


@pytest.mark.usefixtures("no_back_off")
async def test_an_engine_that_hangs_is_ended_and_what_it_said_ends_with_an_error(
    tmp_path: Path,
) -> None:
    async with gateway(tmp_path, limits=replace(PATIENT, stop=0.2, hang=2)) as running:
        await until_ready(running.engine)
        pid = running.engine._pid or 0
        asked = {"prompt": "p", "stream": True, "token_seconds": 0.02, "max_tokens": 10**6}
        async with running.client.post("/v1/completions", json=asked) as answer:
            assert (await answer.content.readline()).startswith(b"data: ")
            os.kill(pid, signal.SIGSTOP)
            last = (await answer.content.read()).strip().rpartition(b"\n\n")[2]
        assert b"engine_connection_lost" in last
        why = "the engine hangs: no token in 2 s"
        await until(lambda: why in running.engine.status.reason, why)
        # Asked while there is none, and answered by the next.
        async with running.client.post("/v1/responses") as answer:
            assert answer.status == 200
        assert not alive(pid)


async def test_an_engine_that_is_busy_with_whole_answers_does_not_hang(tmp_path: Path) -> None:
    # A probe waits behind them, and nothing is sent to anybody until they are done.
    async with gateway(tmp_path, "--slots", "1", limits=replace(PATIENT, hang=1)) as running:
        await until_ready(running.engine)
        asked = {"prompt": "p", "token_seconds": 0.2, "max_tokens": 15}
        async with running.client.post("/v1/completions", json=asked) as answer:
            assert answer.status == 200
        assert running.engine.status.restarts == 0


@pytest.mark.usefixtures("no_back_off")
async def test_answers_of_the_front_end_do_not_hide_that_the_core_hangs(tmp_path: Path) -> None:
    async with gateway(tmp_path, limits=replace(PATIENT, stop=0.2, hang=1)) as running:
        await until_ready(running.engine)
        async with running.client.post("/v1/responses", headers={"x-fake": "core-hangs"}):
            pass
        refused = {"x-fake": "refused"}
        while not running.engine.status.restarts:
            async with running.client.post("/v1/completions", json={}, headers=refused):
                await asyncio.sleep(0.05)
        await until_ready(running.engine)
