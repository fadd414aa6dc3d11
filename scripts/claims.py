"""Pages of Markdown as blocks, the records that each block names, the figures that it claims.

Pure: knows text, not which records exist. The rule, told to people in experiments/README.md:

- A figure is a number with a unit of measure; in a table beside a record, every number of a cell
  that holds nothing but numbers (in a section with one, those that are no whole numbers). Code,
  links, comments and generated blocks hold none; goals and predictions are none.
- A figure belongs to the records linked in its row or paragraph; ``the same`` in a row means the
  row's before; a table's else to those of the paragraph before it, or behind it; else to those of
  the nearest section around it that links any.
- ``<!-- no record: why -->`` in a block, or alone before it, lets its figures be; alone before a
  table or a list the whole of it, right behind a heading the whole section.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from experiments.figures import UNIT, Figure, cells, figures

RECORD = re.compile(r"[\w./*-]*\b[\w*-]+_[\dTZ*-]+\.json\b")
ESCAPE = re.compile(r"<!-- no record: *(.*?) *-->")
HEADING = re.compile(r"^(#{1,6}) ")
ITEM = re.compile(r"^\s*(?:[-*+]|\d+\.) ")
EXPECTED = re.compile(r"^\s*(?:[-*] )?\*\*(?:Hypothesis|Prediction|Goal|If revisited)\b")
# What holds no figure; blanked, so that places stay.
BLANK = re.compile(
    r"<!--.*?-->|`[^`\n]*`|\]\([^)\n]*\)|https?://\S+|\[[^\]\n]*\]\[[^\]\n]*\]", re.DOTALL
)
NUMERIC = re.compile(rf"^[\s\d.,+−/–→()*%×~-]*(?:{UNIT})?[\s\d.,+−/–→()*%×-]*$")
HEAD_UNIT = re.compile(rf"(?:^|(?<!\d)[\s,(])(?P<unit>{UNIT})(?:$|[\s,)(])")


@dataclass
class Block:
    """A paragraph, an item, or a row of a table."""

    line: int
    text: str
    level: int = 0  # of a heading, else 0
    row: bool = False
    units: tuple[str, ...] = ()
    head: str = ""  # of the table
    records: list[str] = field(default_factory=list)
    escape: str | None = None

    @property
    def kind(self) -> str:
        """What comes in several: rows, or items of a list."""
        return "row" if self.row else "item" if ITEM.match(self.text) else ""


@dataclass(frozen=True)
class Claim:
    """A figure, its line, and the records that should have it, as the page spells them."""

    line: int
    figure: Figure
    records: tuple[str, ...]
    escape: str | None
    near: str = ""  # what stands right before it
    around: str = ""  # its block, and the head of its table


def claims(text: str) -> Iterator[Claim]:
    """Every figure of a page of Markdown."""
    scope: list[tuple[int, list[str]]] = [(0, [])]
    found = list(blocks(text))
    for place, block in enumerate(found):
        if block.level:
            while scope[-1][0] >= block.level:
                scope.pop()
            scope.append((block.level, _records_of_section(found[place:])))
        beside = _beside(found, place) if block.row else []
        own = block.records or beside
        near = own or next((r for _, r in reversed(scope) if r), [])
        measured = "own" if own else "section" if near else ""
        yield from _claimed(block, _figures(block, measured), tuple(near))


def _claimed(block: Block, found: Iterator[Figure], records: tuple[str, ...]) -> Iterator[Claim]:
    end = 0
    for figure in found:
        line = block.line + block.text[: figure.at].count("\n")
        near, around = block.text[end : figure.at], f"{block.head}\n{block.text}"
        yield Claim(line, figure, records, block.escape, near, around)
        end = figure.at + len(figure.text)


def _beside(found: list[Block], place: int) -> list[str]:
    """The records of the paragraph before a row's table, else of the one behind it."""
    first = last = place
    while first and found[first - 1].row:
        first -= 1
    while last + 1 < len(found) and found[last + 1].row:
        last += 1
    before = found[first - 1].records if first else []
    behind = found[last + 1].records if last + 1 < len(found) else []
    # Rows that name their own records say what the others are of, too.
    own = [name for block in found[first : last + 1] for name in block.records]
    return [] if own else before or behind


def _records_of_section(blocks: list[Block]) -> list[str]:
    found: list[str] = []
    for block in blocks[1:]:
        if block.level:
            break
        found += block.records
    return list(dict.fromkeys(found))


def _figures(block: Block, measured: str) -> Iterator[Figure]:
    if EXPECTED.match(block.text):
        return
    plain = BLANK.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), block.text)
    if not block.row:
        yield from figures(plain.replace("**", "  "))
        return
    offset = 0
    for column, cell in enumerate(plain.split("|")):
        yield from _of_cell(cell, offset, column, block.units, measured)
        offset += len(cell) + 1


def _of_cell(
    cell: str, offset: int, column: int, units: tuple[str, ...], measured: str
) -> Iterator[Figure]:
    text = cell.replace("**", "  ")
    unit = units[column] if column < len(units) else ""
    told = list(figures(text))
    if not told and NUMERIC.match(text) and (measured or unit):
        told = list(cells(text, unit))
        # Far from a record a whole number without a unit is a count more often than a figure.
        if measured == "section" and not unit:
            told = [one for one in told if "." in one.text]
    for one in told:
        yield Figure(one.text, one.unit, one.at + offset)


def blocks(text: str) -> Iterator[Block]:
    """The blocks of a page, in order; fenced code and generated blocks are left out."""
    reader = Reader()
    for block in _raw(text):
        if reader.takes(block):
            yield block


class Reader:
    """What one block says of those that follow: escapes, heads of tables, records named before."""

    def __init__(self) -> None:
        self._last = Block(0, "")
        self._next: str | None = None  # an escape that stood alone
        self._section: str | None = None
        self._units: tuple[str, ...] = ()
        self._head = ""
        self._before: list[str] = []

    def takes(self, block: Block) -> bool:
        """Fill in what ``block`` has from those before it; whether it can hold figures."""
        last, self._last = self._last, block
        if alone := ESCAPE.fullmatch(block.text.strip()):
            self._section = alone[1] if last.level else self._section
            self._next = None if last.level else alone[1]
            return False
        if block.level:
            self._section = None
        # An escape that stood alone is for the next block, or all rows or items of it.
        if not (block.kind and block.kind == last.kind) and not ESCAPE.fullmatch(last.text.strip()):
            self._next = None
        block.escape = _escape(block.text) or self._next or self._section
        return self._row(block, last) if block.row else True

    def _row(self, block: Block, last: Block) -> bool:
        if not last.row or block.line > last.line + 1:
            self._units, self._before, self._head = _units(block.text), [], block.text
            return False
        if re.search(r"\|\s*the same\b", block.text):
            block.records = self._before
        self._before = block.records or self._before
        block.units, block.head = self._units, self._head
        return True


def _escape(text: str) -> str | None:
    found = ESCAPE.search(text)
    return found[1] if found else None


def _units(head: str) -> tuple[str, ...]:
    """The unit of each column: its own, or the first column's, which speaks for all."""
    own = [found["unit"] if (found := HEAD_UNIT.search(c)) else "" for c in head.split("|")]
    first = next((unit for unit in own[:2] if unit), "")
    return tuple(unit or first for unit in own)


def _raw(text: str) -> Iterator[Block]:
    current: Block | None = None
    hidden = ""
    for number, line in enumerate(text.split("\n"), 1):
        fence = line.lstrip().startswith("```")
        starts = "fence" if fence else "generated" if "<!-- generated:" in line else ""
        if hidden or starts:
            if current:
                yield current
                current = None
            ends = (hidden == "fence" and fence) or (hidden == "generated" and "<!-- end" in line)
            hidden = "" if ends else hidden or starts
            continue
        if current and _apart(current, line):
            yield current
            current = None
        if line.strip():
            current = _longer(current, number, line)
    if current:
        yield current


def _apart(current: Block, line: str) -> bool:
    """Whether ``line`` begins something else than what ``current`` is."""
    row = line.startswith("|")
    return bool(
        current.row
        or current.level
        or row
        or not line.strip()
        or ITEM.match(line)
        or HEADING.match(line)
    )


def _longer(current: Block | None, number: int, line: str) -> Block:
    if current:
        current.text += "\n" + line
    else:
        heading = HEADING.match(line)
        level = len(heading[1]) if heading else 0
        current = Block(number, line, level, row=line.startswith("|"))
    current.records += RECORD.findall(line)
    return current
