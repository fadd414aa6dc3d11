"""Reads `quality` records: how far a variant lies from the reference, and the rule's verdict."""

import re
from typing import Any

from pydantic import Field

from scripts.reporting.extent import BASELINE, less, reference, worth
from scripts.reporting.page import Section, Table
from scripts.reporting.records import Shape, Source, Unknown, part, summary, taken

KIND = "quality"
FIGURES = {
    "perplexity_change": ("change of perplexity", 100.0, "%"),
    "kl": ("KL to the reference", 1.0, "nats"),
    "top1_agreement": ("same first token", 100.0, "%"),
}
# The rule's words where no task was judged.
TEXTS_ALONE = "texts alone"
LIMIT = re.compile(r"^(\w+) at (?:most|least) (-?[\d.e-]+)$")


class Interval(Shape):
    """A figure with its 95 % interval over so many items."""

    point: float
    low: float
    high: float
    items: int


class Quality(Shape):
    """The summary of a record."""

    verdict: str
    judged_on: str = ""
    criteria: tuple[dict[str, Any], ...] = ()
    texts: dict[str, Any] = Field(default_factory=dict)
    tasks: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @property
    def told(self) -> str:
        """The verdict, and that it is of texts where it is of them alone: nothing was written."""
        return f"{self.verdict} (texts)" if self.judged_on == TEXTS_ALONE else self.verdict


def interval(quality: Quality, name: str, where: str) -> Interval | None:
    """One of ``FIGURES``; none where the record was made without texts.

    :raises Unknown: it has another shape.
    """
    return part(Interval, quality.texts[name], f"{where}: {name}") if quality.texts else None


def limit(quality: Quality, name: str) -> float | None:
    """What the rule allows of ``name``, as the record has it."""
    for one in quality.criteria:
        found = LIMIT.match(str(one.get("criterion", "")))
        if found and found[1] == name:
            return float(found[2])
    return None


def section(source: Source) -> Section:
    """A table of verdicts, and one of tasks."""
    made = Section(
        KIND,
        "Quality",
        "Against the BF16 model served with no levers, on the same tokens; 95 % intervals by "
        "bootstrap. The rule was fixed before anything was measured: docs/quality.md.",
        "No record of kind quality yet: make eval-quality VARIANT=awq.",
    )
    good, made.notes = taken(summary(Quality), source.of(KIND, reference, worth))
    texts, tasks = [], []
    for found, quality in good:
        against = reference(found)
        other = f", against {against}" if against not in ("", BASELINE) else ""
        lacks = f" ({less(found)})" if less(found) else ""
        name = f"{found.variant}, {found.place}{other}{lacks}"
        try:
            spans = [interval(quality, figure, found.name) for figure in FIGURES]
        except (Unknown, KeyError) as error:
            made.notes.append(f"{found.name}: {error}")
            continue
        made.records.append(found)
        cells = [_cell(s, *FIGURES[f][1:]) for s, f in zip(spans, FIGURES, strict=True)]
        texts.append([name, quality.told, *cells, str(spans[0].items) if spans[0] else ""])
        tasks += [[f"{name}: {task}", *_task(facts)] for task, facts in quality.tasks.items()]
    if texts:
        head = ["variant, model", "verdict", *(words for words, _, _ in FIGURES.values()), "texts"]
        made.tables.append(Table("Held-out texts", head, texts))
    if tasks:
        head = ["variant, model: task", "reference", "variant", "difference, points", "items"]
        made.tables.append(Table("Tasks", head, tasks))
    return made


def _cell(span: Interval | None, scale: float, unit: str) -> str:
    if span is None:
        return ""
    point, low, high = (f"{v * scale:.4g}" for v in (span.point, span.low, span.high))
    return f"{point} {unit} ({low} to {high})"


def _task(facts: dict[str, Any]) -> list[str]:
    rates = [f"{100 * facts[key]['point']:.1f} %" for key in ("reference", "variant")]
    span = facts["difference"]
    low, high = 100 * span["low"], 100 * span["high"]
    return [*rates, f"{100 * span['point']:+.1f} ({low:+.1f} to {high:+.1f})", str(span["items"])]
