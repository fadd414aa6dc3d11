"""Milliseconds of a step and tokens per second over batch x context x K, of one variant's engine.

Each K is an engine of its own; batch and context are loads of one engine, in rounds, so that what
else the machine does falls on all of them alike. K = 0 drafts nothing. Prompts are real text, each
with a beginning of its own, so that no prefix cache knows it. Samples beside which other processes
worked are rejected and taken again.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.record import Record, add, check_writable, folder_of, now, this_machine, typed
from scripts.options import add_axes, numbers
from scripts.profile.engine import Running, engine
from scripts.profile.heat import draw
from scripts.profile.prompts import Prompts, of
from scripts.quiet import OTHERS, timed, undisturbed
from scripts.served import NotServed
from scripts.starts import NotMeasured
from serve.cli import positive
from serve.errors import ConfigError
from serve.settings import REPOSITORY
from serve.variant import load_variant

EXAMPLES = """examples:
  python -m scripts.profile_matrix seq8-best --model tiny
  python -m scripts.profile_matrix seq8-best --batches 1,8 --contexts 64,1024 --k 0,2,4
"""
SPECULATION = "--speculative-config"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when measured, 1 when an engine failed, 2 usage."""
    parsed = parser().parse_args(arguments)
    made, machine = now(), this_machine()
    folder = folder_of(parsed.variant)
    try:
        load_variant(parsed.variant, REPOSITORY / "experiments")
        if parsed.record:
            check_writable(folder)
        variant, samples = measure(parsed)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except (NotServed, NotMeasured, OSError) as error:
        print(f"not measured: {error}", file=sys.stderr)
        return 1
    summary = {"cells": cells(samples)}
    record = Record(
        kind="profile-matrix",
        made=made,
        command=typed("scripts.profile_matrix", arguments),
        machine=machine,
        variant=variant,
        parameters={
            "batches": parsed.batches,
            "contexts": parsed.contexts,
            "k": parsed.k,
            "output_tokens": parsed.output_tokens,
            "rounds": parsed.rounds,
            "others_at_most": None if parsed.busy_ok else OTHERS,
        },
        summary=summary,
        samples=samples,
    )
    print(json.dumps(summary)) if parsed.json else show(summary["cells"], parsed.variant)
    try:
        if parsed.record:
            path = add(record, folder)
            print(f"wrote {path}", file=sys.stderr)
            draw(summary["cells"], path.with_suffix(".svg"))
    except OSError as error:
        print(f"not all of it was kept: {error}", file=sys.stderr)
        return 1
    return 0


def measure(parsed: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What ``/variant`` would say, and every sample in order.

    :raises NotServed: an engine failed.
    """
    settings = {"VARIANT": parsed.variant, "MODEL": parsed.model, "TARGET": parsed.target}
    samples: list[dict[str, Any]] = []
    variant: dict[str, Any] = {}
    for k in parsed.k:
        print(f"K = {k}: starting the engine …", file=sys.stderr)
        with (
            tempfile.TemporaryDirectory(prefix="preheat-") as folder,
            engine(settings, Path(folder), drafting(k), without=SPECULATION) as running,
        ):
            variant = variant or running.plan.describe()
            if k and not running.plan.model.has_mtp:
                raise NotServed(f"K = {k}: model {running.plan.model.name} has no MTP head")
            for sample in rounds(running, parsed):
                samples.append({"k": k} | sample)
                cell = f"batch {sample['batch']}, context {sample['context']}"
                print(f"  {cell}: {sample['ms_per_step']} ms a step", file=sys.stderr)
    return variant, samples


def drafting(k: int) -> list[str]:
    """Flags in place of the variant's own."""
    if not k:
        return []
    return [SPECULATION, json.dumps({"method": "mtp", "num_speculative_tokens": k})]


def rounds(running: Running, parsed: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each cell once, unmeasured, then all of them in turn, round after round."""
    grid = [(batch, context) for batch in parsed.batches for context in parsed.contexts]
    prompts = of(running)
    for batch, context in grid:
        running.load(prompts.load(batch, context, 4), batch)
    for number in range(parsed.rounds):
        for batch, context in grid:
            yield {"round": number, **beside_none(running, prompts, batch, context, parsed)}


def beside_none(
    running: Running, prompts: Prompts, batch: int, context: int, parsed: argparse.Namespace
) -> dict[str, Any]:
    """One cell, again until nobody else worked meanwhile, and how often that was.

    :raises scripts.starts.NotMeasured: somebody always did.
    """

    def take(_: int) -> list[dict[str, Any]]:
        return [cell(running, prompts, batch, context, parsed.output_tokens)]

    (sample,), rejected = undisturbed(take, busy_ok=parsed.busy_ok)
    return {**sample, "rejected": len(rejected)}


def cell(
    running: Running, prompts: Prompts, batch: int, context: int, output: int
) -> dict[str, Any]:
    """One load of ``batch`` requests at once: prefill and all the steps that follow."""
    before = running.steps()
    with timed() as sample:
        prefill = running.load(prompts.load(batch, context, 1), batch)
        between = running.steps()
        seconds = running.load(prompts.load(batch, context, output), batch)
    steps = running.steps() - between
    # The first load's time is that of the prefill alone, in as many steps.
    decoding = max(seconds - prefill, 0.0)
    return {
        "batch": batch,
        "context": context,
        "others": sample.others,
        "prefill_ms": round(prefill * 1e3, 3),
        "steps": steps,
        "ms_per_step": round(decoding * 1e3 / max(1, steps - (between - before)), 3),
        "tokens_per_second": round(batch * output / seconds, 2),
    }


def cells(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Median of each cell over the rounds, with what the rounds spanned."""
    found: dict[tuple[int, int, int], list[dict[str, Any]]] = {}
    for sample in samples:
        found.setdefault((sample["k"], sample["batch"], sample["context"]), []).append(sample)
    return [
        {"k": k, "batch": batch, "context": context}
        | {
            name: round(statistics.median(item[name] for item in items), 3)
            for name in ("ms_per_step", "tokens_per_second", "prefill_ms")
        }
        | {
            "ms_per_step_least": min(item["ms_per_step"] for item in items),
            "ms_per_step_most": max(item["ms_per_step"] for item in items),
        }
        for (k, batch, context), items in sorted(found.items())
    ]


def show(found: Sequence[dict[str, Any]], variant: str) -> None:
    """The table."""
    table = Table(title=f"{variant}: medians", box=None)
    names = ("k", "batch", "context", "ms_per_step", "tokens_per_second", "prefill_ms")
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for item in found:
        table.add_row(*(str(item[name]) for name in names))
    Console().print(table)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.profile_matrix",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("variant", help="a variant in experiments/")
    add_axes(top)
    top.add_argument("--batches", type=numbers(1), default=[1, 2, 4, 8], help="(1,2,4,8)")
    top.add_argument("--contexts", type=numbers(1), default=[64, 512, 2048], help="(64,512,2048)")
    top.add_argument("--k", type=numbers(0), default=[0, 4], help="drafted tokens a step (0,4)")
    top.add_argument("--output-tokens", type=positive, default=64, help="of each request (64)")
    top.add_argument("--rounds", type=positive, default=3, help="samples of each cell (3)")
    top.add_argument("--busy-ok", action="store_true", help="keep samples beside others' work")
    top.add_argument("--json", action="store_true", help="figures as JSON, not as a table")
    top.add_argument("--record", action=argparse.BooleanOptionalAction, default=True)
    return top


if __name__ == "__main__":
    sys.exit(main())
