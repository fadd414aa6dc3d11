"""Plots of named rows on one scale: stacked bars, dots. See :mod:`scripts.reporting.svg`."""

from collections.abc import Sequence
from html import escape

from scripts.reporting.svg import BOTTOM, RIGHT, TOP, WIDTH, Axis, Plot, mark, picture, words


def dots(
    title: str, description: str, rows: Sequence[tuple[str, Sequence[float | None]]], x: Axis
) -> str:
    """Rows of points on one scale: a name, and a value of each series, or none."""
    high, left = 24, 150
    height = TOP + high * len(rows) + BOTTOM
    plot = Plot(title, description, x, Axis("", 0, 1), height=height, left=left)
    made = [words((left + WIDTH - RIGHT) / 2, height - 10, x.label, "middle", "axis")]
    for tick in x.ticks():
        at = plot.px(tick)
        made.append(_vertical(at, height))
        made.append(words(at, height - BOTTOM + 16, x.tick(tick), "middle"))
    for row, (label, values) in enumerate(rows):
        at = TOP + (row + 0.5) * high
        made.append(words(left - 8, at + 4, label, "end", "label"))
        made += [mark(plot.px(v), at, n) for n, v in enumerate(values) if v is not None]
    return picture(title, description, WIDTH, height, "".join(made))


def _vertical(at: float, height: int) -> str:
    """A line of the grid."""
    return f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>'


def bars(
    title: str,
    description: str,
    rows: Sequence[tuple[str, float, Sequence[tuple[str, float]]]],
    unit: str,
) -> str:
    """Stacked horizontal bars on one scale: name, what is said of the whole, parts by name."""
    names = list(dict.fromkeys(name for _, _, parts in rows for name, _ in parts))
    end = max(sum(value for _, value in parts) for _, _, parts in rows) * 1.12
    left, high = 110, 34
    x = Axis(unit, 0.0, end)
    height = TOP + high * len(rows) + BOTTOM
    plot = Plot(title, description, x, Axis("", 0, 1), height=height, left=left)
    made = []
    for tick in x.ticks():
        at = plot.px(tick)
        made.append(_vertical(at, height))
        made.append(words(at, height - BOTTOM + 16, f"{tick:g}", "middle"))
    made.append(words((left + WIDTH - RIGHT) / 2, height - 10, unit, "middle", "axis"))
    for row, (label, said, parts) in enumerate(rows):
        top = TOP + row * high
        made.append(words(left - 8, top + high / 2 + 4, label, "end", "label"))
        made += _stacked(
            plot, [(names.index(n), n, value) for n, value in parts], top + 5, high - 10
        )
        whole = sum(value for _, value in parts)
        made.append(words(plot.px(whole) + 6, top + high / 2 + 4, f"{said:.1f}", "start", "label"))
    return picture(title, description, WIDTH, height, "".join(made))


def _stacked(
    plot: Plot, parts: Sequence[tuple[int, str, float]], top: float, high: float
) -> list[str]:
    """Rectangles of ``(colour, name, value)``, one behind the other."""
    made = []
    begin = 0.0
    for color, name, value in parts:
        x, wide = plot.px(begin), plot.px(begin + value) - plot.px(begin)
        made.append(
            f'<rect class="bar b{color % 12}" x="{x:.1f}" y="{top:.1f}" width="{max(wide, 0):.1f}" '
            f'height="{high:.1f}"><title>{escape(name)}: {value:.2f}</title></rect>'
        )
        begin += value
    return made


def bar_legend(names: Sequence[str]) -> str:
    """Names beside the colours of bars, as HTML."""
    items = [
        f'<li><svg viewBox="0 0 18 18" class="key" aria-hidden="true">'
        f'<rect class="bar b{n % 12}" x="2" y="2" width="14" height="14"/></svg>{escape(name)}</li>'
        for n, name in enumerate(names)
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'
