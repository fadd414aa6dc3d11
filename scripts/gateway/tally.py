"""Many durations in few words: how often each occurred, and the quantiles of that.

A tally is written as ``30120 20x40 60x3``: microseconds, each after the first as the step from the
one before, and after ``x`` how often it came. Nine tenths of them are kept to 20 µs, the least and
the most to 0.2 ms, and from 100 ms on three digits: words for each of those would be most of all.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import ceil

Tally = Mapping[int, int]
MICRO = 1_000_000
STEP, TAIL_STEP = 20, 200
TAIL = 0.05
FINE_BELOW = 100_000
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def tally(seconds: Sequence[float]) -> Tally:
    """How often each duration came, by microseconds."""
    if not seconds:
        return {}
    micros = [one * MICRO for one in seconds]
    low, high = quantile(micros, TAIL), quantile(micros, 1 - TAIL)
    return Counter(_rounded(one, STEP if low <= one <= high else TAIL_STEP) for one in micros)


def _rounded(micros: float, step: int) -> int:
    if micros >= FINE_BELOW:
        step = 10 ** (len(str(int(micros))) - 3)
    return round(micros / step) * step


def written(found: Tally) -> str:
    """In words."""
    words, before = [], 0
    for micros in sorted(found):
        times = f"x{found[micros]}" if found[micros] > 1 else ""
        words.append(f"{micros - before}{times}")
        before = micros
    return " ".join(words)


def read(words: str) -> Tally:
    """What ``written`` made words of.

    :raises ValueError: they are no such words.
    """
    pairs = [word.partition("x")[::2] for word in words.split()]
    at = accumulate(int(step) for step, _ in pairs)
    return {micros: int(times or 1) for micros, (_, times) in zip(at, pairs, strict=True)}


def quantile(found: Sequence[float], share: float) -> float:
    """The smallest of some durations that so large a share of them does not exceed.

    An order statistic and nothing between two: the 99 % point of 100 is the second largest.
    """
    return sorted(found)[max(0, ceil(share * len(found)) - 1)]
