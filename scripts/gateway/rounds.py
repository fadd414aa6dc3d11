"""Rounds of samples: each cell on each system in turn, in an order drawn anew each time."""

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from scripts.gateway.cells import STREAMING_CLIENTS, UNPACED, Cell
from scripts.gateway.costs import Processes, rested
from scripts.gateway.systems import System
from scripts.quiet import Sample, timed, undisturbed
from scripts.starts import NotMeasured, cpu_times
from serve.settings import REPOSITORY

# Answers that are not there so long after the last request was sent are late, and counted so.
GRACE_SECONDS = 5.0
REST_SECONDS = 120.0
WARM_SECONDS = 1.0
KEPT = ("sent", "whole", "failed", "seconds", "chunks")
SEEN = ("tallies", "milliseconds")
DURATIONS = ("whole", "first_chunk", "gap")


class LoadFailed(RuntimeError):
    """The load client ended: a fault of ours; the text is what it said."""


def load(system: System, *words: str) -> dict[str, Any]:
    """What one run of the load client saw of a system.

    :raises LoadFailed: it ended without saying.
    """
    argv = [sys.executable, "-m", "scripts.gateway.load", system.url, "--json", *words]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    # 1 says that not every answer was whole, which is told.
    if done.returncode not in (0, 1) or not done.stdout:
        raise LoadFailed(f"the load client ended ({done.returncode}): {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def warm_up(systems: Sequence[System]) -> None:
    """What a system does only at its first requests is done; thrown away."""
    for system in systems:
        for stream in (False, True):
            cell = Cell(UNPACED, WARM_SECONDS, stream=stream, clients=STREAMING_CLIENTS)
            load(system, *cell.words())


def sample(system: System, cell: Cell, seed: int, everybody: Sequence[Processes]) -> dict[str, Any]:
    """One cell on one system, with everybody at rest before.

    :raises NotMeasured: somebody never is. :raises LoadFailed: the client ended.
    """
    if not rested(everybody, REST_SECONDS):
        raise NotMeasured(f"a system works on {REST_SECONDS:g} s after its last request")
    costs = system.processes
    before = costs.cpu_seconds() if costs else 0.0
    with alone() as spent:
        found = load(system, *cell.words(), "--grace", str(GRACE_SECONDS), "--seed", str(seed))
    # Of as many requests as a closed loop makes, only the quantiles are kept.
    durations = "tallies" if cell.rate else "milliseconds"
    return {
        **{name: found[name] for name in KEPT},
        "cpu_s": round(costs.cpu_seconds() - before, 2) if costs else None,
        "others": spent.others,
        "late_p99_ms": found["milliseconds"].get("late", {}).get("p99"),
        durations: {name: one for name, one in found[durations].items() if name in DURATIONS},
    }


@contextmanager
def alone() -> Iterator[Sample]:
    """``timed``, but for interrupts: packets on loopback are no process's, and here they are our
    own.
    """
    ticks = cpu_times()
    with timed() as spent:
        yield spent
    passed = [after - was for was, after in zip(ticks, cpu_times(), strict=True)]
    interrupts = sum(passed[5:7]) / max(sum(passed), 1)
    spent.others = round(max(0.0, spent.others - interrupts), 4)


def turn(  # noqa: PLR0913  the last is the number of the try
    order: Sequence[System],
    cell: Cell,
    number: int,
    seed: int,
    everybody: Sequence[Processes],
    attempt: int,
) -> list[dict[str, Any]]:
    """A sample of one cell on each system, all with the same arrivals.

    :raises NotMeasured: one of them never rests. :raises LoadFailed: the client ended.
    """
    arrivals = seed + 1_000 * number + attempt
    return [
        {"round": number, "cell": cell.name, "system": system.name}
        | sample(system, cell, arrivals, everybody)
        for system in order
    ]


def measure(
    systems: Sequence[System],
    loads: Sequence[Cell],
    asked: argparse.Namespace,
    tell: Callable[[str], None],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Samples of all rounds, and those rejected because others worked beside them.

    The systems of a cell follow one another: of them one is compared with the other.

    :raises NotMeasured: others never rest. :raises LoadFailed: the client ended.
    """
    chance = random.Random(asked.seed)  # noqa: S311 - no secret
    everybody = [one.processes for one in systems if one.processes]
    kept: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    for number in range(asked.rounds):
        for place, cell in enumerate(chance.sample(loads, len(loads)), start=1):
            tell(f"round {number + 1} of {asked.rounds}, {place} of {len(loads)}: {cell.name}")
            order = chance.sample(systems, len(systems))
            take = partial(turn, order, cell, number, asked.seed, everybody)
            taken, others = undisturbed(take, busy_ok=asked.busy_ok)
            kept += taken
            # Only that there were such samples is kept, and why.
            rejected += [{k: v for k, v in one.items() if k not in SEEN} for one in others]
    return kept, rejected
