"""Plots as SVG text that takes its colours from the page, so that light and dark are one picture.

Pure and small: axes with round ticks, points with intervals, lines, stacked bars. Every picture has
a title and a description for screen readers; the numbers stand in a table beside it.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from html import escape

LEFT, RIGHT, TOP, BOTTOM = 80, 24, 16, 48
WIDTH, HEIGHT = 720, 380
SHAPES = 8
Span = tuple[float, float] | None
# Of the width: how far series of the same x stand apart, so that their intervals can be told apart.
APART = 0.008


@dataclass(frozen=True)
class Axis:
    """One direction: what it says, its ends in data, whether logarithmic, how ticks are written."""

    label: str
    low: float
    high: float
    log: bool = False
    tick: Callable[[float], str] = lambda value: f"{value:g}"
    marks: tuple[float, ...] = ()

    def at(self, value: float) -> float:
        """Where ``value`` lies, 0 to 1."""
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            return (math.log(max(value, self.low)) - low) / (high - low)
        return (value - self.low) / (self.high - self.low)

    def value(self, place: float) -> float:
        """What lies at ``place``, 0 to 1."""
        if self.log:
            return float(self.low * (self.high / self.low) ** place)
        return self.low + place * (self.high - self.low)

    def ticks(self) -> list[float]:
        """The marks that were asked for, else about six round numbers within the ends."""
        if self.marks:
            return list(self.marks)
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            every = [m * 10.0**p for p in powers for m in (1, 2, 5)]
            inside = [tick for tick in every if self.low * 0.999 <= tick <= self.high * 1.001]
            return inside if len(inside) <= 7 else [t for t in inside if f"{t:e}"[0] == "1"]
        step = _step(self.high - self.low)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def _step(span: float) -> float:
    rough = span / 6
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough - 1e-12)


def marked(label: str, values: Sequence[float], *, log: bool = False) -> Axis:
    """An axis of few known values, each with a tick of its own."""
    own = axis(label, values, log=log)
    return replace(own, marks=tuple(sorted(set(values))))


def axis(
    label: str,
    values: Sequence[float],
    *,
    zero: bool = False,
    log: bool = False,
    tick: Callable[[float], str] = lambda value: f"{value:g}",
) -> Axis:
    """An axis that holds ``values`` with some room; from zero if asked for."""
    low, high = min(values), max(values)
    if log:
        return Axis(label, low / 1.15, high * 1.15, log=True, tick=tick)
    low = min(low, 0.0) if zero else low
    room = (high - low or abs(high) or 1.0) * 0.08
    return Axis(label, low if zero and low == 0 else low - room, high + room, tick=tick)


@dataclass
class Plot:
    """What is drawn, in order; ``x`` and ``y`` translate data to places."""

    title: str
    description: str
    x: Axis
    y: Axis
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    under: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    labels: list[tuple[float, float, str]] = field(default_factory=list)

    def px(self, value: float) -> float:
        """Of a value of the x axis."""
        return self.left + self.x.at(value) * (self.width - self.left - RIGHT)

    def py(self, value: float) -> float:
        """Of a value of the y axis."""
        return self.height - BOTTOM - self.y.at(value) * (self.height - TOP - BOTTOM)

    def aside(self, x: float, series: int, count: int) -> float:
        """A value of x moved for the ``series``-th of ``count`` that share it."""
        place = self.x.at(x) + APART * (series - (count - 1) / 2)
        return self.x.value(place)

    def region(self, low: float, high: float, label: str) -> None:
        """A band of y values below the grid, named at its right end."""
        top, bottom = self.py(min(high, self.y.high)), self.py(max(low, self.y.low))
        wide = self.width - self.left - RIGHT
        end = self.width - RIGHT - 6
        self.under.append(
            f'<rect class="band" x="{self.left}" y="{top:.1f}" width="{wide}" '
            f'height="{bottom - top:.1f}"/>'
            f'<text class="note" x="{end}" y="{top + 14:.1f}" text-anchor="end">'
            f"{escape(label)}</text>"
        )

    def upright(self, x: float, label: str) -> None:
        """A line at a value of x."""
        at = self.px(x)
        self.parts.append(
            f'<line class="rule" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" '
            f'y2="{self.height - BOTTOM}"/><text class="note" x="{at + 4:.1f}" '
            f'y="{self.height - BOTTOM - 6}">{escape(label)}</text>'
        )

    def level(self, y: float, label: str) -> None:
        """A line at a value of y."""
        at = self.py(y)
        end = self.width - RIGHT
        self.parts.append(
            f'<line class="rule" x1="{self.left}" x2="{end}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="note" x="{end - 4}" y="{at - 5:.1f}" text-anchor="end">'
            f"{escape(label)}</text>"
        )

    def point(
        self,
        x: float,
        y: float,
        series: int,
        label: str = "",
        spans: tuple[Span, Span] = (None, None),
    ) -> None:
        """A point with its intervals of x and y; its colour and its form tell the series."""
        x_span, y_span = spans
        at, up = self.px(x), self.py(y)
        color = f"c{series % SHAPES}"
        if x_span:
            self._line(color, self.px(x_span[0]), up, self.px(x_span[1]), up)
        if y_span:
            self._line(color, at, self.py(y_span[0]), at, self.py(y_span[1]))
        self.parts.append(mark(at, up, series))
        if label:
            self.labels.append((at, up, label))

    def path(self, points: Sequence[tuple[float, float]], series: int) -> None:
        """A line through points."""
        places = " ".join(f"{self.px(x):.1f},{self.py(y):.1f}" for x, y in points)
        self.parts.append(f'<polyline class="line c{series % SHAPES}" points="{places}"/>')

    def _line(self, color: str, x1: float, y1: float, x2: float, y2: float) -> None:
        self.parts.append(
            f'<line class="span {color}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
        )

    def text(self) -> str:
        """The picture."""
        inner = "".join(self.under) + self._grid() + "".join(self.parts) + self._names()
        return picture(self.title, self.description, self.width, self.height, inner)

    def _grid(self) -> str:
        bottom, end = self.height - BOTTOM, self.width - RIGHT
        made = []
        for tick in self.x.ticks():
            at = self.px(tick)
            made.append(
                f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>'
            )
            made.append(words(at, bottom + 16, self.x.tick(tick), "middle"))
        for tick in self.y.ticks():
            at = self.py(tick)
            made.append(
                f'<line class="grid" x1="{self.left}" x2="{end}" y1="{at:.1f}" y2="{at:.1f}"/>'
            )
            made.append(words(self.left - 8, at + 4, self.y.tick(tick), "end"))
        middle = TOP + (bottom - TOP) / 2
        made.append(words((self.left + end) / 2, self.height - 10, self.x.label, "middle", "axis"))
        made.append(
            f'<text class="axis" text-anchor="middle" transform="translate(16 {middle:.0f}) '
            f'rotate(-90)">{escape(self.y.label)}</text>'
        )
        return "".join(made)

    def _names(self) -> str:
        """Labels of points: right of them, or left near the edge, moved down off each other."""
        made: list[str] = []
        taken: list[tuple[float, float, float]] = []
        for at, up, label in sorted(self.labels, key=lambda one: one[1]):
            wide = 7.2 * len(label) + 12
            left = at + wide > self.width - RIGHT
            begin = at - wide if left else at
            place = up - 8
            while any(abs(place - y) < 15 and begin < e and b < begin + wide for y, b, e in taken):
                place += 3
            taken.append((place, begin, begin + wide))
            anchor, x = ("end", at - 9) if left else ("start", at + 9)
            made.append(words(x, place, label, anchor, "label"))
        return "".join(made)


def picture(title: str, description: str, width: int, height: int, inner: str) -> str:
    """An SVG that says what it is."""
    name = f"p{zlib.crc32(f'{title} {description}'.encode()):08x}"
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-labelledby="{name}t {name}d"><title id="{name}t">{escape(title)}</title>'
        f'<desc id="{name}d">{escape(description)}</desc>{inner}</svg>'
    )


def words(x: float, y: float, text: str, anchor: str, cls: str = "tick") -> str:
    return (
        f'<text class="{cls}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def mark(x: float, y: float, series: int) -> str:
    color = f"c{series % SHAPES}"
    form = series % 4
    if form == 0:
        return f'<circle class="mark {color}" cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>'
    if form == 1:
        return (
            f'<rect class="mark {color}" x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10"/>'
        )
    ends = {2: ((0, -6.5), (6, 5), (-6, 5)), 3: ((0, -7), (7, 0), (0, 7), (-7, 0))}[form]
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in ends)
    return f'<polygon class="mark {color}" points="{points}"/>'


def legend(names: Sequence[str]) -> str:
    """Names beside their marks, as HTML."""
    items = []
    for series, name in enumerate(names):
        key = f'<svg viewBox="0 0 18 18" class="key" aria-hidden="true">{mark(9, 9, series)}</svg>'
        items.append(f"<li>{key}{escape(name)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'
