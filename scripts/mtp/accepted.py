"""Acceptance from the engine's counters, with intervals by resampling prompts.

Steps of one prompt are not independent of each other, so whole prompts are drawn. Seeded: the same
samples give the same intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.intervals import DRAWS, ends, resampled
from scripts.metrics import by_label, read, summed

PREFIX = "vllm:spec_decode_num_"
Counts = NDArray[np.float64]


def counters(metrics: str) -> dict[str, float]:
    """The engine's `spec_decode` counters; `at 0`, `at 1`, … are acceptances per position."""
    points = read(metrics)
    whole = summed(points)
    names = ("drafts", "draft_tokens", "accepted_tokens")
    found = {n: whole[PREFIX + n + "_total"] for n in names if PREFIX + n + "_total" in whole}
    at = by_label(points, f"{PREFIX}accepted_tokens_per_pos_total", "position")
    return found | {f"at {position}": value for position, value in at.items()}


def grown(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Any]:
    """What was drafted and accepted between two readings."""
    more = {name: int(after[name] - before.get(name, 0)) for name in after}
    steps, drafted = more.pop("drafts", 0), more.pop("draft_tokens", 0)
    accepted = more.pop("accepted_tokens", 0)
    places = sorted(more, key=lambda name: int(name.removeprefix("at ")))
    return {
        "steps": steps,
        "drafted": drafted,
        "accepted": accepted,
        "accepted_at": [more[name] for name in places],
    }


def totals(samples: Sequence[Mapping[str, Any]], draws: int = DRAWS) -> dict[str, Any]:
    """Mean acceptance length (tokens a step), the share of steps that accepted each position, and
    that share of those steps that accepted all before it; 95 % intervals beside them.
    """
    samples = [item for item in samples if item["steps"]]
    if not samples:
        return {"prompts": 0, "steps": 0, "mean_acceptance_length": None, "acceptance_rate_at": []}
    counts = _counts(samples)
    point = _figures(counts.sum(0)[None])[0]
    drawn = _figures(_drawn(counts, draws))
    low, high = (end.round(3) for end in ends(drawn))
    k = len(samples[0]["accepted_at"])
    return {
        "prompts": len(samples),
        "completion_tokens": sum(item["completion_tokens"] for item in samples),
        "steps": int(counts[:, 0].sum()),
        "mean_acceptance_length": round(float(point[0]), 3),
        "mean_acceptance_length_interval": [float(low[0]), float(high[0])],
        "acceptance_rate_at": _list(point[1 : k + 1]),
        "acceptance_rate_at_interval": _pairs(low[1 : k + 1], high[1 : k + 1]),
        "given_previous_at": _list(point[k + 1 :]),
        "given_previous_at_interval": _pairs(low[k + 1 :], high[k + 1 :]),
    }


def difference(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], draws: int = DRAWS
) -> dict[str, Any]:
    """After less before, on the same prompts: mean acceptance length and each position's share.

    Both are drawn together, so what a prompt has in common does not count as spread.
    """
    one, other = _counts(before), _counts(after)
    point = (_figures(other.sum(0)[None]) - _figures(one.sum(0)[None]))[0]
    drawn = _figures(_drawn(other, draws)) - _figures(_drawn(one, draws))
    low, high = (end.round(3) for end in ends(drawn))
    k = one.shape[1] - 1
    return {
        "mean_acceptance_length": round(float(point[0]), 3),
        "mean_acceptance_length_interval": [float(low[0]), float(high[0])],
        "acceptance_rate_at": _list(point[1 : k + 1]),
        "acceptance_rate_at_interval": _pairs(low[1 : k + 1], high[1 : k + 1]),
    }


def _counts(samples: Sequence[Mapping[str, Any]]) -> Counts:
    """[prompts, 1 + K]: steps, then acceptances at each position."""
    rows = [[item["steps"], *item["accepted_at"]] for item in samples]
    return np.array(rows, dtype=np.float64)


def _drawn(counts: Counts, draws: int) -> Counts:
    """Sums over prompts drawn with replacement, [draws, 1 + K]; the same draws for each call."""
    return resampled(counts, np.ones(len(counts)), np.random.default_rng(0), draws)


def _figures(sums: Counts) -> Counts:
    """[draws, 1 + 2K]: mean length, share at each position, share given all before."""
    steps, accepted = sums[:, :1], sums[:, 1:]
    reached = np.concatenate([steps, accepted[:, :-1]], 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        figures: Counts = np.concatenate(
            [1 + accepted.sum(1, keepdims=True) / steps, accepted / steps, accepted / reached], 1
        )
    return figures


def _list(values: Counts) -> list[float]:
    return [float(value) for value in values.round(3)]


def _pairs(low: Counts, high: Counts) -> list[list[float]]:
    return [[float(a), float(b)] for a, b in zip(low, high, strict=True)]
