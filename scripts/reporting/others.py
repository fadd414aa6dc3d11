"""Records of kinds without a section of their own: that they are there, their first figures."""

from typing import Any

from experiments.pointers import numbers, spelled
from scripts.reporting.page import Section, Table
from scripts.reporting.records import Found, Source

MOST = 6


def section(source: Source, known: set[str]) -> Section:
    """The newest of each kind, one row each."""
    made = Section(
        "others",
        "Other records",
        "Kinds without a section of their own: the first figures of the newest record of each; "
        "the files hold the rest.",
        "There is none.",
    )
    kinds = sorted({found.record.kind for found in source.records} - known)
    rows = [_row(found) for kind in kinds for found in source.of(kind)]
    if rows:
        made.tables.append(Table("The newest of each kind", ["kind", "made", "figures"], rows))
    made.notes = [f"not read: {line}" for line in source.unread]
    return made


def _row(found: Found) -> list[str]:
    about = ", ".join(filter(None, (found.record.kind, found.variant, found.model)))
    return [about, f"{found.record.made:%Y-%m-%d %H:%M}", _figures(found.record.summary)]


def _figures(summary: dict[str, Any]) -> str:
    found = list(numbers(summary))
    shown = [f"{spelled(path)[1:]} {value:g}" for path, value in found[:MOST]]
    rest = len(found) - len(shown)
    return "; ".join(shown) + (f"; {rest} more" if rest > 0 else "")
