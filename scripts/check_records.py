"""Checks that what is claimed was measured: records, figures in the docs, the ledger.

A record must have the form of a record, bear its kind and time as its name, be small, be the file
that was once added, and say what its samples give (scripts/resum.py). A figure in README.md, docs/
and the experiments' READMEs must be in a record that its row, paragraph or section links, rounded
as it stands there, at the place that experiments/figures.tsv pins it to (the whole rule:
scripts/claims.py, scripts/pins.py).
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from blob.files import replace
from experiments.figures import Known
from experiments.ledger import BadEntry, stale
from experiments.pointers import numbers
from experiments.record import Record
from scripts import pins
from scripts.claims import Claim, claims
from scripts.resum import differences

EXAMPLES = """examples:
  python -m scripts.check_records              all of it, one line a fault
  python -m scripts.check_records --escapes    figures that say themselves that they have no record
  python -m scripts.check_records --pin        write down where new figures of the pages lie
  python -m scripts.check_records --pin --anew the same for figures that were changed by hand
"""
ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/*.md", "experiments/README.md", "experiments/*/README.md")
RECORDS = "experiments/**/measurements/*.json"
MOST = 300 * 1024
# Faults of one record's figures that are listed.
LISTED = 3
PARTS = ("summary", "parameters")
PIN = "python -m scripts.check_records --pin"
CHANGED = "another figure of this record stood here: if it is right, --pin --anew"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when all is well, 1 when there is a fault, 2 usage."""
    top = parser()
    parsed = top.parse_args(arguments)
    root = parsed.root.resolve()
    if not (root / "experiments").is_dir():
        top.error(f"--root {parsed.root}: expected a checkout, got no folder experiments in it")
    if parsed.anew and not parsed.pin:
        top.error("--anew goes with --pin")
    if parsed.escapes:
        found = list(escapes(root))
        print(json.dumps(found) if parsed.json else "\n".join(found) or "no escapes")
        return 0
    if parsed.pin:
        return _pin(root, anew=parsed.anew)
    found = [*records(root), *edited(root), *pages(root), *ledger(root)]
    if parsed.json:
        print(json.dumps({"faults": found}))
    else:
        for fault in found:
            print(fault, file=sys.stderr)
    return 1 if found else 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.check_records",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--escapes", action="store_true", help="list `<!-- no record: … -->` and end")
    top.add_argument("--pin", action="store_true", help="pin the figures that are not, and end")
    top.add_argument("--anew", action="store_true", help="with --pin: those changed by hand, too")
    top.add_argument("--json", action="store_true", help="faults as JSON on stdout")
    top.add_argument("--root", type=Path, default=ROOT, help="a checkout (this one)")
    return top


def records(root: Path) -> Iterator[str]:
    """Faults of the records themselves, one line each."""
    for path in sorted(root.glob(RECORDS)):
        name = path.relative_to(root)
        try:
            record = Record.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"])) or "the file"
            yield f"{name}: {key}: {first['msg']} ({error.error_count()} fault(s)): no record"
            continue
        yield from (f"{name}: {fault}" for fault in _summed(record))
        wanted = f"{record.kind}_{record.made:%Y-%m-%dT%H%M%SZ}.json"
        if path.name != wanted:
            yield f"{name}: its kind and time make it {wanted}"
        if (size := path.stat().st_size) > MOST:
            yield f"{name}: {size} bytes, more than {MOST}: keep fewer samples"


def _summed(record: Record) -> list[str]:
    try:
        found = list(differences(record))
    except ModuleNotFoundError as error:
        print(f"{record.kind} records not summed up again: {error}", file=sys.stderr)
        return []
    more = [f"and {len(found) - LISTED} more of it"] if len(found) > LISTED else []
    return [*found[:LISTED], *more]


def edited(root: Path) -> Iterator[str]:
    """Records that differ from what was first committed, or are gone; nothing without git."""
    first = _first_blobs(root)
    here = [path for path in first if (root / path).is_file()]
    now = _git(root, "hash-object", "--stdin-paths", input="\n".join(here)).split() if here else []
    for path, blob in zip(here, now, strict=True):
        if blob != first[path]:
            yield f"{path}: edited since it was added; measure again, records are only added"
    for path in sorted(first.keys() - set(here)):
        yield f"{path}: was added once and is gone; records stay"


def _first_blobs(root: Path) -> dict[str, str]:
    """The blob each record was added as, by path from ``root``; a shallow history knows less."""
    try:
        prefix = _git(root, "rev-parse", "--show-prefix").strip()
        if prefix:
            return {}
        log = ["log", "--reverse", "--raw", "--no-abbrev", "--no-renames", "--diff-filter=A"]
        lines = _git(root, *log, "--format=", "--", f":(glob){RECORDS}").splitlines()
    except (OSError, subprocess.CalledProcessError):
        return {}
    found: dict[str, str] = {}
    for line in lines:
        facts, path = line.split("\t", 1)
        found.setdefault(path, facts.split()[3])
    return found


def _git(root: Path, *arguments: str, input: str | None = None) -> str:  # noqa: A002
    return subprocess.run(
        ["git", "-C", str(root), *arguments],
        input=input,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def pages(root: Path) -> Iterator[str]:
    """Figures of the docs that no record has, or whose place is not pinned."""
    known, pinned, found = Records(root), pins.read(root), measured(root)
    for page, own in found.items():
        faults = [
            f"{page}:{one.claim.line}: {one.claim.figure}: {fault}"
            for one in pins.bound(own, pinned.get(page, ()))
            if (fault := known.fault(one.claim) or unpinned(one, known))
        ]
        gone = pins.left(own, pinned.get(page, ()))
        yield from faults or (
            [f"{pins.FILE}: {page}: {gone} without a figure: {PIN}"] if gone else ()
        )
    for page in sorted(pinned.keys() - found.keys()):
        yield f"{pins.FILE}: {page}: holds no figure: {PIN}"


def unpinned(one: pins.Bound, known: "Records") -> str:
    """What is wrong with the pin of a figure that its records have; empty when nothing is."""
    if one.pin is None:
        stood = (
            f"; here stood {one.before[0].figure} of {one.before[0].place}" if one.before else ""
        )
        return f"not in {pins.FILE}{stood}: {PIN}"
    if pins.holds(one.claim, one.pin, known.of(one.claim.records)):
        return ""
    return f"is pinned to {one.pin.place}, which is something else: {PIN}"


def _pin(root: Path, *, anew: bool) -> int:
    """Write the pins of all figures that have a place; 1 where one was changed by hand."""
    kept, refused = _placed(root, anew=anew)
    replace(root / pins.FILE, pins.dump(kept).encode(), 0o644)
    for line in refused:
        print(line, file=sys.stderr)
    return 1 if refused else 0


def _placed(root: Path, *, anew: bool) -> tuple[dict[str, list[pins.Pin]], list[str]]:
    """Pins by page: those that hold stay, others are found anew. Faults of those that were changed
    by hand and not asked for ``anew``: their old pins stay.
    """
    known, had = Records(root), pins.read(root)
    kept: dict[str, list[pins.Pin]] = {}
    refused: list[str] = []
    for page, own in measured(root).items():
        kept[page] = []
        for one in pins.bound(own, had.get(page, ())):
            numbers_ = known.of(one.claim.records)
            pin = one.pin if one.pin and pins.holds(one.claim, one.pin, numbers_) else None
            pin, new = pin or pins.choose(one.claim, numbers_), pin is None
            if pin and new and not anew and pins.replaces(one, pin):
                refused.append(f"{page}:{one.claim.line}: {one.claim.figure}: {CHANGED}")
                kept[page] += [old for old in one.before if old not in kept[page]]
            elif pin:
                kept[page].append(pin)
    return kept, refused


def measured(root: Path) -> dict[str, list[Claim]]:
    """The claims of each page that must have a record."""
    found: dict[str, list[Claim]] = {}
    for page, claim in _claims(root):
        if claim.escape is None:
            found.setdefault(str(page.relative_to(root)), []).append(claim)
    return found


def escapes(root: Path) -> Iterator[str]:
    """Figures that are let be, with the reason given."""
    for page, claim in _claims(root):
        if claim.escape is not None:
            yield f"{page.relative_to(root)}:{claim.line}: {claim.figure}: {claim.escape}"


def _claims(root: Path) -> Iterator[tuple[Path, Claim]]:
    for pattern in PAGES:
        for page in sorted(root.glob(pattern)):
            for claim in claims(page.read_text(encoding="utf-8")):
                yield page, claim


class Records:
    """The numbers of records, by how pages name them."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._by_name = {path.name: path for path in root.glob(RECORDS)}
        self._numbers: dict[tuple[str, ...], Known] = {}

    def fault(self, claim: Claim) -> str:
        """What is wrong with ``claim``; empty when a record has it."""
        if not claim.records:
            return "no record is linked in its row, paragraph or section"
        missing = [name for name in claim.records if not self._paths(name)]
        if missing:
            return f"no record {missing[0]} is here"
        known = self.of(claim.records)
        if known.has(claim.figure):
            return ""
        return f"not in {', '.join(claim.records)} (nearest: {known.nearest(claim.figure)})"

    def _paths(self, name: str) -> list[Path]:
        if "*" in name:
            last = name.rsplit("/", 1)[-1]
            return sorted(path for path in self._by_name.values() if path.match(last))
        found = self._by_name.get(name.rsplit("/", 1)[-1])
        return [found] if found else []

    def of(self, names: tuple[str, ...]) -> Known:
        """All numbers of these records, as pages spell their names."""
        if names not in self._numbers:
            leaves = []
            for path in [path for name in names for path in self._paths(name)]:
                record = json.loads(path.read_bytes())
                kept = {part: record.get(part) for part in PARTS}
                leaves += [(path.name, place, value) for place, value in numbers(kept)]
            self._numbers[names] = Known(tuple(leaves))
        return self._numbers[names]


def ledger(root: Path) -> Iterator[str]:
    """Pages of the ledger that are not what its entries make."""
    try:
        for path in stale(root):
            yield f"{path.relative_to(root)}: stale; run `make fix`"
    except BadEntry as error:
        yield str(error)


if __name__ == "__main__":
    sys.exit(main())
