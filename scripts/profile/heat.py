"""Draws a matrix of batch x context as heat, one panel for each K."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.picture import keep

SHOWN = (("ms_per_step", "ms a step"), ("tokens_per_second", "tokens/s"))


def draw(cells: Sequence[dict[str, Any]], path: Path) -> None:
    """An SVG: a column of panels for each K, milliseconds above, tokens per second below."""
    keep(path, lambda: _figure(cells))


def _figure(cells: Sequence[dict[str, Any]]) -> Figure:
    ks = sorted({cell["k"] for cell in cells})
    figure = Figure(figsize=(3.2 * len(ks) + 0.8, 5.2), layout="constrained")
    panels = figure.subplots(len(SHOWN), len(ks), squeeze=False)
    for row, (name, title) in enumerate(SHOWN):
        most = max(cell[name] for cell in cells)
        for column, k in enumerate(ks):
            mine = [cell for cell in cells if cell["k"] == k]
            _panel(panels[row, column], mine, name, most, f"K = {k}: {title}")
    return figure


def _panel(axes: Axes, cells: Sequence[dict[str, Any]], name: str, most: float, title: str) -> None:
    batches = sorted({cell["batch"] for cell in cells})
    contexts = sorted({cell["context"] for cell in cells})
    at = {(cell["batch"], cell["context"]): cell[name] for cell in cells}
    values = [[at[batch, context] for context in contexts] for batch in batches]
    # Cells as shapes, not as an embedded bitmap.
    axes.pcolormesh(values, cmap="YlOrRd", vmin=0, vmax=most, edgecolors="white")
    axes.set_xticks([i + 0.5 for i in range(len(contexts))], [str(c) for c in contexts])
    axes.set_yticks([i + 0.5 for i in range(len(batches))], [str(b) for b in batches])
    axes.set(xlabel="context", ylabel="batch", title=title)
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            dark = value > most * 0.6
            colour = "white" if dark else "black"
            axes.text(x + 0.5, y + 0.5, f"{value:.4g}", ha="center", va="center", color=colour)
