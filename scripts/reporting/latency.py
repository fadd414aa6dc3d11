"""Reads `latency` records: end-to-end ratios to the reference, and figures of each load."""

from typing import Any

from scripts.reporting.extent import less, reference, worth
from scripts.reporting.page import Section, Table, figure
from scripts.reporting.records import Found, Shape, Source, Unknown, part, summary, taken
from scripts.reporting.svg import Plot, axis, legend, marked

KIND = "latency"
PREFERRED = "c8"
STATISTIC = "mean"


class Ratio(Shape):
    """How many times faster, with its 95 % interval."""

    ratio: float
    low: float
    high: float


class Latency(Shape):
    """The summary of a record."""

    reference: str
    candidate: str
    cells: dict[str, dict[str, Any]]


def ratio(found: Found, latency: Latency, cell: str) -> Ratio | None:
    """End-to-end ratio in ``cell``; none where the record compares nobody.

    :raises Unknown: the record has another shape.
    """
    told = latency.cells.get(cell, {}).get("ratios")
    if not told:
        return None
    where = f"{found.name}: cells.{cell}.ratios"
    if STATISTIC not in told.get("e2e_ms", {}):
        raise Unknown(f"{where}: no e2e_ms.{STATISTIC}")
    return part(Ratio, told["e2e_ms"][STATISTIC], where)


def main_cell(latency: Latency) -> str:
    """Eight at once; else the busiest closed loop; else any."""
    if PREFERRED in latency.cells:
        return PREFERRED
    closed = [name for name in latency.cells if name.startswith("c")]
    return max(closed, key=lambda name: int(name[1:])) if closed else next(iter(latency.cells))


def told(cell: str) -> str:
    """A load in words: ``c8``, ``r2``."""
    return f"{cell[1:]} at once" if cell[0] == "c" else f"{cell[1:]} a second"


def section(source: Source) -> Section:
    """Ratios over concurrency, and the figures behind them."""
    made = Section(
        KIND,
        "Latency",
        "End-to-end latency of the reference over the variant's, on the same mixed prompts, "
        "interleaved in one run: above 1 the variant is faster. Bars are 95 % intervals.",
        "No record of kind latency yet: make eval-latency VARIANT=seq8-best.",
    )
    good, made.notes = taken(summary(Latency), source.of(KIND, reference, worth))
    made.records = [found for found, _ in good]
    for where in dict.fromkeys((found.place, one.reference) for found, one in good):
        own = [(found, one) for found, one in good if (found.place, one.reference) == where]
        name = f"{where[0]}, against {where[1]}"
        try:
            made.figures += _figure(name, own)
            made.tables.append(_table(name, own))
        except Unknown as error:
            made.notes.append(str(error))
    return made


def _figure(where: str, own: list[tuple[Found, Latency]]) -> list[str]:
    lines = []
    for found, latency in own:
        closed = sorted((c for c in latency.cells if c[0] == "c"), key=lambda c: int(c[1:]))
        pairs = [(int(c[1:]), r) for c in closed if (r := ratio(found, latency, c))]
        lines += [(marked_name(found), pairs)] if pairs else []
    if not lines:
        return []
    every = [r for _, pairs in lines for _, r in pairs]
    plot = Plot(
        f"Speed-up over concurrency, {where}",
        "; ".join(_words(name, pairs) for name, pairs in lines),
        marked("clients at once", [c for _, pairs in lines for c, _ in pairs], log=True),
        axis("times faster, end to end", [1.0, *(v for r in every for v in (r.low, r.high))]),
    )
    plot.level(1.0, "the reference")
    for series, (_, pairs) in enumerate(lines):
        at = [(plot.aside(c, series, len(lines)), r) for c, r in pairs]
        plot.path([(x, r.ratio) for x, r in at], series)
        for x, r in at:
            plot.point(x, r.ratio, series, spans=(None, (r.low, r.high)))
    return [figure(plot.title, plot.text(), legend([name for name, _ in lines]))]


def marked_name(found: Found) -> str:
    """The variant, and what its record lacks of a whole one."""
    lacks = less(found)
    return f"{found.variant} ({lacks})" if lacks else found.variant


def _words(name: str, pairs: list[tuple[int, Ratio]]) -> str:
    return f"{name}: " + ", ".join(f"{r.ratio:.2f} times at {c}" for c, r in pairs)


def _table(where: str, own: list[tuple[Found, Latency]]) -> Table:
    rows = []
    for found, latency in own:
        for cell, facts in latency.cells.items():
            figures, shown = facts.get(latency.candidate, {}), ratio(found, latency, cell)
            e2e, ttft = figures.get("e2e_ms") or {}, figures.get("ttft_ms") or {}
            texts = facts.get("texts") or {}
            rows.append(
                [
                    f"{marked_name(found)}, {told(cell)}",
                    f"{shown.ratio:.2f} ({shown.low:.2f} to {shown.high:.2f})" if shown else "",
                    *(_ms(e2e.get(p)) for p in ("p50", "p90", "p99")),
                    _ms(ttft.get("p50")),
                    _plain(figures.get("tokens_per_s")),
                    f"{texts['equal']} of {texts['compared']}" if texts.get("compared") else "",
                ]
            )
    head = ["variant, load", "times faster", "end to end p50, ms", "p90", "p99"]
    head += ["first token p50, ms", "tokens/s", "texts equal"]
    return Table(f"Latency, {where}", head, rows)


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"
