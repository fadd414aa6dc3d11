"""From the samples of a run to its summary: pure, so that a record can be summed up again."""

from collections.abc import Mapping, Sequence
from typing import Any

from scripts.latency import facts
from scripts.latency.samples import Sample, unpack
from scripts.latency.statistics import figures, left_out, ratios

# How many first differences are listed; all of them are counted.
LISTED = 5


def summary(
    kept: Sequence[Mapping[str, Any]], reference: str, candidate: str, seed: int
) -> dict[str, Any]:
    """Figures of both, their ratios and whether they said the same, for each cell.

    A candidate that is the reference has figures only.
    """
    cells = list(dict.fromkeys(one["cell"] for one in kept))
    return {
        "reference": reference,
        "candidate": candidate,
        "cells": {cell: _cell(kept, cell, reference, candidate, seed) for cell in cells},
        "texts": texts([one for one in kept if one["variant"] == candidate]),
    }


def _cell(
    kept: Sequence[Mapping[str, Any]], cell: str, reference: str, candidate: str, seed: int
) -> dict[str, Any]:
    names = list(dict.fromkeys((reference, candidate)))
    own = {n: [one for one in kept if (one["cell"], one["variant"]) == (cell, n)] for n in names}
    samples: dict[str, list[Sample]] = {n: [unpack(one) for one in all_] for n, all_ in own.items()}
    found: dict[str, Any] = {
        name: _figures(samples[name], own[name]) for name in names if own[name]
    }
    if reference != candidate:
        found["ratios"] = ratios(samples[reference], samples[candidate], seed)
        found["pairs_left_out"] = left_out(samples[reference], samples[candidate])
        found["texts"] = texts(own[candidate])
    return found


def _figures(samples: Sequence[Sample], kept: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not any(one.ok.any() for one in samples):
        asked = sum(len(one.latency) for one in samples)
        return {"requests": asked, "failed": asked, "failures": _failed(kept)}
    found = figures(samples)
    wall = sum(one.wall for one in samples)
    return found | {
        "failures": _failed(kept),
        "engine": facts.total([one["engine"] for one in kept]),
        "client_cpu_share": round(sum(one["client"]["cpu_s"] for one in kept) / wall, 4),
        "client_lag_p99_ms": max(one["client"]["lag_p99_ms"] for one in kept),
        **_offered(kept),
        "others_most": max(one["others"] for one in kept),
    }


def _offered(kept: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of arrivals: how many a second were due, and how late the client sent the latest."""
    told = [one["offered_per_s"] for one in kept if one.get("offered_per_s")]
    if not told:
        return {}
    late = max(one["client"]["late_ms"] for one in kept)
    return {"offered_per_s": round(sum(told) / len(told), 3), "client_late_most_ms": late}


def _failed(kept: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in kept:
        for why, times in one["failed"].items():
            found[why] = found.get(why, 0) + times
    return found


def texts(kept: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many texts are those of the reference, and where the first that are not part from it."""
    said = [
        (one["cell"], one["round"], int(prompt), word)
        for one in kept
        for prompt, word in zip(one["prompts"].split(), one["differ_at"].split(), strict=True)
        if word != "-"
    ]
    other = [where for where in said if where[3] != "="]
    return {
        "compared": len(said),
        "equal": len(said) - len(other),
        "prompts_that_differ": sorted({prompt for _, _, prompt, _ in other}),
        "first_differences": [
            {"cell": cell, "round": round_, "prompt": prompt, "character": int(word)}
            for cell, round_, prompt, word in other[:LISTED]
        ],
    }
