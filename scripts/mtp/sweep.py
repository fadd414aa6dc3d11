"""What a sweep over K says: figures of each K, what a stated rule picks, table and picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scripts.intervals import bootstrap
from scripts.latency.results import texts
from scripts.latency.samples import unpack
from scripts.latency.statistics import figures, ratios

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RULE = (
    "at each concurrency the least K that no other beats; one K beats another where the whole 95 % "
    "interval of how many times faster it is lies above 1: the other's mean end-to-end latency by "
    "its own, the same prompts in the same rounds. Two that were not alive together are compared "
    "in what each is over K=0, whose intervals may not meet"
)
KEPT = ("round", "cell", "variant", "turn", "others", "wall_s", "prompts", "differ_at")
COLUMNS = ("ttft_ms", "latency_ms", "tokens", "chunks", "failed")
COUNTED = ("drafts", "drafted_tokens", "accepted_tokens", "generation_tokens", "preemptions")
# Apart on the axis of K, so that bars do not hide each other.
BESIDE = 0.08
Ratio = Mapping[str, float]


def name(k: int) -> str:
    """What the engine with `k` drafts is called."""
    return f"k{k}"


def number(variant: str) -> int:
    """Its K."""
    return int(variant.removeprefix("k"))


def slim(sample: Mapping[str, Any], group: int) -> dict[str, Any]:
    """What is kept of a sample: no gaps between chunks, and of the counters what drafts move."""
    kept = {key: sample[key] for key in (*KEPT, *COLUMNS)}
    engine = {key: sample["engine"][key] for key in COUNTED if key in sample["engine"]}
    return {"group": group, **kept, "engine": engine}


def summary(samples: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """Figures of each K in order, and the picks.

    :raises ValueError: K = 0 was not measured.
    """
    ks = sorted({number(one["variant"]) for one in samples})
    if not ks or ks[0]:
        raise ValueError("no K = 0 among the samples: there is nothing to compare with")
    by_k = [_entry(samples, k, seed) for k in ks]
    for cell in by_k[0]["cells"]:
        of = {entry["k"]: entry["cells"][cell] for entry in by_k}
        taken = {k: _taken(samples, k, cell) for k in of}
        for k, one in of.items():
            others = (other for other in of if other != k)
            one["beaten_by"] = [other for other in others if _beats(other, k, of, taken, seed)]
    return {"picked": picks(by_k), "rule": RULE, "by_k": by_k}


def _entry(samples: Sequence[Mapping[str, Any]], k: int, seed: int) -> dict[str, Any]:
    own = [one for one in samples if one["variant"] == name(k)]
    cells = list(dict.fromkeys(one["cell"] for one in own))
    return {
        "k": k,
        "acceptance": _acceptance(own) if k else None,
        "cells": {cell: _cell(samples, k, cell, seed) for cell in cells},
        "texts": texts(own),
    }


def _acceptance(own: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Tokens a step, 1 + accepted / steps, over all samples; they are what is resampled."""
    rows = [[one["engine"][key] for key in ("accepted_tokens", "drafts")] for one in own]
    columns = np.array(rows, dtype=np.float64)
    length = bootstrap(columns, lambda sums: 1 + sums[:, 0] / sums[:, 1])
    drafted = sum(one["engine"]["drafted_tokens"] for one in own)
    return {
        "mean_acceptance_length": round(length.point, 3),
        "low": round(length.low, 3),
        "high": round(length.high, 3),
        "steps": int(columns[:, 1].sum()),
        "draft_acceptance_rate": round(float(columns[:, 0].sum()) / drafted, 3),
    }


def _cell(samples: Sequence[Mapping[str, Any]], k: int, cell: str, seed: int) -> dict[str, Any]:
    own, base = (_taken(samples, one, cell) for one in (k, 0))
    told = figures([unpack(one) for one in own])
    base, own = _beside(base, own)
    ratio = _ratio(base, own, seed) if k else {"ratio": 1.0, "low": 1.0, "high": 1.0}
    kept = ("tokens_per_s", "e2e_ms", "ttft_ms", "itl_ms", "requests", "failed")
    return {"ratio": ratio, **{key: told[key] for key in kept}}


def _taken(samples: Sequence[Mapping[str, Any]], k: int, cell: str) -> list[Mapping[str, Any]]:
    """Samples of one K in one cell."""
    return [one for one in samples if one["cell"] == cell and one["variant"] == name(k)]


def _beside(*each: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Of each K's samples those that were taken while all of them were alive: K = 0 is measured
    anew beside each group.
    """
    groups = set.intersection(*({one["group"] for one in samples} for samples in each))
    return [[one for one in samples if one["group"] in groups] for samples in each]


def _beats(
    one: int,
    other: int,
    cells: Mapping[int, Mapping[str, Any]],
    taken: Mapping[int, Sequence[Mapping[str, Any]]],
    seed: int,
) -> bool:
    """Whether `one` is surely faster than `other` in a cell, as ``RULE`` has it."""
    slow, fast = _beside(taken[other], taken[one])
    if slow:
        return _ratio(slow, fast, seed)["low"] > 1
    low, high = cells[one]["ratio"]["low"], cells[other]["ratio"]["high"]
    return bool(low > high)


def _ratio(
    base: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]], seed: int
) -> dict[str, float]:
    slow, fast = ([unpack(one) for one in side] for side in (base, own))
    # Means alone: of each pair of K, percentiles of every draw would be most of the work.
    found = ratios(slow, fast, seed, statistics={"mean": np.mean})
    ratio: dict[str, float] = found["e2e_ms"]["mean"]
    return ratio


def picks(by_k: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The K that the rule picks in each cell."""
    cells = by_k[0]["cells"]
    return {cell: pick({one["k"]: one["cells"][cell] for one in by_k}) for cell in cells}


def pick(of: Mapping[int, Mapping[str, Any]]) -> int:
    """The least K that no other beats; should each be beaten by some other, the fastest."""
    unbeaten = [k for k, one in of.items() if not one["beaten_by"]]
    return min(unbeaten, default=max(of, key=lambda k: of[k]["ratio"]["ratio"]))


def told(cell: str) -> str:
    """A cell for a person."""
    return f"{cell.removeprefix('c')} at once"


def report(found: Mapping[str, Any]) -> str:
    """For a person."""
    cells = list(found["by_k"][0]["cells"])
    lines = [
        "  K  tokens a step" + "".join(f"{told(c) + ': ×K=0 (95 %), tok/s':>36}" for c in cells)
    ]
    for entry in found["by_k"]:
        length = entry["acceptance"]["mean_acceptance_length"] if entry["k"] else 1.0
        words = "".join(f"{_words(entry['cells'][cell]):>36}" for cell in cells)
        lines.append(f"{entry['k']:3} {length:14.3f}{words}")
    every = [entry["texts"] for entry in found["by_k"] if entry["k"]]
    same, asked = (sum(one[key] for one in every) for key in ("equal", "compared"))
    picked = ", ".join(f"{told(cell)} K={k}" for cell, k in found["picked"].items())
    lines += [f"greedy text: {same} of {asked} requests as K=0", f"picked: {picked}"]
    lines += [f"left out: {one} ({why})" for one, why in found.get("left_out", {}).items()]
    return "\n".join([*lines, f"the rule: {found['rule']}"])


def _words(one: Mapping[str, Any]) -> str:
    of = one["ratio"]
    return f"{of['ratio']:.2f} ({of['low']:.2f}–{of['high']:.2f}) {one['tokens_per_s']:7.1f}"


def draw(told_of: Mapping[str, Any], title: str) -> Figure:
    """Speed on the left, acceptance on the right, over K."""
    # Summing a record up again, as `make check` does, has no need of it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_speed(left, told_of)
    _draw_acceptance(right, told_of)
    figure.suptitle(title)
    return figure


def _draw_speed(axes: Axes, told_of: Mapping[str, Any]) -> None:
    entries = told_of["by_k"]
    ks = [entry["k"] for entry in entries]
    cells = list(entries[0]["cells"])
    for place, cell in enumerate(cells):
        shift = BESIDE * (place - (len(cells) - 1) / 2)
        of = {
            entry["k"] + shift: _ends(entry["cells"][cell]["ratio"], "ratio") for entry in entries
        }
        picked = told_of["picked"][cell]
        _bars(axes, of, f"{told(cell)}: K={picked} picked", f"C{place}")
        at = (picked + shift, of[picked + shift][0])
        axes.plot(*at, "o", markersize=12, markerfacecolor="none", markeredgecolor=f"C{place}")
    axes.axhline(1, color="0.6", linewidth=0.8)
    axes.set(
        xlabel="drafts a step, K (ring: picked)",
        ylabel="end to end, times as fast as K=0 (95 %)",
        xticks=ks,
    )
    axes.legend(frameon=False, fontsize=8)


def _draw_acceptance(axes: Axes, told_of: Mapping[str, Any]) -> None:
    entries = [entry for entry in told_of["by_k"] if entry["k"]]
    point = "mean_acceptance_length"
    of = {entry["k"]: _ends(entry["acceptance"], point) for entry in entries}
    _bars(axes, of, "measured (95 %)", "C4")
    ks = [0, *of]
    axes.plot(ks, [1 + k for k in ks], color="0.6", linewidth=0.8, label="all accepted")
    longest = max((high for *_, high in of.values()), default=1.0)
    axes.set(xlabel="drafts a step, K", ylabel="tokens a step", xticks=ks, ylim=(1, longest + 0.5))
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def _ends(of: Mapping[str, float], point: str) -> tuple[float, float, float]:
    return of[point], of["low"], of["high"]


def _bars(axes: Axes, of: Mapping[Any, tuple[float, float, float]], label: str, color: str) -> None:
    """Points over K, joined, each with the ends of its interval."""
    points, lows, highs = np.array(list(of.values())).T
    axes.errorbar(
        list(of),
        points,
        yerr=[points - lows, highs - points],
        marker="o",
        markersize=4,
        linewidth=1,
        capsize=2,
        label=label,
        color=color,
    )
