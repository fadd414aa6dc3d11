"""What the gateway does when all around it fails: the engine, its clients, the log, the clock.

Each scenario starts the gateway as it ships over an engine with faults, does the worst, and counts:
every request that was asked, what came of it, what is left at the end. Whether the promise was
kept is decided by a rule that stands beside the scenario, not by whoever reads the table.
All of them together take some minutes; a failure of one does not stop the others.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from bake.progress import shown
from experiments.record import MEASUREMENTS, Record, add, check_writable, now, this_machine, typed
from scripts.gateway import body_faults, client_faults, engine_faults, gateway_faults, wire_faults
from scripts.gateway.scenario import Scenario, Size
from scripts.gateway.stage import NotStaged
from scripts.gateway.verdict import Counts
from scripts.options import amount
from scripts.served import stoppable
from serve.plan import versions
from serve.preflight import raise_open_files
from serve.settings import REPOSITORY

SCENARIOS: tuple[Scenario, ...] = (
    *engine_faults.SCENARIOS,
    *client_faults.SCENARIOS,
    *body_faults.SCENARIOS,
    *wire_faults.SCENARIOS,
    *gateway_faults.SCENARIOS,
)
LIBRARIES = ("httptools", "uvicorn", "uvloop")
EXAMPLES = """examples:
  python -m scripts.gateway.faults
  python -m scripts.gateway.faults --only engine-killed --only engine-hung --no-record
  python -m scripts.gateway.faults --share 0.1 --no-record
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when every promise was kept, 1 when one was not, 2 usage."""
    parsed = parser().parse_args(arguments)
    chosen = [one for one in SCENARIOS if not parsed.only or one.name in parsed.only]
    made, machine = now(), this_machine()
    try:
        if parsed.record:
            check_writable(MEASUREMENTS)
        with stoppable(), shown() as progress:
            found = [tried(one, Size(parsed.share), progress.say) for one in chosen]
    except OSError as error:
        print(f"not played: {error}", file=sys.stderr)
        return 1
    if parsed.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        tell(found)
    kept = sum(not one["broken"] for one in found)
    if parsed.record:
        record = Record(
            kind="gateway-faults",
            made=made,
            command=typed("scripts.gateway.faults", arguments),
            machine=machine,
            variant={"versions": all_versions()},
            parameters={"share": parsed.share, "only": parsed.only},
            summary={"scenarios": len(found), "kept": kept, **totals(found)},
            samples=found,
        )
        path = add(record, MEASUREMENTS)
        print(f"wrote {path.relative_to(REPOSITORY)}", file=sys.stderr)
    return 0 if kept == len(found) else 1


def tried(scenario: Scenario, size: Size, say: Callable[[str], None]) -> dict[str, Any]:
    """One scenario in a folder of its own, and its row; what cannot be played is not kept."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="preheat-") as folder:
        try:
            counts = play(scenario, Path(folder), size)
            broken = scenario.rule.broken(counts)
        except (NotStaged, OSError, LookupError) as error:
            counts, broken = Counts(), [f"not played: {error!r}"]
    seconds = time.monotonic() - began
    say(f"{scenario.name}: {'; '.join(broken) or 'kept'} ({seconds:.1f} s)")
    return row(scenario, counts, broken) | {"seconds": round(seconds, 1)}


def play(scenario: Scenario, folder: Path, size: Size) -> Counts:
    """What came of one scenario.

    :raises NotStaged: it could not be brought about, or did not come to its end.
    """
    raise_open_files()
    return uvloop.run(scenario.play(folder, size))


def row(scenario: Scenario, counts: Counts, broken: list[str]) -> dict[str, Any]:
    """Of the record: what was done, what was promised, what came of it."""
    again = counts.again_seconds
    return {
        "name": scenario.name,
        "fault": scenario.fault,
        "promise": scenario.promise,
        "asked": counts.asked,
        "answers": dict(counts.words.most_common()),
        "lost": counts.lost,
        "twice": counts.twice,
        "again_seconds": None if again is None else round(again, 3),
        "running": counts.running,
        "connections": counts.connections,
        "descriptors": counts.descriptors,
        "exit_status": counts.exit_status,
        "held": counts.held,
        "notes": counts.notes,
        "broken": broken,
    }


def totals(found: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Over all scenarios."""
    return {name: sum(one[name] for one in found) for name in ("asked", "lost", "twice")}


def tell(found: Sequence[dict[str, Any]]) -> None:
    """The table for a person."""
    made = Table(title="faults")
    for name in ("fault", "what came of the requests", "promise"):
        made.add_column(name)
    for name in ("again after", "left"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("kept")
    for one in found:
        made.add_row(
            f"[bold]{one['name']}[/bold]\n{one['fault']}",
            "\n".join(f"{count:,} × {said}" for said, count in one["answers"].items()),
            one["promise"],
            "" if one["again_seconds"] is None else f"{one['again_seconds']:.2f} s",
            left(one),
            "\n".join(one["broken"]) or "yes",
        )
        made.add_section()
    console = Console()
    console.print(made)
    summed = totals(found)
    kept = sum(not one["broken"] for one in found)
    console.print(
        f"{kept} of {len(found)} promises kept; of {summed['asked']:,} requests {summed['lost']} "
        f"lost, {summed['twice']} answered twice or with another's"
    )


def left(one: dict[str, Any]) -> str:
    """What was left at the end: requests at the engine, connections, file descriptors."""
    each = [one[name] for name in ("running", "connections", "descriptors")]
    return "" if None in each else " ".join(map(str, each))


def all_versions() -> dict[str, str]:
    """Of ours and of what the gateway stands on."""
    found = versions() | {name: version(name) for name in LIBRARIES}
    return found | {"python": platform.python_version()}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.gateway.faults",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [one.name for one in SCENARIOS]
    top.add_argument(
        "--only",
        action="append",
        choices=names,
        default=[],
        metavar="NAME",
        help=f"this scenario, more than once for several: {', '.join(names)}",
    )
    top.add_argument("--share", type=amount, default=1.0, help="of the full numbers (1)")
    top.add_argument("--json", action="store_true", help="rows as JSON, not as a table")
    top.add_argument(
        "--record", action=argparse.BooleanOptionalAction, default=True, help="add a record (yes)"
    )
    return top


if __name__ == "__main__":
    sys.exit(main())
