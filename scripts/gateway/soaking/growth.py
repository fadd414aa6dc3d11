"""Whether something grew: a line through samples, and how sure its slope is.

Memory rises in steps and stays, so that its samples are no independent draws: residuals are drawn
again in blocks, in a circle, which keeps what neighbours have in common.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from scripts.intervals import Floats, Interval, ends

DRAWS, SEED = 4000, 7
# Fewer samples say nothing of a slope.
FEWEST = 6


@dataclass(frozen=True)
class Growth:
    """MiB for each thousand requests, and from the first sample to the last, by the line."""

    slope: Interval
    grown_mib: float

    def describe(self) -> dict[str, Any]:
        """For a record."""
        return {"mib_per_1000": self.slope.describe(), "grown_mib": round(self.grown_mib, 3)}


def growth(requests: list[float], mib: list[float]) -> Growth | None:
    """The line through ``mib`` over ``requests``; None of too few samples, or where nothing was
    asked between them.
    """
    x, y = np.array(requests) / 1000, np.array(mib)
    if len(x) < FEWEST or x[-1] <= x[0]:
        return None
    slope = _slope(x, y[None, :])[0]
    line = slope * (x - x.mean()) + y.mean()
    low, high = ends(_slope(x, line + _redrawn(y - line)))
    return Growth(Interval(slope, float(low), float(high), len(x)), float(slope * (x[-1] - x[0])))


def _slope(x: Floats, y: Floats) -> Floats:
    """Least squares, of each row of ``y``."""
    centred = x - x.mean()
    found: Floats = y @ centred / (centred @ centred)
    return found


def _redrawn(residuals: Floats) -> Floats:
    """Rows of as many residuals, put together of blocks whose beginnings are drawn."""
    random = np.random.default_rng(SEED)
    count = len(residuals)
    length = math.ceil(math.sqrt(count))
    begins = random.integers(0, count, size=(DRAWS, math.ceil(count / length)))
    places = (begins[:, :, None] + np.arange(length)) % count
    found: Floats = residuals[places.reshape(DRAWS, -1)[:, :count]]
    return found
