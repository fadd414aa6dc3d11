"""The ledger: what was claimed, expected, measured and decided, one entry a file.

``experiments/ledger/<slug>.toml`` is written by people and holds no measured figure: it names
records and places in them, and every figure of ``experiments/LEDGER.md`` is drawn from there. Knows
the form of an entry and of the pages; opens records, measures nothing.

python -m experiments.ledger            write LEDGER.md, and the blocks in the variants' READMEs
python -m experiments.ledger --check    write nothing; exit 1 if any would change
"""

import argparse
import re
import sys
import tomllib
from collections.abc import Sequence
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from blob.files import replace
from experiments.drawn import Drawn, NotDrawn, Result, draw
from experiments.figures import figures

HERE = Path(__file__).resolve().parent
PAGE = "LEDGER.md"
BLOCK = re.compile(r"(<!-- generated: ledger -->\n).*?(<!-- end -->)", re.DOTALL)
REFERENCE = re.compile(r"\{(\w+)\}")
HEAD = """# Ledger

Every lever and every idea that was measured, rejected ones among them: what was claimed, what was
expected, how it was measured, what came out, and what would justify another try. Made by `make fix`
from `experiments/ledger/*.toml` and the records that they name; do not edit. Every figure but those
of predictions is drawn from a record.
"""


class BadEntry(Exception):
    """An entry cannot be taken; one line that names file and key."""


class Entry(BaseModel):
    """One entry, as a person writes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int = Field(ge=1, description="Its place in the ledger; never used again.")
    date: date
    title: str = Field(description="What was tried, in a few words.")
    variants: tuple[str, ...] = Field(default=(), description="Variants that it concerns.")
    target: str = Field(description="Where it was measured: a target's name.")
    claim: str = Field(description="What was held to be so, and why.")
    prediction: str = Field(description="What was expected, as a number, before measuring.")
    method: str = Field(description="How it was measured.")
    came: Literal["as predicted", "in part", "otherwise", "none was made", "not measured"] = Field(
        description="What became of the prediction."
    )
    why: str = Field(description="Why the prediction was right or wrong, as far as is known.")
    disposition: Literal["kept", "rejected", "inconclusive", "open"]
    retry: str = Field(description="What would justify trying again.")
    results: tuple[Result, ...] = Field(default=(), description="Figures, each from a record.")

    @model_validator(mode="after")
    def _sound(self) -> Self:
        names = [result.name for result in self.results if result.name]
        if len(names) != len(set(names)):
            raise ValueError("results: two have the same name")
        # A prediction may hold any: it was not measured.
        for key in ("title", "claim", "method", "why", "retry"):
            for figure in figures(getattr(self, key)):
                raise ValueError(f"{key}: the figure {figure} is typed; draw it by {{name}}")
        if not self.results and self.came != "not measured":
            raise ValueError("results: there are none, so came must be 'not measured'")
        return self


class Told(BaseModel):
    """An entry with its figures drawn and its texts filled."""

    model_config = ConfigDict(frozen=True)

    slug: str
    entry: Entry
    drawn: tuple[Drawn, ...]

    def text(self, key: str) -> str:
        """The text of ``key`` with figures in the place of their names."""
        named = {one.name: one.figure for one in self.drawn if one.name}
        filled = REFERENCE.sub(lambda found: named[found[1]], getattr(self.entry, key))
        return " ".join(filled.split())


def read(root: Path) -> list[Told]:
    """All entries of ``root/experiments/ledger``, by number.

    :raises BadEntry: one cannot be read, or names a figure that no record has.
    """
    found = [_told(path, root) for path in sorted((root / "experiments/ledger").glob("*.toml"))]
    found.sort(key=lambda told: told.entry.number)
    for one, other in pairwise(found):
        if one.entry.number == other.entry.number:
            raise BadEntry(f"{other.slug}.toml: number: {one.slug}.toml has it, too")
    return found


def _told(path: Path, root: Path) -> Told:
    name = path.relative_to(root)
    try:
        entry = Entry.model_validate(_table(path))
        told = Told(slug=path.stem, entry=entry, drawn=tuple(draw(r, root) for r in entry.results))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise BadEntry(f"{name}: {key + ': ' if key else ''}{_short(first['msg'])}") from None
    except (NotDrawn, ValueError) as error:
        raise BadEntry(f"{name}: {error}") from None
    known = {one.name for one in told.drawn}
    for key in ("title", "claim", "prediction", "method", "why", "retry"):
        for found in REFERENCE.finditer(getattr(entry, key)):
            if found[1] not in known:
                raise BadEntry(f"{name}: {key}: no result is named {found[1]!r}")
    return told


def _table(path: Path) -> dict[str, object]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _short(message: str) -> str:
    return message.removeprefix("Value error, ")


def page(ledger: Sequence[Told]) -> str:
    """The whole of ``LEDGER.md``."""
    rows = [
        f"| {one.entry.number} | {one.entry.date} | [{one.text('title')}](#{one.slug}) | "
        f"{_concerns(one.entry)} | {one.entry.came} | **{one.entry.disposition}** |"
        for one in ledger
    ]
    head = ["| # | date | what | concerns | prediction came | verdict |", "| --- " * 6 + "|"]
    parts = [HEAD, "\n".join(head + rows), *map(_section, ledger)]
    return "\n".join(part if part.endswith("\n") else part + "\n" for part in parts)


def _concerns(entry: Entry) -> str:
    return ", ".join([*(f"`{name}`" for name in entry.variants), f"target {entry.target}"])


def _section(told: Told) -> str:
    entry = told.entry
    parts = [
        f'## <a id="{told.slug}"></a>{entry.number}. {told.text("title")}',
        f"{entry.date}, {_concerns(entry)}. **{entry.disposition.capitalize()}.**",
        f"**Claim.** {told.text('claim')}",
        f"**Prediction.** {told.text('prediction')}",
        f"**Method.** {told.text('method')}",
    ]
    if told.drawn:
        parts += ["**Result.**", _results(told.drawn, "")]
    came = {"not measured": "Not measured", "none was made": "Why"}.get(
        entry.came, f"It came {entry.came}"
    )
    parts += [
        f"**{came}.** {told.text('why')}",
        f"**To try again:** {told.text('retry')}",
    ]
    return "\n\n".join(parts)


def _results(drawn: Sequence[Drawn], up: str) -> str:
    """Table of figures; ``up`` leads from the page to ``experiments/``."""
    lines = ["| result | figure | least to most | record |", "| --- | --- | --- | --- |"]
    for one in drawn:
        place = up + one.record.removeprefix("experiments/")
        kind = Path(one.record).name.rsplit("_", 1)[0]
        lines.append(f"| {one.label} | {one.figure} | {one.spread} | [{kind}]({place}) |")
    return "\n".join(lines)


def block(ledger: Sequence[Told], variant: str) -> str:
    """What stands in a variant's README: verdicts and figures of the entries that concern it."""
    parts = []
    for one in ledger:
        if variant in one.entry.variants:
            title = f"[{one.entry.number}. {one.text('title')}](../{PAGE}#{one.slug})"
            parts.append(f"**{title}: {one.entry.disposition}** ({one.entry.came}).")
            parts += [_results(one.drawn, "../")] if one.drawn else []
    return "\n\n".join(parts) or "Nothing is in the ledger about this variant yet."


def pages(root: Path) -> dict[Path, str]:
    """Every generated page with the text that it should have.

    :raises BadEntry: see :func:`read`.
    """
    ledger = read(root)
    wanted = {root / "experiments" / PAGE: page(ledger)}
    for readme in sorted(root.glob("experiments/*/README.md")):
        text = readme.read_text(encoding="utf-8")
        if "<!-- generated: ledger -->" in text:
            own = block(ledger, readme.parent.name)
            wanted[readme] = filled(text, own)
    return wanted


def filled(text: str, own: str) -> str:
    """``text`` with ``own`` between the marks."""
    return BLOCK.sub(lambda found: f"{found[1]}{own}\n{found[2]}", text)


def stale(root: Path) -> dict[Path, str]:
    """Pages that differ from what they should be, with the text that they should have."""
    return {
        path: text
        for path, text in pages(root).items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when all is up to date or written, 1 when not."""
    top = argparse.ArgumentParser(
        prog="python -m experiments.ledger",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--check", action="store_true", help="write nothing")
    top.add_argument("--root", type=Path, default=HERE.parent, help=argparse.SUPPRESS)
    parsed = top.parse_args(arguments)
    try:
        wanted = stale(parsed.root)
    except (BadEntry, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    for path, text in wanted.items():
        if parsed.check:
            print(f"{path.relative_to(parsed.root)}: stale; run `make fix`", file=sys.stderr)
        else:
            replace(path, text.encode(), 0o644)
            print(f"wrote {path.relative_to(parsed.root)}")
    return 1 if parsed.check and wanted else 0


if __name__ == "__main__":
    sys.exit(main())
