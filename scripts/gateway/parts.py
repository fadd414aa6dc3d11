"""What each part of the gateway's way costs: as it ships, and with one part a library's own.

All are asked in turn, in an order drawn anew each round, by clients who ask again as soon as they
have their answer; what counts is the CPU time that the gateway took for a request.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bake.progress import shown
from experiments.record import MEASUREMENTS, Record, add, now, this_machine, typed
from scripts.gateway.costs import Processes
from scripts.gateway.other_parts import NAMES, OURS
from scripts.gateway.rounds import LoadFailed, alone, load
from scripts.gateway.systems import System
from scripts.intervals import geometric_mean
from scripts.quiet import OTHERS, undisturbed
from scripts.starts import NotMeasured
from serve.cli import positive
from serve.preflight import bind
from serve.settings import REPOSITORY

START_SECONDS = 30
CLIENTS = 8
MICRO = 1e6
EXAMPLES = """examples:
  python -m scripts.gateway.parts
  python -m scripts.gateway.parts --rounds 3 --seconds 1 --busy-ok --no-record
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 done, 1 not measured, 2 usage."""
    parsed = parser().parse_args(arguments)
    made, machine = now(), this_machine()
    try:
        kept, rejected = measured(parsed)
    except (NotMeasured, LoadFailed) as error:
        print(f"not measured: {error}", file=sys.stderr)
        return 1
    found = summary(kept)
    if parsed.json:
        print(json.dumps(found, indent=1))
    else:
        Console().print(table(found))
    if parsed.record:
        record = Record(
            kind="gateway-parts",
            made=made,
            command=typed("scripts.gateway.parts", arguments),
            machine=machine,
            variant={},
            parameters={
                "rounds": parsed.rounds,
                "seconds": parsed.seconds,
                "clients": CLIENTS,
                "others_at_most": None if parsed.busy_ok else OTHERS,
            },
            summary=found | {"rejected_samples": len(rejected)},
            samples=kept,
        )
        print(f"wrote {add(record, MEASUREMENTS).relative_to(REPOSITORY)}", file=sys.stderr)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.gateway.parts",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--rounds", type=positive, default=10, help="samples of each (10)")
    top.add_argument("--seconds", type=positive, default=3, help="of each sample (3)")
    top.add_argument("--busy-ok", action="store_true", help="keep samples beside others' work")
    top.add_argument("--json", action="store_true", help="figures as JSON, not as a table")
    top.add_argument(
        "--record", action=argparse.BooleanOptionalAction, default=True, help="add a record (yes)"
    )
    return top


def measured(parsed: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Samples of every round, and those rejected.

    :raises NotMeasured: others never rest. :raises LoadFailed: the client ended.
    """
    kept: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    drawn = random.Random(1)  # noqa: S311 - an order, not a secret
    with shown() as tell, systems() as each:
        for number in range(1, parsed.rounds + 1):
            tell.say(f"round {number} of {parsed.rounds}")

            def take(_: int, number: int = number) -> list[dict[str, Any]]:
                order = drawn.sample(each, len(each))
                return [{"round": number, **sample(one, parsed.seconds)} for one in order]

            good, others = undisturbed(take, busy_ok=parsed.busy_ok)
            kept, rejected = kept + good, rejected + others
    return kept, rejected


def sample(system: System, seconds: int) -> dict[str, Any]:
    """One run of the load client."""
    assert system.processes  # noqa: S101 - started here
    with alone() as spent:
        before = system.processes.cpu_seconds()
        seen = load(system, "--concurrency", str(CLIENTS), "--seconds", str(seconds))
        took = system.processes.cpu_seconds() - before
    if seen["failed"]:
        raise LoadFailed(f"{system.name}: {seen['failed']}")
    micros = MICRO * took / seen["whole"]
    return {
        "part": system.name,
        "requests": seen["whole"],
        "cpu_seconds": round(took, 3),
        "us_per_request": round(micros, 2),
        "others": spent.others,
    }


@contextmanager
def systems() -> Iterator[list[System]]:
    """Every one of ``NAMES`` before one fake engine; all are gone at the end."""
    with ExitStack() as held:
        folder = held.enter_context(tempfile.TemporaryDirectory(prefix="preheat-"))
        socket = str(Path(folder) / "engine.sock")
        held.enter_context(process("upstream", "--uds", socket, "--port", "0"))
        made = []
        for name in NAMES:
            with bind("127.0.0.1", 0) as free:
                port = free.getsockname()[1]
            words = ("other_parts", name, "--uds", socket, "--port", str(port))
            running = held.enter_context(process(*words))
            made.append(System(name, f"http://127.0.0.1:{port}", Processes(running.pid)))
        for system in made:
            until_answering(system)
        yield made


@contextmanager
def process(module: str, *words: str) -> Iterator["subprocess.Popen[bytes]"]:
    """``python -m scripts.gateway.MODULE``, stopped at the end."""
    argv = [sys.executable, "-m", f"scripts.gateway.{module}", *words]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(argv, cwd=REPOSITORY, stdout=quiet, stderr=quiet) as running:
        try:
            yield running
        finally:
            running.terminate()


def until_answering(system: System) -> None:
    """Return once every answer is whole.

    :raises NotMeasured: it never is.
    """
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if not load(system, "--concurrency", "1", "--requests", "20")["failed"]:
            return
        time.sleep(0.1)
    raise NotMeasured(f"{system.name} does not answer")


def summary(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each: CPU microseconds a request, the median over rounds, and over what ships with an
    interval.
    """
    by_part = {
        name: np.array([one["us_per_request"] for one in samples if one["part"] == name])
        for name in NAMES
    }
    ratios = {name: geometric_mean(each / by_part[OURS]) for name, each in by_part.items()}
    return {
        "parts": {
            name: {
                "us_per_request": round(float(np.median(each)), 1),
                "over_ours": ratios[name].describe(),
            }
            for name, each in by_part.items()
        }
    }


def table(found: Mapping[str, Any]) -> Table:
    """For a person."""
    made = Table(title="CPU time of the gateway for a whole answer")
    for name in ("with", "µs", "over what ships"):
        made.add_column(name, justify="left" if name == "with" else "right")
    for name, one in found["parts"].items():
        ratio = "{point:.2f}× [{low:.2f}, {high:.2f}]".format_map(one["over_ours"])
        made.add_row(name, f"{one['us_per_request']:.0f}", ratio)
    return made


if __name__ == "__main__":
    sys.exit(main())
