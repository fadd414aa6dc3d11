"""Everybody once, rest, visits for so many minutes with a sample every few seconds, rest again."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from scripts.gateway.soaking.hands import Site
from scripts.gateway.soaking.raw import exchange
from scripts.gateway.soaking.visits import WHOLE, Amiss, Book, Kind
from scripts.gateway.soaking.vitals import GAUGES, Place, Vitals, counters, fewest, gauges, look

POLL_SECONDS = 1.0
# Until the last of what was asked is over: an engine works on what nobody waits for, for a while.
IDLE_SECONDS = 120.0
# An engine closes what was idle for 5 s, the gateway for 2 s.
REST_SECONDS = 8.0
# The gateway answers no more, or is no more.
GONE = (OSError, EOFError, ValueError, Amiss)
Samples = list[dict[str, Any]]


@dataclass(frozen=True)
class Load:
    """Who comes, for how long, how many at once; a sample every so many seconds.

    ``kinds`` opens the clients whose kinds it gives, and closes them: no connection of theirs is
    there at rest.
    """

    kinds: Callable[[], AbstractAsyncContextManager[Sequence[Kind]]]
    pollers: Sequence[Kind]
    seconds: float
    clients: int
    every: float
    seed: int = 7
    rest: float = REST_SECONDS
    idle: float = IDLE_SECONDS


@dataclass(frozen=True)
class Rest:
    """The gateway with nobody there: what it holds, and what it has counted by then."""

    vitals: Vitals
    counters: Mapping[str, float]


@dataclass(frozen=True)
class Soaked:
    """All that was seen; ``end`` is None when the gateway was gone by then.

    ``before`` are the counters before the first visit; ``asides`` of the requests counted since are
    ours and no visits. ``seconds`` is from the first visit to the last.
    """

    book: Book
    samples: Samples
    before: Mapping[str, float]
    start: Rest
    end: Rest | None
    asides: int
    seconds: float


async def soaked(
    asked: Load, site: Site, place: Place, tell: Callable[[dict[str, Any]], None]
) -> Soaked:
    """Have them come; ``tell`` is told each sample.

    :raises Exception: one of ``GONE``, when the gateway does not outlive the first round.
    """
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(asked.clients))
    sampler = Sampler(site)
    before = await sampler.values()
    began = time.monotonic()
    async with asked.kinds() as kinds:
        book = Book([*kinds, *asked.pollers, sampler.kind])
        await _everybody_once(kinds, book, asked.clients)
    start = await _rest(asked, place, sampler)
    async with asked.kinds() as kinds:
        samples = await _load(asked, kinds, place, sampler, book, tell)
    seconds = time.monotonic() - began
    try:
        end = await _rest(asked, place, sampler)
    except GONE:
        end = None
    # The last reading is not in what it read.
    return Soaked(book, samples, before, start, end, sampler.asides - 1, seconds)


class Sampler:
    """Reads the gateway's exposition; while others visit, as a visit like any other."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._values: dict[str, float] = {}
        self.asides = 0
        self.kind = Kind("sample /metrics", self._visit)

    async def values(self) -> dict[str, float]:
        """Every value by its name, summed over labels; beside all visits.

        :raises Exception: one of ``GONE``.
        """
        self.asides += 1
        return await self._read()

    async def _read(self) -> dict[str, float]:
        headers = self._site.headers()
        status, _, said = await exchange(self._site.url, "GET", "/metrics", headers)
        if status != 200:
            raise Amiss(f"/metrics is answered {status}")
        return counters(said.decode())

    async def _visit(self, _: random.Random) -> str:
        self._values = await self._read()
        return WHOLE

    async def entered(self, book: Book) -> dict[str, float]:
        """The same, entered in the book; none when there was no answer."""
        self._values = {}
        await book.visit(self.kind, random.Random(0))  # noqa: S311 - it draws nothing
        return self._values


async def _everybody_once(kinds: Sequence[Kind], book: Book, clients: int) -> None:
    """What is only done at a first time is done: threads, grammars, connections."""
    places = asyncio.Semaphore(clients)

    async def once(kind: Kind) -> None:
        async with places:
            await book.visit(kind, random.Random(kind.name))  # noqa: S311 - no secret

    await asyncio.gather(*map(once, kinds))


async def _rest(asked: Load, place: Place, sampler: Sampler) -> Rest:
    """Wait until nobody is served; what is held then.

    :raises Exception: one of ``GONE``.
    """
    await _idle(sampler, asked.idle)
    await asyncio.sleep(asked.rest)
    # At a request the gateway closes what was idle for too long.
    await sampler.values()
    vitals = await asyncio.to_thread(fewest, place, asked.rest)
    # The gateway's own watchdog asks for a token now and then.
    return Rest(vitals, await _idle(sampler, asked.rest))


async def _idle(sampler: Sampler, seconds: float) -> dict[str, float]:
    """The counters as soon as all gauges are 0, or those at the end of the time."""
    until = time.monotonic() + seconds
    while True:
        values = await sampler.values()
        if not any(values.get(metric) for metric in GAUGES.values()) or time.monotonic() > until:
            return values
        await asyncio.sleep(POLL_SECONDS)


async def _load(  # noqa: PLR0913 - who comes, to whom, and who looks on
    asked: Load,
    kinds: Sequence[Kind],
    place: Place,
    sampler: Sampler,
    book: Book,
    tell: Callable[[dict[str, Any]], None],
) -> Samples:
    began = time.monotonic()
    until = began + asked.seconds
    seeds = range(asked.seed, asked.seed + asked.clients)
    working = [asyncio.create_task(_client(kinds, seed, book, until)) for seed in seeds]
    working += [asyncio.create_task(_poller(kind, book, until)) for kind in asked.pollers]
    samples: Samples = []
    try:
        while (now := time.monotonic()) < until:
            await asyncio.sleep(min(asked.every, until - now))
            counts = {"s": round(time.monotonic() - began, 1), "visits": book.visits}
            sample = counts | {"lost": book.lost} | look(place).describe()
            sample |= gauges(await sampler.entered(book))
            samples.append(sample)
            tell(sample)
        await asyncio.gather(*working)
    except OSError:
        # The gateway's process is gone: what its clients lost by that is in the book.
        return samples
    finally:
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
    return samples


async def _client(kinds: Sequence[Kind], seed: int, book: Book, until: float) -> None:
    chance = random.Random(seed)  # noqa: S311 - no secret
    weights = [kind.weight for kind in kinds]
    while time.monotonic() < until:
        await book.visit(chance.choices(kinds, weights)[0], chance)


async def _poller(kind: Kind, book: Book, until: float) -> None:
    while time.monotonic() < until:
        await book.visit(kind, random.Random(0))  # noqa: S311 - it draws nothing
        await asyncio.sleep(POLL_SECONDS)
