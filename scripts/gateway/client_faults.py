"""Scenarios of clients that vanish, do not read, or come all at once."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from scripts.gateway.asking import PATIENCE_SECONDS, outcome
from scripts.gateway.costs import Processes
from scripts.gateway.line import Line
from scripts.gateway.scenario import Scenario, Size
from scripts.gateway.stage import Stage, stage
from scripts.gateway.verdict import LEFT, WHOLE, Counts, rule

MIB = 2**20
PLACES = 8
# A MiB is held for each reader that does not read, twice that in passing; streams have 26.
WAITING_MIB = 3 * PLACES
FULL = "429 queue_full"


# Vanishing. Each brings a line to a point, where its client leaves.


async def at_connect(_: Stage, __: Line) -> None:
    """Nothing was sent."""


async def in_head(_: Stage, line: Line) -> None:
    """Half a head was sent."""
    await line.send(b"POST /v1/completions HTTP/1.1\r\nHos")


async def in_body(made: Stage, line: Line) -> None:
    """Half a body was sent."""
    await line.send(made.ask().raw()[:-10])


async def in_queue(made: Stage, line: Line) -> None:
    """It waits for its turn, which does not come: others hold the places."""
    await line.send(made.ask().raw())


async def before_first_byte(made: Stage, line: Line) -> None:
    """The engine works on it and has said nothing."""
    await line.send(made.ask(first=PATIENCE_SECONDS, stream=True).raw())


async def in_stream(made: Stage, line: Line) -> None:
    """Some of it was read."""
    await line.send(made.ask(tokens=10_000, gap=0.02, stream=True).raw())
    await line.first()


async def after_last_byte(made: Stage, line: Line) -> None:
    """All of it was read; the connection stands."""
    await line.send(made.ask(stream=True).raw())
    await line.answer()


POINTS: dict[str, Callable[[Stage, Line], Awaitable[None]]] = {
    "connected": at_connect,
    "half a head": in_head,
    "half a body": in_body,
    "queued": in_queue,
    "before the first byte": before_first_byte,
    "mid-stream": in_stream,
    "after the last byte": after_last_byte,
}


async def vanishing(folder: Path, size: Size) -> Counts:
    """Clients leave at every point of a request, by FIN and by RST."""
    counts = Counts()
    async with stage(folder, settings={"PREHEAT_MAX_IN_FLIGHT": str(PLACES)}) as made:
        for point in POINTS:
            for reset in (False, True):
                await _vanish(made, point, min(size.of(PLACES), PLACES), reset=reset)
                counts.words[LEFT] += min(size.of(PLACES), PLACES)
                how = "RST" if reset else "FIN"
                counts.held[f"{point}, {how}: nothing is left of it"] = await made.within(
                    made.is_idle
                )
                counts.words[await made.word(stream=True)] += 1
        await made.counted((), counts)
        counts.exit_status = await made.stopped()
    return counts


async def _vanish(made: Stage, point: str, number: int, *, reset: bool) -> None:
    holders = []
    if point == "queued":
        holders = [await _at(made, "before the first byte") for _ in range(PLACES)]
        await made.until(lambda: _runs(made, PLACES), "places taken")
    lines = [await _at(made, point) for _ in range(number)]
    if point == "queued":
        await made.until_waiting(number)
    elif point == "before the first byte":
        await made.until(lambda: _runs(made, number), "at the engine")
    for line in lines:
        line.leave(reset=reset)
    if point == "queued":
        # Before a place becomes free: nobody may take it for one who has left.
        await made.until_waiting(0)
    for line in holders:
        line.leave()


async def _at(made: Stage, point: str) -> Line:
    line = await Line.open(made.address)
    await POINTS[point](made, line)
    return line


async def _runs(made: Stage, number: int) -> bool:
    return await made.running() == number


async def stalled(folder: Path, size: Size) -> Counts:
    """Readers of long streams that stop reading, as many as there are places."""
    settings = {"PREHEAT_STALL_SECONDS": "1", "PREHEAT_MAX_IN_FLIGHT": str(PLACES)}
    async with stage(folder, settings=settings) as made:
        gateway = Processes(made.process.pid, made.engine)
        before = gateway.peak_bytes()
        lines = [await Line.open(made.address, receive_buffer=4096) for _ in range(PLACES)]
        for line in lines:
            await line.send(made.ask(stream=True, fault="flood").raw())
        await made.until(lambda: _runs(made, PLACES), "at the engine")
        counts = await made.counted(await made.several(size.of(50)))
        counts.notes["MiB more"] = round((gateway.peak_bytes() - before) / MIB, 1)
        counts.held["what waits for them is bounded"] = counts.notes["MiB more"] < WAITING_MIB
        cut = [await line.answer() for line in lines]
        counts.held["who reads nothing is cut off"] = not any(answer.whole for answer in cut)
        counts.words[LEFT] += PLACES
        for line in lines:
            line.leave()
        counts.exit_status = await made.stopped()
    return counts


# All at once.

BURSTS = 10


async def bursts(folder: Path, size: Size) -> Counts:
    """Far more requests at once than there are places and room in the queue."""
    counts = Counts()
    settings = {"PREHEAT_MAX_IN_FLIGHT": str(PLACES), "PREHEAT_MAX_QUEUED": "64"}
    async with stage(folder, settings=settings) as made:
        for _ in range(BURSTS):
            lines = [await Line.open(made.address) for _ in range(size.of(1000))]
            counts.words.update(await asyncio.gather(*(_asked(made, line) for line in lines)))
        await made.counted((), counts)
        counts.held["the engine was asked for what was answered, and for nothing else"] = (
            made.seen().total() == counts.words[WHOLE]
        )
        counts.exit_status = await made.stopped()
    return counts


async def _asked(made: Stage, line: Line) -> str:
    ask = made.ask(gap=0.005)
    await line.send(ask.raw())
    return await outcome(line, ask)


async def connections(folder: Path, size: Size) -> Counts:
    """More connections than the gateway takes."""
    number = size.of(500)
    async with stage(folder, settings={"PREHEAT_MAX_CONNECTIONS": str(number)}) as made:
        held = [await Line.open(made.address) for _ in range(number)]
        counts = Counts()
        counts.words.update([await made.word() for _ in range(number)])
        for line in held:
            line.leave()
        await made.until(made.is_alone, "alone")
        counts.words.update([await made.word() for _ in range(number)])
        await made.counted((), counts)
        counts.exit_status = await made.stopped()
    return counts


SCENARIOS = (
    Scenario(
        "client-vanishes",
        "clients leave at each of seven points, by FIN and by RST",
        "nothing runs, waits or stays connected for them; others are answered",
        rule(LEFT, must=(WHOLE,)),
        vanishing,
    ),
    Scenario(
        "client-stalls",
        "as many clients as there are places stop reading long streams",
        "they are cut off, and those who wait behind them are answered",
        rule(LEFT, must=(WHOLE,)),
        stalled,
    ),
    Scenario(
        "client-bursts",
        "10,000 requests in 10 bursts against 8 places and a queue of 64",
        "each is answered once: by the engine, or 429 with Retry-After",
        rule(must=(WHOLE, FULL)),
        bursts,
    ),
    Scenario(
        "client-connections",
        "twice as many connections as the gateway takes",
        "503 while all are taken; afterwards as before",
        rule(must=(WHOLE, "503 too_many_connections")),
        connections,
    ),
)
