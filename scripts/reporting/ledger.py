"""The ledger as a section: a table of verdicts, and each entry to unfold."""

import re
from html import escape
from pathlib import Path

from experiments.ledger import BadEntry, Told, read
from scripts.reporting.page import Section, Table

TEXTS = (
    ("claim", "Claim"),
    ("prediction", "Prediction"),
    ("method", "Method"),
    ("why", "Why"),
    ("retry", "To try again"),
)


def section(root: Path) -> Section:
    """Every entry, by number."""
    made = Section(
        "ledger",
        "The ledger",
        "What was tried, what was expected, what came out; rejected ideas stay.",
        "There are no entries yet: experiments/ledger/.",
    )
    try:
        entries = read(root)
    except BadEntry as error:
        made.notes.append(str(error))
        return made
    if entries:
        made.raw = _verdicts(entries) + "".join(map(_entry, entries))
    return made


def _verdicts(entries: list[Told]) -> str:
    rows = [
        [
            f"{one.entry.number}. {one.text('title')}",
            ", ".join((*one.entry.variants, one.entry.target)),
            one.entry.came,
            one.entry.disposition,
        ]
        for one in entries
    ]
    head = ["what", "variants, target", "prediction came", "verdict"]
    return f'<div class="words">{Table("All entries", head, rows).html()}</div>'


def _code(text: str) -> str:
    """Escaped, with what stands in backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _entry(told: Told) -> str:
    entry = told.entry
    texts = "".join(f"<dt>{name}</dt><dd>{_code(told.text(key))}</dd>" for key, name in TEXTS)
    rows = [
        [one.label.replace("`", ""), one.figure, one.spread, Path(one.record).name]
        for one in told.drawn
    ]
    head = ["result", "figure", "least to most", "record"]
    table = Table(f"Results of entry {entry.number}", head, rows).html() if rows else ""
    return (
        f'<details class="entry" id="entry-{entry.number}"><summary>{entry.number}. '
        f"{escape(told.text('title'))}: {entry.disposition}</summary>"
        f"<dl>{texts}</dl>{table}</details>"
    )
