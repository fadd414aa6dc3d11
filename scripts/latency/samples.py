"""One sample: what one variant did in one cell of one round, as it is kept in a record.

Columns are strings of numbers, one a request, so that a record stays small; a failed request has
``-`` in them. Times are in milliseconds.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
NOTHING = "-"
# Gaps between chunks are kept as counts of each value, rounded to this (ms).
GAP_STEP = 0.1
COLUMNS = ("ttft_ms", "latency_ms", "tokens", "chunks")


@dataclass(frozen=True)
class Sample:
    """Arrays over the requests of a sample, [n]; NaN where a request failed."""

    round: int
    cell: str
    variant: str
    wall: float
    ttft: Floats
    latency: Floats
    tokens: Floats
    chunks: Floats
    gaps: Mapping[float, int]

    @property
    def ok(self) -> npt.NDArray[np.bool_]:
        """Which requests were answered in full."""
        return ~np.isnan(self.latency)

    @property
    def itl(self) -> Floats:
        """Milliseconds a token after the first: (last - first) / (tokens - 1). With speculation
        several tokens come in one chunk, so this is not the gap between chunks.
        """
        return np.asarray((self.latency - self.ttft) / np.maximum(self.tokens - 1, 1))


def pack(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Columns of what the load generator saw of each request, in order of the job."""
    gaps: Counter[str] = Counter()
    rows = []
    for one in outcomes:
        if one["failed"]:
            rows.append((NOTHING,) * len(COLUMNS))
            continue
        gaps.update(f"{1000 * gap:.1f}" for gap in one["gaps"])
        times = (f"{1000 * one['ttft']:.2f}", f"{1000 * one['latency']:.2f}")
        rows.append((*times, str(one["tokens"]), str(len(one["gaps"]) + 1)))
    columns = {name: " ".join(row[place] for row in rows) for place, name in enumerate(COLUMNS)}
    counted = sorted(gaps.items(), key=lambda item: float(item[0]))
    return columns | {
        "gaps_ms": " ".join(f"{gap}:{times}" for gap, times in counted),
        "failed": dict(Counter(one["failed"] for one in outcomes if one["failed"])),
    }


def unpack(kept: Mapping[str, Any]) -> Sample:
    """A sample as it stands in a record; some kinds of record keep no gaps.

    :raises ValueError: a column that is no numbers. :raises KeyError: one that is missing.
    """
    ttft, latency, tokens, chunks = (_numbers(kept[name]) for name in COLUMNS)
    counts = (word.partition(":") for word in kept.get("gaps_ms", "").split())
    gaps = {float(gap): int(n) for gap, _, n in counts}
    return Sample(
        kept["round"],
        kept["cell"],
        kept["variant"],
        float(kept["wall_s"]),
        ttft,
        latency,
        tokens,
        chunks,
        gaps,
    )


def _numbers(column: str) -> Floats:
    return np.array([np.nan if word == NOTHING else float(word) for word in column.split()])


def first_difference(one: str, other: str) -> int | None:
    """The character at which two texts part; None: they are equal."""
    if one == other:
        return None
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
