"""A summary as a table for a person."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

METRICS = {
    "ttft_ms": "TTFT ms",
    "itl_ms": "ITL ms/token",
    "gap_ms": "chunk gap ms",
    "e2e_ms": "end to end ms",
}


# The last arrival's own time counts as served, so a server that keeps up serves a little less.
KEPT_UP = 0.9


def table(summary: Mapping[str, Any]) -> Table:
    """One candidate beside its reference: a row for each cell and metric."""
    reference, candidate = summary["reference"], summary["candidate"]
    made = Table(title=f"{candidate} against {reference}; × above 1: {candidate} is faster")
    for name in ("load", "metric"):
        made.add_column(name)
    for name in (reference, candidate):
        made.add_column(f"{name}\np50 / p90 / p99", justify="right")
    for name in ("× mean (95 %)", "× p50 (95 %)"):
        made.add_column(name, justify="right")
    for label, cell in summary["cells"].items():
        for row in rows(cell, reference, candidate):
            made.add_row(label, *row)
        made.add_section()
    return made


def rows(cell: Mapping[str, Any], reference: str, candidate: str) -> list[Sequence[str]]:
    """The rows of one cell."""
    sides = [cell[name] for name in (reference, candidate)]
    found: list[Sequence[str]] = []
    ratios = cell.get("ratios", {})
    mark = "†" if cell.get("pairs_left_out") else ""
    for metric, told in METRICS.items():
        of = ratios.get(metric, {})
        found.append(
            (
                told,
                *(spread(s.get(metric)) for s in sides),
                times(of.get("mean"), mark),
                times(of.get("p50"), mark),
            )
        )
    # What arrives at a rate is served at that rate: nothing to be faster in.
    arrive = any("offered_per_s" in side for side in sides)
    for metric, told in (("tokens_per_s", "tokens/s"), ("requests_per_s", "requests/s")):
        both = (plain(side.get(metric)) for side in sides)
        found.append((told, *both, "" if arrive else times(ratios.get(metric), mark), ""))
    return found


def spread(of: Mapping[str, float | None] | None) -> str:
    """Three percentiles."""
    return " / ".join(plain(of[name]) for name in ("p50", "p90", "p99")) if of else "–"


def plain(value: float | None) -> str:
    """Three or four figures."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def times(of: Mapping[str, float] | None, mark: str = "") -> str:
    """A ratio and its interval."""
    return f"{of['ratio']:.2f}{mark} ({of['low']:.2f}–{of['high']:.2f})" if of else ""


def comparison(summaries: Sequence[Mapping[str, Any]]) -> Table:
    """Several candidates: end-to-end latency and token rate of each, by load."""
    cells = list(dict.fromkeys(label for one in summaries for label in one["cells"]))
    made = Table(title="mean end-to-end latency: × the reference's speed (95 %); tokens/s below")
    made.add_column("variant")
    made.add_column("reference")
    for label in cells:
        made.add_column(label, justify="right")
    made.add_column("same text", justify="right")
    for one in summaries:
        name, texts = one["candidate"], one["texts"]
        figures = [compared(one["cells"].get(label, {}), name) for label in cells]
        same = f"{texts['equal']}/{texts['compared']}"
        made.add_row(name, one["reference"], *figures, same)
    return made


def compared(cell: Mapping[str, Any], name: str) -> str:
    """One cell of the comparison."""
    if name not in cell:
        return "–"
    ratio = times(cell.get("ratios", {}).get("e2e_ms", {}).get("mean")) or "1"
    return f"{ratio}\n{plain(cell[name].get('tokens_per_s'))}"


def notes(summary: Mapping[str, Any]) -> list[str]:
    """What a reader of the table must know besides."""
    texts = summary["texts"]
    lines = [
        f"greedy text: {texts['equal']} of {texts['compared']} requests as {summary['reference']}"
    ]
    if texts["first_differences"]:
        where = texts["first_differences"][0]
        lines[0] += (
            f"; prompts that differ: {texts['prompts_that_differ']}, the first at character "
            f"{where['character']} of prompt {where['prompt']} ({where['cell']})"
        )
    for label, cell in summary["cells"].items():
        if out := cell.get("pairs_left_out"):
            lines.append(f"† {label}: {out} pairs are in no ratio: one of the two failed")
        for name in dict.fromkeys((summary["reference"], summary["candidate"])):
            side = cell.get(name, {})
            if failures := side.get("failures"):
                lines.append(f"failed, {label}, {name}: {failures}")
            offered, served = side.get("offered_per_s"), side.get("requests_per_s")
            if offered and served and served < KEPT_UP * offered:
                lines.append(
                    f"{label}, {name}: {offered:g} a second came, {served:g} were served: its "
                    "queue grew, and its latencies with the length of the run"
                )
    return lines
