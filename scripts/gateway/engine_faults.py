"""Scenarios of an engine that dies, hangs, lags, talks nonsense, or never comes to be."""

import asyncio
import os
import signal
import time
from pathlib import Path

from scripts.gateway import faulty
from scripts.gateway.asking import PATIENCE_SECONDS, Asking
from scripts.gateway.faulty_answers import FAULTS, LATE_SECONDS
from scripts.gateway.scenario import Scenario, Size
from scripts.gateway.stage import Stage, stage
from scripts.gateway.verdict import CUT, WHOLE, Counts, rule

LOST, LOST_EVENT = "502 engine_connection_lost", "event engine_connection_lost"
# What those hear who wait for an engine that will not come.
STOPPED = ("503 gateway_stopping", "503 engine_failed")
LONG = {"tokens": 10_000, "gap": 0.02}
# So many requests are at the engine at once; streams and whole answers share the places.
PLACES = 12
STREAMS = 8
FEW = {"PREHEAT_MAX_IN_FLIGHT": str(PLACES)}


async def crowd(made: Stage, waiting: int) -> list[Asking]:
    """Streams that have begun, whole answers under way, and requests that wait behind them."""
    streams = await made.several(STREAMS // 2, stream=True, **LONG)
    streams += await made.several(STREAMS // 2, path="/v1/messages", stream=True, **LONG)
    for asking in streams:
        await asking.begun()
    wholes = await made.several(PLACES - STREAMS, first=PATIENCE_SECONDS)
    queued = await made.several(waiting)
    await made.until_waiting(waiting)
    return [*streams, *wholes, *queued]


async def killed(folder: Path, size: Size) -> Counts:
    """SIGKILL."""
    async with stage(folder, settings=FEW) as made:
        askings = await crowd(made, size.of(200))
        os.kill(made.engine, signal.SIGKILL)
        return await replaced(made, askings, time.monotonic())


async def replaced(made: Stage, askings: list[Asking], since: float) -> Counts:
    """The counts once another engine answers."""
    counts = Counts()
    counts.again_seconds = await made.until_again(since)
    await made.counted(askings, counts)
    counts.held["the engine was started again, once"] = (
        await made.metric("preheat_engine_restarts") == 1
    )
    counts.exit_status = await made.stopped()
    return counts


async def hung(folder: Path, size: Size) -> Counts:
    """SIGSTOP to the engine and all below it: every connection stands, nothing comes."""
    settings = {"PREHEAT_HANG_SECONDS": "1", "PREHEAT_STOP_SECONDS": "2"}
    async with stage(folder, settings=FEW | settings) as made:
        askings = await crowd(made, size.of(200))
        engine, since = made.engine, time.monotonic()
        os.kill(engine, signal.SIGSTOP)

        async def seen() -> bool:
            return not await made.is_ready()

        await made.until(seen, "seen to hang")
        stands = Path(f"/proc/{engine}").exists()
        counts = await replaced(made, askings, since)
        counts.held["nobody is sent to it while it is being ended"] = stands
        return counts


async def core_dead(folder: Path, size: Size) -> Counts:
    """The front end lives on and says 503 to /health."""
    async with stage(folder, settings=FEW) as made:
        askings = await crowd(made, size.of(200))
        os.kill(made.engine, faulty.SICK)
        return await replaced(made, askings, time.monotonic())


async def slow(folder: Path, size: Size) -> Counts:
    """Answers that take longer than the watchdog's patience, and longer than clients wait."""
    async with stage(folder, settings={"PREHEAT_HANG_SECONDS": "2"}) as made:
        number = size.of(20)
        askings = [
            *await made.several(number, stream=True, tokens=8, gap=0.6),
            *await made.several(number, first=4.5),
            *await made.several(number, first=PATIENCE_SECONDS, timeout=0.5),
            *await made.several(number, stream=True, timeout=0.5, **LONG),
        ]
        counts = await made.counted(askings)
        counts.held["the engine that works is left alone"] = (
            await made.metric("preheat_engine_restarts") == 0
        )
        counts.exit_status = await made.stopped()
        return counts


EARLY = {
    "no answer": LOST,
    "reset": LOST,
    "half head": LOST,
    "no body": CUT,
    "half body": CUT,
    "half event": LOST_EVENT,
    "half chunk": LOST_EVENT,
    "no end": LOST_EVENT,
}
GARBAGE = {
    "noise": LOST,
    "odd status": LOST,
    "two lengths": LOST,
    "both framings": LOST,
    "switched": LOST,
    "noise in chunks": LOST_EVENT,
    "two answers": WHOLE,
}


async def closing(folder: Path, size: Size) -> Counts:
    """Connections closed at every point of an answer."""
    async with stage(folder) as made:
        counts = await _met(made, EARLY, size)
        counts.exit_status = await made.stopped()
        return counts


async def garbage(folder: Path, size: Size) -> Counts:
    """What is no HTTP, or two things at once."""
    async with stage(folder) as made:
        late = [await _late(made) for _ in range(size.of(20))]
        counts = await made.counted(late, await _met(made, GARBAGE, size))
        counts.exit_status = await made.stopped()
        return counts


async def _late(made: Stage) -> Asking:
    """A request whose second answer came when it was nobody's, and before anybody asks again."""
    (asking,) = await made.several(1, fault="late answer")
    await asking.task

    async def came() -> bool:
        return f"late {asking.ask.number}" in made.noted()

    await made.until(came, "the second answer")
    # Until the gateway has read it, too.
    await asyncio.sleep(2 * LATE_SECONDS)
    return asking


async def _met(made: Stage, expected: dict[str, str], size: Size) -> Counts:
    """Every fault several times, amid requests that meet none, and before others."""
    assert expected.keys() <= FAULTS.keys()  # noqa: S101 - there would be none
    counts, number = Counts(), size.of(20)
    askings = await made.several(5 * number, stream=True, gap=0.1)
    for fault, said in expected.items():
        met = await made.several(number, fault=fault, stream=said == LOST_EVENT)
        askings += met
        counts.held[f"{fault}: {said}"] = {await asking.task for asking in met} == {said}
    askings += await made.several(5 * number)
    await made.counted(askings, counts)
    counts.held["the engine that answers others is left alone"] = (
        await made.metric("preheat_engine_restarts") == 0
    )
    return counts


async def refusing(folder: Path, size: Size) -> Counts:
    """Every start fails, the first too."""
    crashes = folder / "crashes"
    crashes.write_text("1000")
    async with stage(folder, "--crashes", str(crashes), ready=False) as made:
        counts = Counts()
        await made.until_listening()
        askings = await made.several(size.of(20), timeout=PATIENCE_SECONDS)
        counts.exit_status = await made.ended()
        await made.counted(askings, counts)
        counts.held["the log says why"] = "No available memory for the cache blocks" in made.said
        return counts


async def refusing_again(folder: Path, size: Size) -> Counts:
    """Killed, and the next two starts fail."""
    crashes = folder / "crashes"
    crashes.write_text("0")
    async with stage(folder, "--crashes", str(crashes), settings=FEW) as made:
        askings = await crowd(made, size.of(50))
        crashes.write_text("2")
        os.kill(made.engine, signal.SIGKILL)
        counts = Counts()
        counts.again_seconds = await made.until_again(time.monotonic())
        await made.counted(askings, counts)
        counts.exit_status = await made.stopped()
        return counts


async def crash_loop(folder: Path, size: Size) -> Counts:
    """Killed, and no start succeeds any more."""
    crashes = folder / "crashes"
    crashes.write_text("0")
    settings = FEW | {"PREHEAT_MAX_RESTARTS": "2"}
    async with stage(folder, "--crashes", str(crashes), settings=settings) as made:
        askings = await crowd(made, size.of(50))
        crashes.write_text("1000")
        os.kill(made.engine, signal.SIGKILL)
        counts = Counts()
        counts.exit_status = await made.ended()
        await made.counted(askings, counts)
        counts.held["the log says why"] = "No available memory for the cache blocks" in made.said
        return counts


async def deaf(folder: Path, size: Size) -> Counts:
    """The process lives and never listens."""
    settings = {"PREHEAT_START_SECONDS": "2"}
    async with stage(folder, "--deaf", settings=settings, ready=False) as made:
        await made.until_listening()
        patient = await made.several(size.of(20), timeout=PATIENCE_SECONDS)
        askings = [*patient, *await made.several(size.of(20))]
        counts = Counts()
        counts.exit_status = await made.ended()
        await made.counted(askings, counts)
        counts.held["the log says why"] = "the engine was not ready in 2 s" in made.said
        return counts


SCENARIOS = (
    Scenario(
        "engine-killed",
        "SIGKILL to the engine amid streams, whole answers and a queue",
        "streams end with an error event, whole answers with 502, the queue is answered",
        rule(must=(WHOLE, LOST, LOST_EVENT)),
        killed,
    ),
    Scenario(
        "engine-hung",
        "SIGSTOP to the engine amid streams, whole answers and a queue",
        "the watchdog replaces it; otherwise as if it had been killed",
        rule(must=(WHOLE, LOST, LOST_EVENT)),
        hung,
    ),
    Scenario(
        "engine-core-dead",
        "the engine's core dies, its front end lives on and streams stand",
        "it is replaced; otherwise as if it had been killed",
        rule(must=(WHOLE, LOST, LOST_EVENT)),
        core_dead,
    ),
    Scenario(
        "engine-slow",
        "answers slower than the watchdog's limit, and slower than clients wait",
        "slow ones are answered whole, late ones 504 or by an error event; nothing is restarted",
        rule(must=(WHOLE, "504 deadline_exceeded", "event deadline_exceeded")),
        slow,
    ),
    Scenario(
        "engine-closes-early",
        "the engine closes the connection at every point of an answer",
        "502 before a head, an error event in a stream, a body that shows its cut; no other harmed",
        rule(must=(WHOLE, LOST, LOST_EVENT, CUT)),
        closing,
    ),
    Scenario(
        "engine-garbage",
        "the engine answers with noise, two lengths, another protocol, two answers",
        "502 or an error event; no client sees another's answer",
        rule(must=(WHOLE, LOST, LOST_EVENT)),
        garbage,
    ),
    Scenario(
        "engine-refuses-at-start",
        "the first start of the engine fails",
        "exit status 1 with the engine's reason; who waited is told",
        rule(*STOPPED, exit_status=1),
        refusing,
    ),
    Scenario(
        "engine-never-listens",
        "the engine's process lives and never listens",
        "exit status 1 with the reason once the time for a start is over; who waited is told",
        rule(*STOPPED, must=("503 engine_not_ready",), exit_status=1),
        deaf,
    ),
    Scenario(
        "engine-refuses-again",
        "SIGKILL to the engine, and two more starts fail",
        "as for one that was killed: the queue is answered by the one that starts",
        rule(must=(WHOLE, LOST, LOST_EVENT)),
        refusing_again,
    ),
    Scenario(
        "engine-crash-loop",
        "SIGKILL to the engine, and every further start fails",
        "exit status 1 with the reason; streams end with an error event, all others are told",
        rule(*STOPPED, must=(LOST, LOST_EVENT), exit_status=1),
        crash_loop,
    ),
)
