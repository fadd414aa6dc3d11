"""Scenarios of the gateway's own ground: its log, its clock, and its end."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.gateway.asking import bearer
from scripts.gateway.engine_faults import FEW, LONG, crowd
from scripts.gateway.faulty_answers import BABBLE_LINES
from scripts.gateway.line import Line
from scripts.gateway.scenario import Scenario, Size
from scripts.gateway.stage import Stage, key_file, stage
from scripts.gateway.verdict import NO_ANSWER, WHOLE, Counts, rule, word
from serve.keeper import descendants
from serve.settings import REPOSITORY

JUMPING = Path(__file__).with_name("jumping")
LINES_LOST = "preheat_log_lines_lost"
AFTER_SIGNAL = "closed unanswered, sent after the signal"
STOPPING, STOPPING_EVENT = "503 gateway_stopping", "event gateway_stopping"


# Its log.


async def log_full(folder: Path, size: Size) -> Counts:
    """Standard error is a device that is always full."""
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        return await _logging(folder, size, full, least=BABBLE_LINES)
    finally:
        os.close(full)


async def log_unread(folder: Path, size: Size) -> Counts:
    """Standard error is a pipe that nobody reads."""
    with pipe() as writing:
        # Some fit into the pipe, and some wait for a reader.
        return await _logging(folder, size, writing, least=1)


@contextmanager
def pipe() -> Iterator[int]:
    """The end of a pipe that is written to; the other is held and not read."""
    reading, writing = os.pipe()
    try:
        yield writing
    finally:
        os.close(reading)
        os.close(writing)


async def _logging(folder: Path, size: Size, log: int, *, least: int) -> Counts:
    """An engine that says more than waits for a reader; ``least`` of its lines are lost."""
    async with stage(folder, log=log) as made:
        askings = await made.several(1, fault="babble")
        askings += await made.several(size.of(200), stream=True)
        counts = await made.counted(askings)

        async def told() -> bool:
            counts.notes["log lines lost"] = int(await made.metric(LINES_LOST))
            return bool(counts.notes["log lines lost"] >= least)

        counts.held["the lines that are lost are counted"] = await made.within(told)
        counts.exit_status = await made.stopped()
    return counts


# Its clock.


FREE = "a-key-without-limits-of-its-own"


async def clock(folder: Path, size: Size) -> Counts:
    """The wall clock jumps by two days eleven times a second."""
    few = key_file(folder / "few.json", requests_per_minute=5)
    settings = {
        "PYTHONPATH": os.pathsep.join(map(str, (JUMPING, REPOSITORY))),
        "PREHEAT_KEYS_FILE": str(folder / "few.json"),
        "PREHEAT_KEYS": FREE,
        "PREHEAT_HANG_SECONDS": "2",
        "PREHEAT_STOP_SECONDS": "0.5",
    }
    async with stage(folder, settings=settings, key=FREE) as made:
        counts, number = Counts(), size.of(10)
        askings = await made.several(number, first=2.5, timeout=20)
        askings += await made.several(number, fault="silent", timeout=1)
        askings += await made.several(20, headers=(bearer(few),))
        counts.held["the gateway's wall clock jumps"] = await _jumps(made)
        counts.held["a connection that is kept is kept"] = await _kept(made)
        await made.counted(askings, counts)
        spent = counts.words["429 requests_per_minute"]
        counts.held["a quota is that of the minutes that passed"] = spent in (14, 15)
        counts.held["an engine that answers is left alone"] = (
            await made.metric("preheat_engine_restarts") == 0
        )
        streams = await made.several(number, stream=True, **LONG)
        for asking in streams:
            await asking.begun()
        os.kill(made.engine, signal.SIGSTOP)
        counts.again_seconds = await made.until_again(time.monotonic())
        await made.counted(streams, counts)
        counts.exit_status = await made.stopped()
    return counts


async def _jumps(made: Stage) -> bool:
    """Whether the dates of answers are days apart; they are told anew each second."""
    dates = set()
    for _ in range(20):
        dates.add((await made.fetch("/health")).headers["date"][: len("Sun, 22 Nov")])
        if len(dates) > 1:
            return True
        await asyncio.sleep(0.25)
    return False


async def _kept(made: Stage) -> bool:
    """Whether a line can be used again after some jumps."""
    line = await Line.open(made.address)
    try:
        said = []
        for _ in range(3):
            ask = made.ask()
            await line.send(ask.raw())
            said.append(word(await line.answer(), ask.number))
            await asyncio.sleep(0.5)
        return said == [WHOLE] * 3
    finally:
        line.leave()


# Its end.


async def sigterm(folder: Path, size: Size) -> Counts:
    """SIGTERM amid clients that ask without a pause, and long streams."""
    counts = Counts()
    async with stage(folder, settings={"PREHEAT_DRAIN_SECONDS": "20"}) as made:
        streams = await made.several(size.of(50), stream=True, tokens=50, gap=0.04)
        for asking in streams:
            await asking.begun()
        signalled = asyncio.Event()
        clients = [
            asyncio.create_task(hammer(made, counts, signalled))
            for hammer in (_hammer, _hammer_anew)
            for _ in range(size.of(50))
        ]
        await asyncio.sleep(1)
        below = descendants(made.process.pid)
        signalled.set()
        made.process.terminate()
        counts.exit_status = await made.ended()
        await asyncio.gather(*clients)
        await made.counted(streams, counts)
        counts.held["no process is left"] = not any(Path(f"/proc/{pid}").exists() for pid in below)
    return counts


async def _hammer(made: Stage, counts: Counts, signalled: asyncio.Event) -> None:
    """Ask on one line, again and again, until the gateway closes it."""
    line = await Line.open(made.address)
    while True:
        ask = made.ask(stream=bool(next(made.numbers) % 2), gap=0.005)
        late = signalled.is_set()
        await line.send(ask.raw())
        answer = await line.answer()
        said = word(answer, ask.number)
        counts.words[AFTER_SIGNAL if late and said == NO_ANSWER else said] += 1
        if not answer.whole or answer.headers.get("connection") == "close":
            line.leave()
            return


async def _hammer_anew(made: Stage, counts: Counts, signalled: asyncio.Event) -> None:
    """Ask on a line of its own, again and again, until nobody listens any more."""
    while True:
        late = signalled.is_set()
        try:
            line = await Line.open(made.address)
        except ConnectionError:
            return
        ask = made.ask(headers=("Connection: close",))
        await line.send(ask.raw())
        said = word(await line.answer(), ask.number)
        line.leave()
        counts.words[AFTER_SIGNAL if late and said == NO_ANSWER else said] += 1


async def drain_over(folder: Path, size: Size) -> Counts:
    """SIGTERM amid a crowd that takes longer than the drain time."""
    settings = FEW | {"PREHEAT_DRAIN_SECONDS": "1"}
    async with stage(folder, settings=settings) as made:
        askings = await crowd(made, size.of(50))
        counts = Counts()
        counts.exit_status = await made.stopped()
        return await made.counted(askings, counts)


SCENARIOS = (
    Scenario(
        "log-full",
        "standard error is /dev/full, and the engine writes 20,000 lines",
        "all is answered, the lines lost are counted, it ends as it should",
        rule(must=(WHOLE,)),
        log_full,
    ),
    Scenario(
        "log-unread",
        "standard error is a pipe that nobody reads, and the engine writes 20,000 lines",
        "all is answered, the lines lost are counted, it ends as it should",
        rule(must=(WHOLE,)),
        log_unread,
    ),
    Scenario(
        "clock-jumps",
        "the wall clock jumps two days back and forth, eleven times a second",
        "deadlines, quotas, kept connections and the watchdog go by the clock that does not",
        rule(
            must=(
                WHOLE,
                "429 requests_per_minute",
                "504 deadline_exceeded",
                "event engine_connection_lost",
            )
        ),
        clock,
    ),
    Scenario(
        "sigterm-under-load",
        "SIGTERM amid clients that ask without a pause, and long streams",
        "what was begun ends whole, what was sent before is answered or told 503; exit status 0",
        rule(STOPPING, AFTER_SIGNAL, must=(WHOLE,)),
        sigterm,
    ),
    Scenario(
        "sigterm-drain-over",
        "SIGTERM amid streams, answers and a queue that outlast the drain time",
        "streams end with an error event, all others are told; exit status 0",
        rule(WHOLE, must=(STOPPING, STOPPING_EVENT)),
        drain_over,
    ),
)
