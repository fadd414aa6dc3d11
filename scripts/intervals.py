"""Intervals of what was measured on items: bootstrap over them, and Wilson's for a rate.

Every interval here is two-sided, 95 %: its ends are the 2.5 % and 97.5 % points. Knows neither
what the items are nor what a bound is compared with.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.95
# Odds of what lies beyond one end.
UNSEEN = (1 - CONFIDENCE) / 2
# Standard normal deviate of the upper end.
NORMAL_DEVIATE = 1.959963984540054
DRAWS = 10_000
SEED = 7
# Draws that are multiplied out at once: 500 × 10,000 counts of 8 bytes are 40 MB.
PIECE = 500


@dataclass(frozen=True)
class Interval:
    """A figure, the ends of its 95 % interval, and from how many items all three were made;
    ``unseen``: the low end is that of a loss that no item showed.
    """

    point: float
    low: float
    high: float
    items: int
    unseen: bool = False

    def describe(self) -> dict[str, Any]:
        """As JSON, rounded where nothing that is judged would change."""
        ends = {"point": self.point, "low": self.low, "high": self.high}
        rounded = {name: float(f"{value:.6g}") for name, value in ends.items()}
        return rounded | {"items": self.items}


def wilson(passed: float, items: int) -> Interval:
    """Wilson's score interval of a rate: Wilson 1927, equation (4) of Brown, Cai, DasGupta 2001.

    ``passed`` of ``items`` outcomes in 0…1; a mean of fractions is taken as a rate, which is
    wide rather than narrow.

    :raises ValueError: no items, or more passed than there are.
    """
    if items < 1 or not 0 <= passed <= items:
        raise ValueError(f"{passed} passed of {items} is no rate")
    rate, z2 = passed / items, NORMAL_DEVIATE**2
    centre = (rate + z2 / (2 * items)) / (1 + z2 / items)
    spread = math.sqrt(rate * (1 - rate) / items + z2 / (4 * items * items))
    half = NORMAL_DEVIATE * spread / (1 + z2 / items)
    return Interval(rate, max(0.0, centre - half), min(1.0, centre + half), items)


def resampled(
    rows: Floats, copies: npt.NDArray[Any], random: np.random.Generator, draws: int
) -> Floats:
    """Sums over as many items as there are, drawn with replacement, draws × quantities.

    ``rows`` is kinds of items × quantities, ``copies`` how many items are of each kind.
    """
    items = int(copies.sum())
    total: Floats = random.multinomial(items, copies / items, size=draws) @ rows
    return total


def ends(drawn: Floats) -> tuple[Floats, Floats]:
    """The ends of the interval that draws span, along their first axis; NaN are no draws."""
    low, high = np.nanpercentile(drawn, (2.5, 97.5), axis=0)
    return low, high


def bootstrap(
    columns: Floats, statistic: Callable[[Floats], Floats], *, seed: int = SEED
) -> Interval:
    """Percentile interval of a statistic of column sums, items resampled whole.

    ``columns`` is items × quantities; ``statistic`` takes draws × sums and gives one number a
    draw. Tokens of one text belong together, so a text is one item.

    :raises ValueError: no items.
    """
    items = len(columns)
    if not items:
        raise ValueError("nothing to resample")
    random = np.random.default_rng(seed)
    # Equal items are drawn together: a task's 14,000 have three outcomes.
    rows, counts = np.unique(columns, axis=0, return_counts=True)
    drawn = [
        statistic(resampled(rows, counts, random, min(PIECE, DRAWS - done)))
        for done in range(0, DRAWS, PIECE)
    ]
    low, high = ends(np.concatenate(drawn))
    point = statistic(columns.sum(axis=0, keepdims=True))[0]
    return Interval(float(point), float(low), float(high), items)


def paired_difference(reference: Floats, variant: Floats, *, seed: int = SEED) -> Interval:
    """Mean of ``variant - reference``, scores in 0…1 of the same items in the same order.

    A bootstrap cannot draw what never occurred: where no item was lost, the low end is where a loss
    of that frequency would still have gone unseen with 2.5 %; where none was gained, the high end
    is by as much above the drawn one, which losses hold down.

    :raises ValueError: no items, or not the same number.
    """
    if len(reference) != len(variant) or not len(variant):
        raise ValueError(f"{len(reference)} scores and {len(variant)} cannot be paired")
    difference = variant - reference
    drawn = bootstrap(difference[:, None], lambda sums: sums[:, 0] / len(difference), seed=seed)
    unseen, lost = 1 - UNSEEN ** (1 / len(difference)), bool((difference < 0).any())
    low = drawn.low if lost else -unseen
    high = drawn.high + (0 if (difference > 0).any() else unseen)
    return Interval(drawn.point, low, high, drawn.items, unseen=not lost)


def items_unseen(frequency: float) -> int:
    """Of how many items one that occurs so often is seen, but with 2.5 %; ``frequency`` in 0…1."""
    return math.ceil(math.log(UNSEEN) / math.log1p(-frequency))


def geometric_mean(ratios: Floats) -> Interval:
    """Of several ratios, with an interval over them."""
    return bootstrap(np.log(ratios)[:, None], lambda sums: np.exp(sums[:, 0] / len(ratios)))
