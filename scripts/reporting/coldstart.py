"""Reads `coldstart` records: seconds from exec to the first token, phase by phase."""

from typing import Any

from scripts.reporting.page import Section, Table, figure
from scripts.reporting.records import Found, Shape, Source, Unknown, named, taken
from scripts.reporting.rows import bar_legend, bars

KIND = "coldstart"
LAST = "first token"
SHORT = 0.25


class Mode(Shape):
    """One kind of start."""

    median: float
    min: float
    max: float
    phases_median: dict[str, float]
    compiled: tuple[int, ...] = ()


def section(source: Source) -> Section:
    """Bars on one scale, then the short ones again on their own."""
    made = Section(
        KIND,
        "Cold start",
        "Exec to first token, medians; what no phase claims went into the first token.",
        "No record of kind coldstart yet: make eval-coldstart VARIANT=seq8-best.",
    )
    good, made.notes = taken(modes, source.of(KIND))
    made.records = [found for found, _ in good]
    for found, own in good:
        rows = [(name, mode.median, parts(mode)) for name, mode in own.items()]
        name = ", ".join(filter(None, (found.variant, found.model)))
        made.figures.append(_picture(f"Where a start goes, {name}", rows))
        longest = max(mode.median for mode in own.values())
        short = [row for row in rows if own[row[0]].median < SHORT * longest]
        if short and len(short) < len(rows):
            made.figures.append(_picture(f"The short ones again, {name}", short))
        made.tables.append(_table(f"Cold start, {name}", own))
    return made


def modes(found: Found) -> dict[str, Mode]:
    """The kinds of start in a record, in its order.

    :raises Unknown: there is none.
    """
    told: dict[str, Any] = found.record.summary
    own = {
        name: facts
        for name, facts in told.items()
        if isinstance(facts, dict) and "phases_median" in facts
    }
    if not own:
        raise Unknown(f"{found.name}: no kind of start with phases_median")
    return named(Mode, own, found.name)


def parts(mode: Mode) -> list[tuple[str, float]]:
    """Phases with their seconds; the rest is the first token's."""
    rest = mode.median - sum(mode.phases_median.values())
    return [*mode.phases_median.items(), (LAST, max(rest, 0.0))]


def _picture(title: str, rows: list[tuple[str, float, list[tuple[str, float]]]]) -> str:
    words = "; ".join(f"{name}: {said:.1f} s" for name, said, _ in rows)
    names = list(dict.fromkeys(name for _, _, parts in rows for name, _ in parts))
    picture = bars(title, words, rows, "seconds")
    return figure(title, picture, bar_legend(names))


def _table(caption: str, own: dict[str, Mode]) -> Table:
    seconds = {name: dict(parts(mode)) for name, mode in own.items()}
    phases = dict.fromkeys(phase for told in seconds.values() for phase in told)
    rows = [
        [phase, *(f"{told[phase]:.2f}" if phase in told else "" for told in seconds.values())]
        for phase in phases
    ]
    spread = [f"{mode.median:.1f} ({mode.min:.1f} to {mode.max:.1f})" for mode in own.values()]
    compiled = [", ".join(map(str, mode.compiled)) for mode in own.values()]
    rows += [["all (least to most)", *spread], ["graphs compiled", *compiled]]
    return Table(f"{caption}, seconds", ["phase", *own], rows)
