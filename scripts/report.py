"""Writes one HTML page of all that was measured, from the fullest and newest records of each kind.

The page asks for nothing else: no script, no font, no picture from outside. It opens from a disk,
in light and dark, and every picture has its numbers in a table beside it. A section without a
record says so; a record of a shape that is not known is named, and the rest is shown.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from blob.files import replace
from scripts.reporting import (
    acceptance,
    coldstart,
    frontier,
    latency,
    ledger,
    others,
    parity,
    quality,
    quantize,
    rounding,
    sweep,
    vocab,
)
from scripts.reporting.page import Section, page
from scripts.reporting.records import Source, read

EXAMPLES = """examples:
  python -m scripts.report
  python -m scripts.report --out /tmp/report.html --json
"""
ROOT = Path(__file__).resolve().parents[1]
KINDS = (latency, quality, sweep, acceptance, parity, quantize, rounding, vocab, coldstart)
READERS = (frontier, *KINDS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when the page was written, 1 when it could not be, 2 usage."""
    parsed = parser().parse_args(arguments)
    if not (parsed.root / "experiments").is_dir():
        print(
            f"report: --root {parsed.root}: expected a checkout, got no experiments/ in it",
            file=sys.stderr,
        )
        return 2
    source = read(parsed.root)
    made = sections(source, parsed.root)
    text = page("Preheat, measured", lead(source), made)
    try:
        parsed.out.parent.mkdir(parents=True, exist_ok=True)
        replace(parsed.out, text.encode(), 0o644)
    except OSError as error:
        print(f"report: {parsed.out}: not written: {error.strerror}", file=sys.stderr)
        return 1
    told = {
        "out": str(parsed.out),
        "bytes": len(text.encode()),
        "sections": {one.name: not one.empty for one in made},
        "notes": [note for one in made for note in one.notes],
    }
    print(json.dumps(told, indent=1) if parsed.json else spoken(told, made))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.report",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument(
        "--out", type=Path, default=ROOT / ".cache" / "report.html", help="(.cache/report.html)"
    )
    top.add_argument("--json", action="store_true", help="what it holds, as JSON")
    top.add_argument("--root", type=Path, default=ROOT, help="a checkout (this one)")
    return top


def sections(source: Source, root: Path) -> list[Section]:
    """All of the page, in its order."""
    known = {module.KIND for module in KINDS}
    made = [module.section(source) for module in READERS]
    return [*made, ledger.section(root), others.section(source, known)]


def lead(source: Source) -> str:
    """What the page was made from, and when the last of it was measured."""
    if not source.records:
        return "There is no record yet."
    last = max(found.record.made for found in source.records)
    return (
        f"Made from {len(source.records)} records, the newest of {last:%Y-%m-%d %H:%M} UTC; of "
        "each kind, variant, model and target the fullest is shown, of these the newest."
    )


def spoken(told: dict[str, object], made: Sequence[Section]) -> str:
    """For a person."""
    empty = [one.name for one in made if one.empty]
    lines = [f"wrote {told['out']}: {told['bytes']} bytes, {len(made) - len(empty)} sections"]
    lines += [f"no record yet: {', '.join(empty)}"] if empty else []
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
