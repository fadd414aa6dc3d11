"""The page: sections, tables and the frame around them, one HTML file that asks for nothing else.

Pure. Texts are escaped here, captions among them; pictures come as SVG and are put in as they are.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from scripts.reporting.records import Found, machines
from scripts.reporting.style import STYLE

# Cells that are longer may be broken over lines.
LONG = 40
_LONG = ' class="long"'


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column names the row."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def html(self) -> str:
        """As HTML, in a box that scrolls by itself and can be reached by keyboard."""
        head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in self.head)
        rows = "".join(_row(row) for row in self.rows)
        return (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(self.caption)}">'
            f"<table><caption>{escape(self.caption)}</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{rows}</tbody></table></div>"
        )


def _row(row: Sequence[str]) -> str:
    name, *rest = row
    cells = "".join(f"<td{_LONG if len(cell) > LONG else ''}>{escape(cell)}</td>" for cell in rest)
    return f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'


@dataclass
class Section:
    """One part of the page. Without ``figures`` and ``tables`` it says what is missing."""

    name: str
    title: str
    intro: str
    missing: str
    figures: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    records: list[Found] = field(default_factory=list)
    raw: str = ""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.figures or self.tables or self.raw)

    def html(self) -> str:
        """As HTML."""
        body = f"<p>{escape(self.intro)}</p>"
        if self.empty:
            body += f'<p class="missing">{escape(self.missing)}</p>'
        body += "".join(f'<figure tabindex="0">{figure}</figure>' for figure in self.figures)
        body += self.raw + "".join(table.html() for table in self.tables)
        body += "".join(f'<p class="notice">{escape(note)}</p>' for note in self.notes)
        return (
            f'<section id="{self.name}" aria-labelledby="{self.name}-title">'
            f'<h2 id="{self.name}-title">{escape(self.title)}</h2>{body}{self._from()}</section>'
        )

    def _from(self) -> str:
        if not self.records:
            return ""
        names = "".join(
            f"<li><code>{escape(found.name)}</code>, {found.record.made:%Y-%m-%d %H:%M} UTC, by "
            f"<code>{escape(shlex.join(found.record.command))}</code></li>"
            for found in self.records
        )
        where = "".join(f"<li>{escape(line)}</li>" for line in machines(self.records))
        return (
            f"<details><summary>{len(self.records)} record(s), and where they were measured"
            f"</summary><ul>{names}</ul><ul>{where}</ul></details>"
        )


def figure(title: str, picture: str, legend: str = "") -> str:
    """A picture with its caption above it and its legend below: the inside of a `<figure>`."""
    return f"<figcaption>{escape(title)}</figcaption>{picture}{legend}"


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole file."""
    links = "".join(
        f'<li><a href="#{one.name}">{escape(one.title)}</a>'
        f"{' <small>(no record)</small>' if one.empty else ''}</li>"
        for one in sections
    )
    body = "".join(one.html() for one in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body>"
        '<a class="skip" href="#main">To the figures</a>'
        f'<header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p></header>'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav><main id="main">{body}</main>'
        "</body></html>\n"
    )
