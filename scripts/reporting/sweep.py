"""Reads `k-sweep` records: acceptance and speed of K drafts a step."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from scripts.reporting.extent import less, worth
from scripts.reporting.latency import Ratio, told
from scripts.reporting.page import Section, Table, figure
from scripts.reporting.records import Found, Shape, Source, summary, taken
from scripts.reporting.svg import Plot, axis, legend, marked

KIND = "k-sweep"


@dataclass(frozen=True)
class Point:
    """A figure at one K, and the ends of its interval where it has one."""

    k: int
    value: float
    span: tuple[float, float] | None = None


class Speed(Shape):
    """At one concurrency: one engine after the other, as it was measured first."""

    tokens_per_second: float


class Acceptance(Shape):
    """Of all prompts."""

    mean_acceptance_length: float
    low: float | None = None
    high: float | None = None


class Cell(Shape):
    """At one concurrency, side by side with K = 0."""

    ratio: Ratio
    tokens_per_s: float


class Entry(Shape):
    """One K; without drafts there is no acceptance."""

    k: int
    acceptance: Acceptance | None = None
    concurrency: dict[str, Speed] = Field(default_factory=dict)
    cells: dict[str, Cell] = Field(default_factory=dict)

    @property
    def length(self) -> Point:
        """Tokens a step."""
        if not self.acceptance:
            return Point(self.k, 1.0)
        own = self.acceptance
        span = None if own.low is None or own.high is None else (own.low, own.high)
        return Point(self.k, own.mean_acceptance_length, span)


class Sweep(Shape):
    """The summary of a record: one K picked in all, or one at each concurrency."""

    picked: int | dict[str, int]
    rule: str
    by_k: list[Entry]


Lines = dict[str, list[Point]]


def section(source: Source) -> Section:
    """Speed over K for each concurrency, and tokens a step."""
    made = Section(
        KIND,
        "How many drafts a step",
        "Speed over that without drafts, and tokens that a step yields, for each K. Bars are 95 % "
        "intervals; a record of one engine after the other has none, and the machine is in it.",
        "No record of kind k-sweep yet: make sweep-k VARIANT=seq8-best.",
    )
    good, made.notes = taken(summary(Sweep), source.of(KIND, worth=worth))
    for found, sweep in good:
        made.records.append(found)
        made.figures += [_speed(found, sweep), _length(found, sweep)]
        made.tables.append(_table(found, sweep))
    return made


def _name(found: Found) -> str:
    return ", ".join(filter(None, (found.variant, found.model, found.target, less(found))))


def _speed(found: Found, sweep: Sweep) -> str:
    beside = any(entry.cells for entry in sweep.by_k)
    y = "end to end, times as fast as K = 0" if beside else "tokens/s over K = 0"
    lines = _beside(sweep) if beside else _one_after_the_other(sweep)
    return _lines(f"Speed over K, {_name(found)}", y, lines, sweep)


def _beside(sweep: Sweep) -> Lines:
    cells = dict.fromkeys(cell for entry in sweep.by_k for cell in entry.cells)
    return {
        told(cell): [
            Point(entry.k, ratio.ratio, (ratio.low, ratio.high) if entry.k else None)
            for entry in sweep.by_k
            if cell in entry.cells and (ratio := entry.cells[cell].ratio)
        ]
        for cell in cells
    }


def _one_after_the_other(sweep: Sweep) -> Lines:
    none = next((entry for entry in sweep.by_k if entry.k == 0), sweep.by_k[0])
    return {
        f"{clients} at once": [
            Point(entry.k, entry.concurrency[clients].tokens_per_second / base.tokens_per_second)
            for entry in sweep.by_k
            if clients in entry.concurrency
        ]
        for clients, base in none.concurrency.items()
    }


def _length(found: Found, sweep: Sweep) -> str:
    title = f"Tokens a step over K, {_name(found)}"
    points = [entry.length for entry in sweep.by_k]
    return _lines(title, "tokens a step", {"all prompts": points}, sweep)


def _lines(title: str, y: str, lines: Lines, sweep: Sweep) -> str:
    every = [point for points in lines.values() for point in points]
    words = "; ".join(
        f"{name}: " + ", ".join(f"{one.value:.2f} at {one.k}" for one in points)
        for name, points in lines.items()
    )
    ends = [end for one in every for end in (one.value, *(one.span or ()))]
    x = marked("drafts a step, K", [float(one.k) for one in every])
    plot = Plot(title, words, x, axis(y, [1.0, *ends]))
    for k, label in _picks(sweep).items():
        plot.upright(k, label)
    plot.level(1.0, "no drafts")
    for series, points in enumerate(lines.values()):
        at = [(plot.aside(one.k, series, len(lines)), one) for one in points]
        plot.path([(beside, one.value) for beside, one in at], series)
        for beside, one in at:
            plot.point(beside, one.value, series, spans=(None, one.span))
    return figure(title, plot.text(), legend(list(lines)))


def _picks(sweep: Sweep) -> dict[int, str]:
    """Each K that is picked, and where."""
    if isinstance(sweep.picked, int):
        return {sweep.picked: "picked"}
    found: dict[int, list[str]] = {}
    for cell, k in sweep.picked.items():
        found.setdefault(k, []).append(cell.removeprefix("c"))
    if len(found) == 1:
        return dict.fromkeys(found, "picked")
    return {k: f"picked at {listed(clients)}" for k, clients in found.items()}


def listed(words: Sequence[str]) -> str:
    """1, 4 and 8."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _table(found: Found, sweep: Sweep) -> Table:
    picks = "; ".join(f"K = {k} is {label}" for k, label in _picks(sweep).items())
    caption = f"Drafts a step, {_name(found)}. {picks}: {sweep.rule}."
    cells = dict.fromkeys(cell for entry in sweep.by_k for cell in entry.cells)
    clients = dict.fromkeys(c for entry in sweep.by_k for c in entry.concurrency)
    head = ["K", "tokens a step"]
    head += [f"{what}, {told(c)}" for c in cells for what in ("times K = 0", "tokens/s")]
    head += [f"tokens/s, {c} at once" for c in clients]
    rows = []
    for entry in sweep.by_k:
        sides = [words for c in cells for words in _side(entry, c)]
        rates = [
            f"{entry.concurrency[c].tokens_per_second:.1f}" if c in entry.concurrency else ""
            for c in clients
        ]
        rows.append([str(entry.k), f"{entry.length.value:.2f}", *sides, *rates])
    return Table(caption, head, rows)


def _side(entry: Entry, cell: str) -> tuple[str, str]:
    if cell not in entry.cells:
        return "", ""
    one = entry.cells[cell]
    span = f" ({one.ratio.low:.2f} to {one.ratio.high:.2f})" if entry.k else ""
    return f"{one.ratio.ratio:.2f}{span}", f"{one.tokens_per_s:.1f}"
