"""What is run in which order: cells, arrivals, the prompts of a cell, turns of the variants.

Pure: everything follows from the options and the seed.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

# Shorter, and a rate that is too much for a server has no time to show in a queue.
SECONDS_OF_ARRIVALS = 30
# Requests of a closed loop at least; and answers a client waits for, one after the other.
LEAST, EACH = 16, 4


@dataclass(frozen=True)
class Cell:
    """One kind of load: so many clients that each wait for their answer, or arrivals at a rate; and
    how many requests a sample of it has where that is not the usual number.
    """

    concurrency: int | None = None
    rate: float | None = None
    requests: int | None = None

    @property
    def label(self) -> str:
        """``c8`` for eight clients, ``r2`` for two arrivals a second."""
        return f"c{self.concurrency}" if self.concurrency else f"r{self.rate:g}"

    def told(self) -> str:
        """For a person."""
        if self.concurrency:
            return f"{self.concurrency} at once"
        return f"{self.rate:g} a second"


def cells(concurrencies: Sequence[int], rates: Sequence[float]) -> list[Cell]:
    """Closed loops first, each in the order given."""
    return [Cell(concurrency=c) for c in concurrencies] + [Cell(rate=r) for r in rates]


def count(cell: Cell, prompts: int, asked: int | None) -> int:
    """Requests of one sample: ``LEAST``, or ``EACH`` a client where that is more, and no fewer than
    two a client of a small set; or some seconds of arrivals.
    """
    if asked is not None:
        return asked
    if cell.requests is not None:
        return cell.requests
    if cell.rate is not None:
        return max(4, round(cell.rate * SECONDS_OF_ARRIVALS))
    clients = cell.concurrency or 1
    return max(min(max(LEAST, EACH * clients), prompts), 2 * clients)


def chosen(cell: Cell, round_: int, prompts: int, requests: int, seed: int) -> list[int]:
    """Which prompts a sample has, by number: the set in an order of the round's own, then again."""
    rng = random.Random(f"{seed} {cell.label} {round_}")  # noqa: S311 - an order, no secret
    found: list[int] = []
    while len(found) < requests:
        found += rng.sample(range(prompts), prompts)
    return found[:requests]


def arrivals(rate: float, requests: int, round_: int, seed: int) -> list[float]:
    """Seconds of a Poisson process from the first arrival on: gaps of -ln(1 - u) / rate."""
    rng = random.Random(f"{seed} arrivals {rate:g} {round_}")  # noqa: S311
    at, times = 0.0, []
    for _ in range(requests):
        times.append(round(at, 6))
        at += -math.log(1 - rng.random()) / rate
    return times


def turns(names: Sequence[str], round_: int, seed: int) -> list[str]:
    """The variants in an order drawn for each two rounds, in the second of them backwards (A B, B A
    or B A, A B): a machine that slows down steadily slows each of them alike. Rounds count from 1.
    """
    pair, second = divmod(round_ - 1, 2)
    order = random.Random(f"{seed} turns {pair}").sample(list(names), len(names))  # noqa: S311
    return order[::-1] if second else order


def groups(candidates: Sequence[str], together: int) -> list[list[str]]:
    """Candidates in groups that fit beside the reference when ``together`` engines are alive."""
    size = max(1, together - 1)
    return [list(candidates[at : at + size]) for at in range(0, len(candidates), size)]
