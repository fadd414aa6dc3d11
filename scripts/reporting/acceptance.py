"""Reads `acceptance` records: which share of drafts is accepted at each position."""

from typing import Any

from scripts.reporting.page import Section, Table, figure
from scripts.reporting.records import Found, Shape, Source, Unknown, named, taken
from scripts.reporting.svg import Plot, axis, legend, marked

KIND = "acceptance"


class Group(Shape):
    """Prompts of one source."""

    prompts: int
    mean_acceptance_length: float
    acceptance_rate_at: list[float]


def section(source: Source) -> Section:
    """Acceptance by position, of all prompts; a table by source."""
    made = Section(
        KIND,
        "Acceptance of drafts",
        "Share of steps in which the draft at this position was accepted, greedily, on held-out "
        "prompts, by vLLM's own counters.",
        "No record of kind acceptance yet: make eval-acceptance VARIANT=seq8-best.",
    )
    lines: dict[str, list[float]] = {}
    good, made.notes = taken(_groups, source.of(KIND))
    made.records = [found for found, _ in good]
    for found, groups in good:
        name = ", ".join(filter(None, (found.variant, found.model)))
        for head, own in groups.items():
            told = f"{name}{', ' + head if head else ''}"
            lines[told] = own["all"].acceptance_rate_at
            made.tables.append(_table(told, own))
    if lines:
        made.figures.append(_figure(lines))
    return made


def _groups(found: Found) -> dict[str, dict[str, Group]]:
    """Groups by the head that drafted: the checkpoint's own, and a new one if it was measured.

    :raises Unknown: there is no group `all`.
    """
    told = found.record.summary
    heads = {"": told} | ({"new head": told["new"]} if isinstance(told.get("new"), dict) else {})
    return {head: _by_source(groups, found.name) for head, groups in heads.items()}


def _by_source(told: dict[str, Any], where: str) -> dict[str, Group]:
    groups = {
        name: facts
        for name, facts in told.items()
        if isinstance(facts, dict) and {"prompts", "acceptance_rate_at"} <= facts.keys()
    }
    if "all" not in groups:
        raise Unknown(f"{where}: no group 'all'")
    return named(Group, groups, where)


def _figure(lines: dict[str, list[float]]) -> str:
    title = "Drafts accepted by position"
    words = "; ".join(
        f"{name}: " + ", ".join(f"{rate:.0%}" for rate in rates) for name, rates in lines.items()
    )
    x = marked("position of the draft", range(1, 1 + max(map(len, lines.values()))))
    every = [rate for rates in lines.values() for rate in rates]
    plot = Plot(title, words, x, axis("accepted", [*every, 1.0], zero=True, tick="{:.0%}".format))
    for series, rates in enumerate(lines.values()):
        points = [(float(n), rate) for n, rate in enumerate(rates, 1)]
        plot.path(points, series)
        for n, rate in points:
            plot.point(n, rate, series)
    return figure(title, plot.text(), legend(list(lines)))


def _table(name: str, groups: dict[str, Group]) -> Table:
    most = max(len(group.acceptance_rate_at) for group in groups.values())
    rows = [
        [
            source,
            str(group.prompts),
            f"{group.mean_acceptance_length:.2f}",
            *(f"{rate:.0%}" for rate in group.acceptance_rate_at),
        ]
        for source, group in groups.items()
    ]
    head = ["prompts of", "prompts", "tokens a step", *(f"at {n}" for n in range(1, most + 1))]
    return Table(f"Acceptance, {name}", head, rows)
