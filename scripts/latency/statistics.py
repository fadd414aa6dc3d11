"""Figures of samples, and how many times faster one variant is, with an interval. Pure.

Percentiles are linear between order statistics (Hyndman & Fan's type 7, numpy's default). An
interval is the 2.5th to 97.5th percentile of bootstrap draws: each draw takes rounds with
replacement, and in each of them requests with replacement, a request always together with its pair
(the same prompt in the same cell and round at the other variant); Efron & Tibshirani, An
Introduction to the Bootstrap, 1993, chapters 8 and 13. The draws are seeded.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from scripts.intervals import ends
from scripts.latency.samples import Floats, Sample

DRAWS = 2000
LEVELS = (50, 90, 99)
TAIL = "p99"
METRICS: Mapping[str, Callable[[Sample], Floats]] = {
    "ttft_ms": lambda one: one.ttft,
    "itl_ms": lambda one: one.itl,
    "e2e_ms": lambda one: one.latency,
}
STATISTICS: Mapping[str, Callable[..., Any]] = {
    "mean": np.mean,
    **{f"p{level}": (lambda a, axis=None, q=level: np.percentile(a, q, axis)) for level in LEVELS},
}
METHOD = (
    "ratio = reference / candidate for times, candidate / reference for rates: above 1 the "
    "candidate is faster; percentiles linear (type 7); 95 % interval: percentile bootstrap over "
    "rounds, then over request pairs within them; for tokens a second over rounds alone. Rounds "
    "are few, so intervals are narrower than repeated runs would spread. A failed request leaves "
    "its pair out of every ratio, and then no p99 is told"
)


def figures(samples: Sequence[Sample]) -> dict[str, Any]:
    """Mean and percentiles of each metric over all answered requests of one variant in one cell.

    ``itl_ms`` is time a token after the first, ``gap_ms`` time between chunks. Where a request
    failed there is no p99: what timed out would have been its slowest.
    """
    failed = sum(int((~one.ok).sum()) for one in samples)
    found: dict[str, Any] = {}
    for name, metric in METRICS.items():
        values = np.concatenate([metric(one)[one.ok] for one in samples])
        found[name] = _spread(values, failed)
    gaps, times = _gaps(samples)
    found["gap_ms"] = _spread(np.repeat(gaps, times), failed)
    wall = sum(one.wall for one in samples)
    tokens = sum(float(np.nansum(one.tokens)) for one in samples)
    chunks = sum(float(np.nansum(one.chunks)) for one in samples)
    answered = sum(int(one.ok.sum()) for one in samples)
    return found | {
        "tokens_per_s": _rounded(tokens / wall) if wall else None,
        "requests_per_s": _rounded(answered / wall) if wall else None,
        "tokens_per_chunk": _rounded(tokens / chunks) if chunks else None,
        "requests": sum(len(one.latency) for one in samples),
        "failed": failed,
    }


def _gaps(samples: Sequence[Sample]) -> tuple[Floats, npt.NDArray[np.int64]]:
    pairs = [pair for one in samples for pair in one.gaps.items()]
    values = np.array([gap for gap, _ in pairs], dtype=np.float64)
    return values, np.array([times for _, times in pairs], dtype=np.int64)


def _spread(values: Floats, failed: int) -> dict[str, float | None] | None:
    if not len(values):
        return None
    return {
        name: None if failed and name == TAIL else _rounded(of(values))
        for name, of in STATISTICS.items()
    }


def left_out(reference: Sequence[Sample], candidate: Sequence[Sample]) -> int:
    """Pairs that no ratio has, since one of the two failed."""
    return sum(int((~(a.ok & b.ok)).sum()) for a, b in zip(reference, candidate, strict=True))


def ratios(
    reference: Sequence[Sample],
    candidate: Sequence[Sample],
    seed: int,
    draws: int = DRAWS,
    statistics: Mapping[str, Callable[..., Any]] = STATISTICS,
) -> dict[str, Any]:
    """How many times faster the candidate is: ``ratio``, ``low``, ``high`` by metric and statistic.

    Both are the samples of one cell, round by round in the same order. A pair with a failed
    request on either side is left out, and p99 with it.

    :raises ValueError: the samples are not of the same rounds and requests.
    """
    if [(a.round, len(a.latency)) for a in reference] != [
        (b.round, len(b.latency)) for b in candidate
    ]:
        raise ValueError("samples of a reference and a candidate do not pair")
    rng = np.random.default_rng(seed)
    kept = [a.ok & b.ok for a, b in zip(reference, candidate, strict=True)]
    if not any(mask.any() for mask in kept):
        return {}
    drawn = _draw(rng, [int(mask.sum()) for mask in kept], draws)
    found: dict[str, Any] = {}
    for name, metric in METRICS.items():
        slow, fast = (
            np.concatenate([metric(one)[mask] for one, mask in zip(side, kept, strict=True)])
            for side in (reference, candidate)
        )
        found[name] = {
            statistic: _interval(
                of(slow) / of(fast), of(slow[drawn], axis=1) / of(fast[drawn], axis=1)
            )
            for statistic, of in statistics.items()
            if statistic != TAIL or not left_out(reference, candidate)
        }
    found["tokens_per_s"] = _rates(rng, reference, candidate, draws)
    return found


def _draw(rng: np.random.Generator, sizes: Sequence[int], draws: int) -> npt.NDArray[np.int64]:
    """Places in the concatenated requests, [draws, rounds · n]: of each round drawn n requests, the
    size of the largest.
    """
    size, start = np.array(sizes), np.cumsum([0, *sizes[:-1]])
    full = np.flatnonzero(size)
    rounds = rng.choice(full, (draws, len(full), 1))
    within = rng.random((draws, len(full), int(size.max())))
    places = start[rounds] + np.floor(within * size[rounds]).astype(np.int64)
    return np.asarray(places.reshape(draws, -1))


def _rates(
    rng: np.random.Generator, reference: Sequence[Sample], candidate: Sequence[Sample], draws: int
) -> dict[str, float]:
    rounds = rng.integers(len(reference), size=(draws, len(reference)))

    def rate(side: Sequence[Sample], chosen: npt.NDArray[np.int64]) -> Floats:
        tokens = np.array([np.nansum(one.tokens) for one in side])
        wall = np.array([one.wall for one in side])
        return np.asarray(tokens[chosen].sum(-1) / wall[chosen].sum(-1))

    all_ = np.arange(len(reference))
    point = float(rate(candidate, all_) / rate(reference, all_))
    return _interval(point, rate(candidate, rounds) / rate(reference, rounds))


def _interval(point: float, drawn: Floats) -> dict[str, float]:
    low, high = ends(drawn)
    return {"ratio": _rounded(point), "low": _rounded(low), "high": _rounded(high)}


def _rounded(value: Any) -> float:
    """Four significant figures: no sample tells more."""
    return float(f"{float(value):.4g}")
