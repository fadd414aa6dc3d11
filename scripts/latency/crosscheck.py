"""Our load generator beside `vllm bench serve`: the same server, prompts and number of clients.

The two take turns. From one turn to the next this server's own pace may change by half, so what a
client saw is divided by what the engine counted of the same requests, and the two clients are
compared in that. They agree where the 95 % interval over turns of ours / theirs lies within
--within of 1, and disagree where it lies beyond. Prompts are sent as plain completions, each pass
with its own numbers in front, so that no pass meets another's prefixes.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from bake.progress import shown
from experiments.record import Record, add, folder_of, now, this_machine, typed
from scripts.intervals import Interval, geometric_mean
from scripts.latency import bench, facts
from scripts.latency.bench import BenchFailed
from scripts.latency.commanded import (
    STOPPED,
    check_folders,
    check_weights,
    common_model,
)
from scripts.latency.loader import Loader, LoadFailed, loader
from scripts.latency.prompts import (
    MIXED,
    BadPrompts,
    Prompt,
    described,
    marked,
    number,
    read_prompts,
    request,
)
from scripts.latency.rigs import Rig, rigs
from scripts.latency.rounds import counters
from scripts.options import add_axes, amount
from scripts.quiet import OTHERS, timed, undisturbed
from scripts.served import PAUSE_SECONDS
from serve.cli import positive
from serve.errors import ConfigError
from serve.settings import REPOSITORY

WITHIN = 0.05
TURNS = 10
# Of fewer a bootstrap over turns has hardly any width, and would be the surer the less it saw.
LEAST_TURNS = 6
TOOLS = ("ours", "vllm")
SECONDS = 300
Finding = Literal["agree", "undecided", "disagree"]
# From the best to the worst: the worst of all figures is that of the whole.
VERDICTS = {"agree": "agree", "undecided": "may or may not agree", "disagree": "do not agree"}
EXAMPLES = """examples:
  python -m scripts.latency.crosscheck seq8 --model tiny
  python -m scripts.latency.crosscheck seq8 --concurrency 8 --turns 20
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when the two agree, 1 when not, not surely, or not run, 2 usage."""
    parsed = parser().parse_args(arguments)
    try:
        said = read_prompts(parsed.prompts)
        prompts, prompt_set = plain(said)[: parsed.requests], described(said, parsed.prompts)
        parsed.model = common_model([parsed.variant], parsed.model, parsed.target)
        check_weights([parsed.variant], parsed.model)
        if parsed.record:
            check_folders([parsed.variant])
    except (BadPrompts, ConfigError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    made, machine = now(), this_machine()
    try:
        told, taken, rejected = run(parsed, prompts)
    except (*STOPPED, BenchFailed, ConfigError) as error:
        print(f"not checked: {error}", file=sys.stderr)
        return 1
    found = compared(taken, parsed.within)
    if parsed.json:
        print(json.dumps(found, indent=1))
    else:
        Console().print(table(found))
    if parsed.record:
        record = Record(
            kind="latency-crosscheck",
            made=made,
            command=typed("scripts.latency.crosscheck", arguments),
            machine=machine,
            variant=told,
            parameters=asked(parsed, prompt_set, len(prompts)),
            summary=found | {"rejected_samples": rejected},
            samples=taken,
        )
        try:
            path = add(record, folder_of(parsed.variant))
        except OSError as error:
            print(f"no record was added: {error}", file=sys.stderr)
            return 1
        print(f"wrote {path.relative_to(REPOSITORY)}", file=sys.stderr)
    return 0 if found["finding"] == "agree" else 1


def run(
    parsed: argparse.Namespace, prompts: Sequence[Prompt]
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """What the variant says of itself, the samples of every turn, and those that were rejected.

    :raises Exception: one of ``STOPPED``, BenchFailed or ConfigError.
    """
    axes = {"VARIANT": parsed.variant, "MODEL": parsed.model, "TARGET": parsed.target}
    with (
        shown() as tell,
        tempfile.TemporaryDirectory(prefix="preheat-") as folder,
    ):
        tell.say(f"start {parsed.variant}")
        with rigs({parsed.variant: axes}, Path(folder)) as (rig,):
            tell.say(f"{parsed.turns} turns of each, {parsed.concurrency} at once")
            taken, rejected = alternate(
                rig, prompts, parsed.concurrency, parsed.turns, Path(folder), busy_ok=parsed.busy_ok
            )
    return dict(rig.told), taken, rejected


def asked(
    parsed: argparse.Namespace, prompt_set: Mapping[str, Any], prompts: int
) -> dict[str, Any]:
    """Of the record."""
    return {
        "prompt_set": prompt_set,
        "prompts": prompts,
        "concurrency": parsed.concurrency,
        "turns": parsed.turns,
        "within": parsed.within,
        "others_at_most": None if parsed.busy_ok else OTHERS,
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.latency.crosscheck",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("variant", help="what is served")
    add_axes(top)
    top.add_argument("--prompts", type=Path, default=MIXED, help="JSON lines (mixed.jsonl)")
    top.add_argument("--requests", type=positive, help="of each turn (the set)")
    top.add_argument("--concurrency", type=positive, default=4, help="clients at once (4)")
    top.add_argument("--turns", type=positive, default=TURNS, help="of each tool (10)")
    top.add_argument("--within", type=amount, default=WITHIN, help="largest relative gap (0.05)")
    top.add_argument("--busy-ok", action="store_true", help="keep samples beside others' work")
    top.add_argument("--json", action="store_true", help="figures as JSON, not as a table")
    top.add_argument(
        "--record", action=argparse.BooleanOptionalAction, default=True, help="add a record (yes)"
    )
    return top


def plain(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The set as plain completions: of a chat, what was said, line by line."""
    return [
        replace(one, prompt="\n".join(said["content"] for said in one.messages), messages=())
        if one.messages
        else one
        for one in prompts
    ]


def alternate(  # noqa: PLR0913  six different things
    rig: Rig,
    prompts: Sequence[Prompt],
    concurrency: int,
    turns: int,
    folder: Path,
    *,
    busy_ok: bool = False,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A sample of each tool in every turn, ours, theirs, theirs, ours, …; and those of turns that
    were taken again because others worked meanwhile. One pass of ours before is thrown away.

    :raises BenchFailed: theirs. :raises LoadFailed: ours. :raises NotMeasured: others never rest.
    """
    with loader() as load:

        def sample(tool: str, *key: object) -> dict[str, Any]:
            marks = (number("crosscheck", tool, *key, place) for place in range(len(prompts)))
            own = [marked(one, mark) for one, mark in zip(prompts, marks, strict=True)]
            time.sleep(PAUSE_SECONDS)
            before = counters(rig)
            with timed() as spent:
                seen = (
                    ours(load, rig, own, concurrency)
                    if tool == "ours"
                    else bench.figures(rig, own, concurrency, folder)
                )
            after = counters(rig)
            counted = facts.means(before, after, min(concurrency, len(own)))
            return {"tool": tool, "seen": seen, "counted": counted, "others": spent.others}

        sample("ours", 0)
        taken: list[dict[str, Any]] = []
        rejected: list[dict[str, Any]] = []
        for turn in range(1, turns + 1):

            def take(attempt: int, turn: int = turn) -> list[dict[str, Any]]:
                tools = TOOLS if turn % 2 else TOOLS[::-1]
                return [{"turn": turn, **sample(tool, turn, attempt)} for tool in tools]

            kept, others = undisturbed(take, busy_ok=busy_ok)
            taken, rejected = taken + kept, rejected + others
    return taken, rejected


def ours(load: Loader, rig: Rig, prompts: Sequence[Prompt], concurrency: int) -> dict[str, float]:
    """One pass of our load generator.

    :raises LoadFailed: it is gone, or a request failed.
    """
    asked = [request(one, rig.model, as_served=False) for one in prompts]
    job = {"url": rig.url, "requests": asked, "concurrency": concurrency}
    answer = load.run(job | {"timeout": SECONDS, "deadline": SECONDS})
    seen = answer["requests"]
    if failed := [one["failed"] for one in seen if one["failed"]]:
        raise LoadFailed(f"{len(failed)} of {len(seen)} requests failed: {failed[0]}")
    per_token = [(one["latency"] - one["ttft"]) / (one["tokens"] - 1) for one in seen]
    return {
        "ttft_ms": 1000 * statistics.mean(one["ttft"] for one in seen),
        "itl_ms": 1000 * statistics.mean(per_token),
        "gap_ms": 1000 * statistics.mean(gap for one in seen for gap in one["gaps"]),
        "tokens_per_s": sum(one["tokens"] for one in seen) / answer["wall"],
    }


def compared(taken: Sequence[Mapping[str, Any]], within: float) -> dict[str, Any]:
    """Of each figure: medians of what both saw, of what they saw over what the engine counted, and
    ours / theirs of the latter, its geometric mean over turns with an interval.
    """
    by_tool = {tool: [one for one in taken if one["tool"] == tool] for tool in TOOLS}
    figures: dict[str, Any] = {}
    for name in bench.FIGURES:
        over = {
            tool: [one["seen"][name] / one["counted"][name] for one in samples]
            for tool, samples in by_tool.items()
        }
        ratio = geometric_mean(np.divide(over["ours"], over["vllm"]))
        figures[name] = {
            "seen": {
                tool: statistics.median(one["seen"][name] for one in samples)
                for tool, samples in by_tool.items()
            },
            "over_counted": {tool: statistics.median(each) for tool, each in over.items()},
            "ratio": ratio.describe(),
            "finding": judged(ratio, within),
        }
    findings = [one["finding"] for one in figures.values()]
    return {
        "figures": figures,
        "within": within,
        "finding": max(findings, key=list(VERDICTS).index),
    }


def judged(ratio: Interval, within: float) -> Finding:
    """The whole interval within the bound of 1, beyond it, or across; undecided of few turns."""
    if ratio.items < LEAST_TURNS:
        return "undecided"
    if 1 - within <= ratio.low and ratio.high <= 1 + within:
        return "agree"
    return "disagree" if ratio.low > 1 + within or ratio.high < 1 - within else "undecided"


def table(found: Mapping[str, Any]) -> Table:
    """For a person."""
    verdict = VERDICTS[found["finding"]]
    made = Table(title=f"the two {verdict} within {found['within']:.0%}")
    for name in ("mean of", "ours", "vllm", "ours / engine", "vllm / engine", "ours / vllm"):
        made.add_column(name, justify="right")
    for name, one in found["figures"].items():
        seen = [f"{one['seen'][tool]:.2f}" for tool in TOOLS]
        over = [f"{one['over_counted'][tool]:.3f}" for tool in TOOLS]
        ratio = "{point:.3f} [{low:.3f}, {high:.3f}]".format_map(one["ratio"])
        made.add_row(name, *seen, *over, ratio)
    return made


if __name__ == "__main__":
    sys.exit(main())
