"""How many replicas a load needs to keep a promise, and how many more while one starts."""

import math
from dataclasses import dataclass

from scripts.fleet.curve import Curve
from scripts.fleet.line import Line, line, most


@dataclass(frozen=True)
class Promise:
    """``share`` of all requests have both: their first token within ``first`` seconds, and a
    beginning where tokens come no more than ``gap`` seconds apart.
    """

    first: float = 0.5
    gap: float = 0.05
    share: float = 0.95

    def kept(self, found: Line) -> bool:
        """Whether a replica in this state keeps it."""
        return found.within(self.first, self.gap) >= self.share


@dataclass(frozen=True)
class Growth:
    """Arrivals may grow by ``share`` of what they are in each minute; a replica that is asked for
    is ready after ``start_seconds``, and it is asked for ``notice_seconds`` after it is wanted.
    """

    share: float = 1.0
    start_seconds: float = 10.0
    notice_seconds: float = 15.0

    @property
    def factor(self) -> float:
        """By how much arrivals have grown when the replica that they ask for is ready."""
        return 1 + self.share * (self.start_seconds + self.notice_seconds) / 60


@dataclass(frozen=True)
class Size:
    """A fleet for ``arrivals`` requests a second: replicas that keep the promise now, and those
    besides that keep it until more have started. ``most`` requests a second are all that one of
    them could take.
    """

    arrivals: float
    replicas: int
    headroom: int
    most: float
    each: Line

    @property
    def whole(self) -> int:
        """All that run."""
        return self.replicas + self.headroom


def per_replica(curve: Curve, promise: Promise) -> float:
    """The most requests a second that one replica takes and keeps the promise; 0 for none."""
    return most(curve, promise.kept)


def size(curve: Curve, promise: Promise, growth: Growth, arrivals: float) -> Size | None:
    """The fleet for so many requests a second, each replica getting its part of them at random;
    None when no replica keeps the promise, however little it is given.

    Random parts are what a router makes that knows nothing: one that sends each request to the
    replica with the fewest needs no more.
    """
    each = per_replica(curve, promise)
    if each <= 0:
        return None
    replicas = max(1, math.ceil(arrivals / each))
    grown = max(replicas, math.ceil(arrivals * growth.factor / each))
    found = line(curve, arrivals / grown)
    return Size(arrivals, replicas, grown - replicas, each, found) if found else None
