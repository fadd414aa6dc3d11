"""One replica under a load, in the long run: who is in flight, who waits, and for how long.

A birth-death chain: requests come at random (Poisson), and in state n they leave at the curve's
rate; those beyond the replica's places wait in the order of their coming. Of n requests in flight
all are served at once, so that a new one slows all others, as in continuous batching. Durations are
taken for exponential; ``simulation`` and open loops of records say how wrong that is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from scripts.fleet.curve import Curve


@dataclass(frozen=True)
class Line:
    """The chain in steady state. ``shares[n]`` is how often n requests are in flight, n up to the
    places; ``waits`` how often others wait besides.
    """

    curve: Curve
    arrivals: float
    shares: tuple[float, ...]
    waits: float

    @property
    def spare(self) -> float:
        """Requests a second that the replica could take more before its queue grows for ever."""
        return self.curve.rate(self.curve.places) - self.arrivals

    @property
    def in_flight(self) -> float:
        """Mean number of requests, those that wait too."""
        places = self.curve.places
        full = self.curve.rate(places)
        waiting = self.waits * full / self.spare
        return sum(n * share for n, share in enumerate(self.shares)) + places * self.waits + waiting

    @property
    def seconds(self) -> float:
        """Mean time of a request from its coming to its end, by Little's law."""
        return self.in_flight / self.arrivals

    def waits_longer(self, seconds: float) -> float:
        """The share of requests that wait longer than so many seconds for their place.

        One that finds all places taken and k waiting goes after k + 1 have left: a sum of
        exponential times, over a geometric number of them, which is one exponential time.
        """
        # Who comes when all places are taken waits, though nobody may wait yet.
        found_full = self.shares[-1] + self.waits
        return found_full * math.exp(-self.spare * max(seconds, 0.0))

    def within(self, first: float, gap: float = math.inf) -> float:
        """The share of requests whose first token comes within ``first`` seconds, and that begin in
        a state whose mean gap is within ``gap``.
        """
        places, met = self.curve.places, 0.0
        for n, share in enumerate(self.shares[:-1]):
            if self.curve.gap(n + 1) <= gap:
                firsts = self.curve.firsts(n + 1)
                met += share * sum(one <= first for one in firsts) / len(firsts)
        if self.curve.gap(places) > gap:
            return met
        firsts = self.curve.firsts(places)
        late = sum(
            1.0 if one > first else math.exp(-self.spare * (first - one)) for one in firsts
        ) / len(firsts)
        return met + (self.shares[-1] + self.waits) * (1 - late)


def line(curve: Curve, arrivals: float) -> Line | None:
    """The steady state at so many requests a second; None where there is none: the queue grows."""
    places = curve.places
    full = curve.rate(places)
    if arrivals >= full:
        return None
    weights = [1.0]
    for n in range(1, places + 1):
        weights.append(weights[-1] * arrivals / curve.rate(n))
    # Above the places each state is the one below times the load: a geometric sum.
    load = arrivals / full
    beyond = weights[-1] * load / (1 - load)
    total = sum(weights) + beyond
    return Line(curve, arrivals, tuple(weight / total for weight in weights), beyond / total)


def most(curve: Curve, fits: Callable[[Line], bool], steps: int = 60) -> float:
    """The most requests a second for which ``fits`` still holds; 0 when it never does."""
    low, high = 0.0, curve.rate(curve.places)
    for _ in range(steps):
        middle = (low + high) / 2
        found = line(curve, middle)
        if found is not None and fits(found):
            low = middle
        else:
            high = middle
    first = line(curve, low) if low else None
    return low if first is not None and fits(first) else 0.0
