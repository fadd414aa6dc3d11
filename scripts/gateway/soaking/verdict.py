"""What was wanted of a soak, and whether it was kept. Every rule stands here, before any figure.

Zero lost: each visit ended as its kind may. Zero leaked: what the gateway holds at rest is what it
held at rest before, connection for connection and file for file. Flat: over the second half, the
slope's upper end and the line's rise are both below a bound.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scripts.gateway.soaking.growth import FEWEST, Growth, growth
from scripts.gateway.soaking.load import Rest, Soaked
from scripts.gateway.soaking.visits import WHOLE, Book
from scripts.gateway.soaking.vitals import COUNTED, GAUGES, RESTARTS

SLOPE_MIB = 1.0
GROWN_MIB = 5.0
# Threads of Python's own pool, made when there is work for them and kept.
POOL = min(32, (os.cpu_count() or 1) + 4)


@dataclass(frozen=True)
class Goal:
    """One thing that was wanted, and what was found of it."""

    what: str
    wanted: str
    found: str
    kept: bool

    def describe(self) -> dict[str, Any]:
        """For a record."""
        return asdict(self)


def goals(seen: Soaked) -> Iterator[Goal]:
    """All but those of its end."""
    yield from nothing_lost(seen.book)
    if seen.end is None:
        yield Goal("the gateway at the end", "there", "gone", kept=False)
        return
    risen = seen.end.counters[COUNTED] - seen.before.get(COUNTED, 0.0)
    yield counted_once(seen.book, risen - seen.asides)
    yield from nothing_leaked(seen.start, seen.end)
    yield from flat(memory(seen.samples, "rss_mib"))


def nothing_lost(book: Book) -> Iterator[Goal]:
    """Of the visits, and of the kinds of them that were to come."""
    yield Goal("visits lost", "0", f"{book.lost:,} of {book.visits:,}", book.lost == 0)
    never = [name for name, entry in book.entries.items() if not entry.seconds]
    found = f"{len(book.entries) - len(never)} of {len(book.entries)}"
    yield Goal("kinds that came", "all", ", ".join([found, *never]), not never)


def counted_once(book: Book, found: float) -> Goal:
    """Each request of a visit is in the gateway's own counter, once."""
    least, most = book.requests
    return Goal(
        "requests it counted", f"{least:,}–{most:,}", f"{found:,.0f}", least <= found <= most
    )


def quota_kept(ends: Counter[str], per_minute: int, seconds: float) -> Goal:
    """A key got what a minute's worth at once and so many a minute make, and not more."""
    most = per_minute + math.ceil(per_minute / 60 * seconds)
    refused = ends.total() - ends[WHOLE]
    found = f"{ends[WHOLE]:,} answered, {refused:,} refused"
    kept = 0 < ends[WHOLE] <= most and refused > 0
    return Goal("the key that may ask little", f"≤ {most:,} answered", found, kept)


def nothing_leaked(start: Rest, end: Rest) -> Iterator[Goal]:
    """Of what is held at rest."""
    for name, metric in GAUGES.items():
        value = end.counters.get(metric)
        yield Goal(name.replace("_", " ") + " at the end", "0", _plain(value), value == 0)
    before, after = start.vitals, end.vitals
    for what, was, now in (
        ("connections of clients", before.clients, after.clients),
        ("connections to the engine", before.upstream, after.upstream),
        ("open files", before.fds, after.fds),
    ):
        yield Goal(f"{what} at the end", f"{was}, as before", str(now), now == was)
    most = before.threads + POOL
    wanted = f"≤ {most}, a pool more than before"
    yield Goal("threads at the end", wanted, str(after.threads), after.threads <= most)
    restarts = end.counters.get(RESTARTS)
    yield Goal("restarts of the engine", "0", _plain(restarts), restarts == 0)


def memory(samples: Sequence[Mapping[str, Any]], of: str) -> Growth | None:
    """How a process's memory grew over the second half of the samples."""
    half = samples[len(samples) // 2 :]
    return growth([one["visits"] for one in half], [one[of] for one in half])


def flat(found: Growth | None) -> Iterator[Goal]:
    """Of the gateway's memory over the second half."""
    if found is None:
        yield Goal("memory", "flat", f"fewer than {FEWEST} samples to tell it by", kept=False)
        return
    slope = found.slope
    told = f"{slope.point:.3f} ({slope.low:.3f} to {slope.high:.3f})"
    wanted, kept = f"upper end < {SLOPE_MIB:g}", slope.high < SLOPE_MIB
    yield Goal("MiB per 1,000 visits, second half", wanted, told, kept)
    wanted, kept = f"< {GROWN_MIB:g}", found.grown_mib < GROWN_MIB
    yield Goal("MiB more, second half", wanted, f"{found.grown_mib:.2f}", kept)


def ended(status: int, left: int) -> Iterator[Goal]:
    """Of its end by SIGTERM: its exit status, and how many of its processes are still there."""
    yield Goal("exit status after SIGTERM", "0", str(status), status == 0)
    yield Goal("processes left", "0", str(left), left == 0)


def _plain(value: float | None) -> str:
    return "not told" if value is None else f"{value:g}"
