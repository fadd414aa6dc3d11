"""A summary as tables for a person."""

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from rich import box
from rich.table import Table

from scripts.gateway.systems import OURS

MIB = 2**20
NAMES = {"whole": "whole", "first_chunk": "first", "gap": "gap"}
ENDS = ("p50", "p99")


def tables(summary: Mapping[str, Any]) -> Iterator[Table]:
    """Durations, throughput, streams held, goals."""
    yield waiting(summary["cells"])
    yield throughput(summary["cells"])
    if held := summary.get("idle"):
        yield idle(held)
    yield goals(summary["goals"])


def _table(title: str) -> Table:
    # Of the widest, 80 columns hold all.
    return Table(title=title, box=box.SIMPLE, pad_edge=False, collapse_padding=True)


def waiting(cells: Mapping[str, Any]) -> Table:
    """Durations of each cell and system."""
    made = _table(title="milliseconds; added: its quantiles less those of direct access (95 %)")
    made.add_column("load", no_wrap=True)
    for name in ("p50", "p99", "added p50", "added p99"):
        made.add_column(name, justify="right", no_wrap=True)
    for cell, entry in cells.items():
        made.add_row(cell, style="bold")
        for duration, told in NAMES.items():
            for system, found in entry["systems"].items():
                if quantiles := found["milliseconds"].get(duration):
                    ends = (plain(quantiles[label]) for label in ENDS)
                    added = found.get("added_ms", {}).get(duration, {})
                    more = (interval(added.get(label)) for label in ENDS)
                    made.add_row(f"  {system}, {told}", *ends, *more)
        made.add_section()
    return made


def throughput(cells: Mapping[str, Any]) -> Table:
    """Answers of each cell and system, and what they cost."""
    made = _table(title="answers a second, and for a second of a core that a system took (95 %)")
    made.add_column("load", no_wrap=True)
    for name in ("whole", "a second", "a core-second", "× litellm"):
        made.add_column(name, justify="right", no_wrap=True)
    for cell, entry in cells.items():
        made.add_row(cell, style="bold")
        for system, found in entry["systems"].items():
            times = entry.get("per_core_times_litellm") if system == OURS else None
            made.add_row(
                f"  {system}",
                f"{found['whole']:,} of {found['sent']:,}",
                plain(found["per_second"]["point"]),
                plain(found.get("per_core_second", {}).get("point")),
                interval(times),
            )
            for kind, count in found["failed"].items():
                made.add_row(f"    {count:,} {kind}")
        made.add_section()
    return made


def idle(held: Mapping[str, Any]) -> Table:
    """Streams that were held open."""
    made = _table(title=f"{held['streams']:,} streams of an event a second")
    for name in ("held at once", "ended whole", "MiB before", "MiB with", "KiB a stream", "a core"):
        made.add_column(name, justify="right")
    made.add_row(
        f"{held['at_once']:,}",
        f"{held['whole']:,} of {held['sent']:,}",
        f"{held['before_bytes'] / MIB:.1f}",
        f"{held['held_bytes'] / MIB:.1f}",
        f"{held['bytes_a_stream'] / 1024:.1f}",
        f"{held['core_share']:.1%}",
    )
    return made


def goals(found: list[Mapping[str, Any]]) -> Table:
    """What was wanted, and whether it was met."""
    made = _table(title="goals")
    for name in ("load", "wanted", "measured (95 %)", "finding"):
        made.add_column(name, no_wrap=True)
    for cell, each in groupby(found, key=lambda goal: goal["cell"]):
        made.add_row(cell, style="bold")
        for goal in each:
            wanted = f"{goal['sign']} {goal['bound']:g}"
            made.add_row(f"  {goal['what']}", wanted, interval(goal), goal["finding"])
    return made


def interval(told: Mapping[str, float] | None) -> str:
    """A figure and the ends of its interval."""
    if not told:
        return ""
    ends = (plain(told[name]) for name in ("low", "high"))
    return f"{plain(told['point'])} [{', '.join(ends)}]"


def plain(value: float | None) -> str:
    """Three figures or so."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
