"""Compares several variants by latency: the same plan for all, interleaved with the reference.

As many engines as --together allows are alive at once, the reference among them in every group;
each variant's ratio is against the reference measured beside it. With --records nothing is run: the
newest record of each variant is read that is of the same model, target and reference.

Of tiny on two quiet cores two candidates take about four and a half minutes, each further pair as
much again.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bake.progress import shown
from experiments.record import typed
from scripts.latency.commanded import (
    STOPPED,
    add_options,
    check_card,
    check_folders,
    check_weights,
    common_model,
    keep,
    run_group,
    target_name,
    wanted,
)
from scripts.latency.plan import groups
from scripts.latency.prompts import BadPrompts, read_prompts
from scripts.latency.show import comparison, notes
from serve.cli import positive
from serve.errors import ConfigError
from serve.settings import REPOSITORY

EXAMPLES = """examples:
  python -m scripts.compare seq8,seq8-best,awq
  python -m scripts.compare seq8,seq8-best --together 2 --concurrency 1,8
  python -m scripts.compare seq8,seq8-best --records --json
"""
# Options of a run that records in one table have in common.
ALIKE = ("concurrency", "rates", "rounds", "requests", "as_served", "shared_prefix", "busy_ok")


class NoRecord(ValueError):
    """A variant has no latency record that can be read."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 done, 1 when a variant could not be measured or has no record, 2 usage."""
    parsed = parser().parse_args(arguments)
    parsed.command = typed("scripts.compare", arguments)
    names = [name for name in dict.fromkeys(parsed.variants) if name != parsed.reference]
    try:
        wanted(parsed)
        read_prompts(parsed.prompts)
        parsed.model = common_model([parsed.reference, *names], parsed.model, parsed.target)
        parsed.target = target_name(parsed.target)
        if not names:
            raise ValueError(f"expected a variant other than the reference {parsed.reference}")
        if not parsed.records:
            check_weights([parsed.reference, *names], parsed.model)
            most = max(map(len, groups(names, parsed.together)))
            check_card(1 + most, parsed.model, parsed.target)
            check_folders(names if parsed.record else ())
    except (BadPrompts, ConfigError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    try:
        summaries = stored(names, parsed) if parsed.records else measured(names, parsed)
    except (*STOPPED, NoRecord) as error:
        print(f"not compared: {error}", file=sys.stderr)
        return 1
    show(summaries, as_json=parsed.json)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.compare",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("variants", type=listed, help="names, comma between")
    top.add_argument("--records", action="store_true", help="read the newest records, run nothing")
    top.add_argument(
        "--together", type=positive, default=3, help="engines alive at once, 2 or more (3)"
    )
    add_options(top)
    return top


def listed(text: str) -> list[str]:
    """Names, comma between."""
    if found := [word.strip() for word in text.split(",") if word.strip()]:
        return found
    raise argparse.ArgumentTypeError("expected variants, e.g. seq8,seq8-best")


def measured(names: Sequence[str], parsed: argparse.Namespace) -> list[dict[str, Any]]:
    """Every group in turn; its records are written as soon as it is done."""
    found = []
    with shown() as progress:
        for group in groups(names, parsed.together):
            records = run_group([parsed.reference, *group], parsed, progress.say)
            for path in keep(records) if parsed.record else ():
                progress.say(f"wrote {path}")
            found += [record.summary for record in records]
    return found


def stored(
    names: Sequence[str], parsed: argparse.Namespace, experiments: Path = REPOSITORY / "experiments"
) -> list[Any]:
    """The summary of each variant's newest latency record of this model, target and reference.

    :raises NoRecord: there is none, one is not readable, or they are not of the same options.
    """
    found = [newest(name, parsed, experiments / name / "measurements") for name in names]
    for one in found[1:]:
        for option in ALIKE:
            a, b = (each["parameters"].get(option) for each in (found[0], one))
            if a != b:
                raise NoRecord(
                    f"{one['summary']['candidate']}: its newest record has {option} {b!r}, "
                    f"that of {found[0]['summary']['candidate']} {a!r}\n"
                    f"hint: make compare VARIANT={','.join(names)} measures all alike"
                )
    return [one["summary"] for one in found]


def newest(name: str, parsed: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A variant's newest latency record that was asked for.

    :raises NoRecord: there is none, or a newer file is not readable.
    """
    wanted_of = {"model": parsed.model, "target": parsed.target, "reference": parsed.reference}
    for path in sorted(folder.glob("latency_*.json"), reverse=True):
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            of = {
                "model": record["variant"]["model"]["name"],
                "target": record["variant"]["target"]["name"],
                "reference": record["summary"]["reference"],
            }
            record["parameters"].get("rounds")
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise NoRecord(f"{path}: {type(error).__name__}: {error}") from error
        if of == wanted_of:
            return record
    asked = ", ".join(f"{key} {value}" for key, value in wanted_of.items())
    raise NoRecord(
        f"{name}: no latency record of {asked}\n"
        f"hint: make eval-latency VARIANT={name} MODEL={parsed.model}"
    )


def show(summaries: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """One table, or all summaries by variant."""
    if as_json:
        print(json.dumps({one["candidate"]: one for one in summaries}, indent=1))
        return
    console = Console()
    console.print(comparison(summaries))
    for one in summaries:
        for line in notes(one):
            console.print(f"{one['candidate']}: {line}", markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
