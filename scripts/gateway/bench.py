"""Measures what our gateway adds: beside direct access, LiteLLM's proxy, and a process that only
copies bytes, which is the least that anything in between can add; all on one fake engine.

All are alive at once and loaded in turn, in an order drawn anew in each round, one worker each.
Open loop, at a rate with an engine that has a pace: what is added to whole answers, to the first
chunk, to the gaps between chunks. Closed loop, with an engine that answers at once: answers for
each second of a core that a system takes. Then streams are held open, for their memory.
Samples taken while other processes worked are rejected and taken again.

The gateway is `preheat serve run` as it ships; LiteLLM is installed in .cache/litellm at first, in
the release that scripts/gateway/litellm.txt pins. On two quiet cores it takes about half an hour.
"""

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from bake.progress import shown
from experiments.record import (
    MEASUREMENTS,
    Record,
    add,
    check_writable,
    now,
    this_machine,
    typed,
)
from scripts.gateway import idle, lite, show, systems
from scripts.gateway.cells import Cell, cells
from scripts.gateway.copier import copier
from scripts.gateway.figures import held, summary
from scripts.gateway.rounds import LoadFailed, measure, warm_up
from scripts.gateway.systems import DIRECT, OURS, System
from scripts.latency.commanded import rates
from scripts.options import amount, numbers
from scripts.quiet import OTHERS
from scripts.served import NotServed, stoppable
from scripts.starts import NotMeasured
from serve.cli import positive
from serve.plan import versions
from serve.settings import REPOSITORY

STOPPED = (NotServed, NotMeasured, LoadFailed, lite.NotInstalled, OSError)
LIBRARIES = ("aiohttp", "fastapi", "httptools", "starlette", "uvicorn", "uvloop")
EXAMPLES = """examples:
  python -m scripts.gateway.bench
  python -m scripts.gateway.bench --without-litellm --rates 50 --concurrency 8 --idle 0
  python -m scripts.gateway.bench --quick --without-litellm --no-record
  python -m scripts.gateway.bench --set PREHEAT_MAX_RESTARTS=0 --system other=http://127.0.0.1:9000
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when all was measured, whatever it says of the goals; 1 when not, 2 usage."""
    top = parser()
    parsed = top.parse_args(arguments)
    if parsed.idle < 0:
        top.error(f"--idle: expected a number from 0 on, got {parsed.idle}")
    if parsed.quick:
        parsed.rounds, parsed.seconds, parsed.closed_seconds = 1, 0.5, 0.5
        parsed.idle, parsed.busy_ok = 0, True
    loads = cells(parsed.rates, parsed.concurrency, parsed.seconds, parsed.closed_seconds)
    made, machine = now(), this_machine()
    try:
        if parsed.record:
            check_writable(MEASUREMENTS)
        with shown() as progress:
            found, samples = run(parsed, loads, progress.say)
    except STOPPED as error:
        print(f"not measured: {error}", file=sys.stderr)
        return 1
    tell(found, as_json=parsed.json)
    if not parsed.record:
        return 0
    record = Record(
        kind="gateway",
        made=made,
        command=typed("scripts.gateway.bench", arguments),
        machine=machine,
        variant={"versions": all_versions(parsed), "settings": dict(parsed.set)},
        parameters=asked(parsed, loads),
        summary=found,
        samples=samples,
    )
    try:
        path = add(record, MEASUREMENTS)
    except OSError as error:
        print(f"no record was added: {error}", file=sys.stderr)
        return 1
    print(f"wrote {path.relative_to(REPOSITORY)}", file=sys.stderr)
    return 0


def run(
    parsed: argparse.Namespace, loads: Sequence[Cell], say: Callable[[str], None]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary of a run, and its samples.

    :raises Exception: one of ``STOPPED``.
    """
    with alive(parsed, say) as each:
        say(f"warm up {', '.join(one.name for one in each)}")
        warm_up(each)
        samples, rejected = measure(each, loads, parsed, say)
        found = summary(samples, {one.name: one.load for one in loads})
        ours = next(one for one in each if one.name == OURS)
        if parsed.idle and ours.processes:
            say(f"hold {parsed.idle} streams")
            found["idle"] = idle.hold(ours, ours.processes, parsed.idle)
            found["goals"].append(asdict(held(found["idle"])))
        peaks = {one.name: one.processes.peak_bytes() for one in each if one.processes}
    return found | {"peak_bytes": peaks, "rejected_samples": rejected}, samples


@contextmanager
def alive(parsed: argparse.Namespace, say: Callable[[str], None]) -> Iterator[list[System]]:
    """Every system that is measured; all that was started here is gone at the end.

    :raises NotServed: one does not start. :raises NotInstalled: LiteLLM cannot be.
    """
    with stoppable(), ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="preheat-")))
        if parsed.without_litellm:
            say("litellm is left out: --without-litellm")
        elif not lite.installed():
            lite.install(say)
        say("start the engine and our gateway")
        gateway = systems.gateway(dict(parsed.set), folder / OURS, parsed.upstream_port)
        each = [*stack.enter_context(gateway), *parsed.system]
        direct = next(one for one in each if one.name == DIRECT)
        each.append(stack.enter_context(copier(direct.url)))
        if not parsed.without_litellm:
            say(f"start litellm {lite.version()}")
            each.append(stack.enter_context(lite.proxy(direct.url, folder / lite.NAME)))
        yield each


def tell(found: dict[str, Any], *, as_json: bool) -> None:
    """The tables, or all of it as JSON."""
    if as_json:
        print(json.dumps(found, indent=1))
        return
    console = Console()
    for table in show.tables(found):
        console.print(table)


def all_versions(parsed: argparse.Namespace) -> dict[str, str]:
    """Of ours, of the libraries that a gateway stands on, and of what was beside it."""
    found = versions() | {name: version(name) for name in LIBRARIES}
    found["python"] = platform.python_version()
    return found if parsed.without_litellm else found | {lite.NAME: lite.version()}


def asked(parsed: argparse.Namespace, loads: Sequence[Cell]) -> dict[str, Any]:
    """Of the record."""
    return {
        "rounds": parsed.rounds,
        "seed": parsed.seed,
        "cells": {one.name: one.load for one in loads},
        "idle": parsed.idle,
        "others_at_most": None if parsed.busy_ok else OTHERS,
        "others_named": {one.name: one.url for one in parsed.system},
    }


def setting(text: str) -> tuple[str, str]:
    """A variable of the gateway and its value.

    :raises argparse.ArgumentTypeError: it is none.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, value


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.gateway.bench",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    clients = numbers(1)
    top.add_argument("--rounds", type=positive, default=8, help="of every cell (8)")
    top.add_argument("--rates", type=rates, default=[50.0, 200.0], help="open loop (50,200)")
    top.add_argument("--concurrency", type=clients, default=[1, 8, 64], help="closed loop (1,8,64)")
    top.add_argument("--seconds", type=amount, default=5.0, help="of an open loop (5)")
    top.add_argument("--closed-seconds", type=amount, default=3.0, help="of a closed loop (3)")
    top.add_argument("--idle", type=int, default=1000, help="streams held open; 0: none (1000)")
    top.add_argument("--without-litellm", action="store_true", help="leave it out, and say so")
    top.add_argument(
        "--system",
        type=systems.named,
        action="append",
        default=[],
        metavar="NAME=URL[,PID]",
        help="measure another one, too; with its process, what it costs",
    )
    top.add_argument(
        "--set",
        type=setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a variable of our gateway",
    )
    top.add_argument(
        "--upstream-port", type=int, default=0, help="of the fake engine; 0: a free one (0)"
    )
    top.add_argument("--seed", type=int, default=7, help="of order and arrivals (7)")
    top.add_argument("--busy-ok", action="store_true", help="keep samples beside others' work")
    top.add_argument(
        "--quick",
        action="store_true",
        help="one round, half a second each, no idle streams",
    )
    top.add_argument("--json", action="store_true", help="figures as JSON, not as tables")
    top.add_argument(
        "--record", action=argparse.BooleanOptionalAction, default=True, help="add a record (yes)"
    )
    return top


if __name__ == "__main__":
    sys.exit(main())
