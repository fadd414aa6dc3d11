"""Draws the spectrum and the recall of an analysis."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from scripts.picture import keep


def draw(summary: dict[str, Any], path: Path) -> None:
    """An SVG, whole or not at all: singular values left; energy and recall by rank right."""
    keep(path, lambda: _figure(summary))


def _figure(summary: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.semilogy(range(1, summary["hidden"] + 1), summary["singular_values"])
    left.set(xlabel="direction", ylabel="singular value", title=summary["tensor"])
    ranks = [row["rank"] for row in summary["ranks"]]
    right.plot(ranks, [row["energy"] for row in summary["ranks"]], "k--", label="energy")
    for basis in ("head", "states") if summary["tested_tokens"] else ():
        for m in summary["ranks"][0][basis]["top1"]:
            kept = [row[basis]["top1"][m] for row in summary["ranks"]]
            style = "-o" if basis == "head" else ":s"
            right.plot(ranks, kept, style, ms=3, label=f"top-1 in {m} ({basis})")
    right.set(xlabel="rank", ylabel="share", ylim=(0, 1.02))
    right.legend(fontsize=7)
    return figure
