"""How many drafts a step: a variant with K = 0 … 7 beside each other, and the K that is picked.

The engines of all K are alive at once and are loaded in turn, in an order that is drawn for each
two rounds and goes there and back, so that what the machine does meanwhile is every K's. Speed is
against K = 0 in the same rounds, with 95 % bootstrap intervals; tokens a step are the engines' own
counters. Samples taken while other processes worked are rejected. The rule that picks is fixed in
`scripts.mtp.sweep`. A target that bears fewer drafts is not asked for more.

Where memory does not hold all engines they come in groups, each beside the same K = 0. All Ks share
a root of compile caches, which is kept: a second run starts in seconds. At the end of --minutes the
rounds count that are whole; a group that was not reached, or that an engine ended, is left out by
name, and what the others gave is kept. Of tiny on two quiet cores it takes about eight minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bake.progress import shown
from experiments.record import Record, add, check_writable, folder_of, now, this_machine, typed
from scripts.latency.commanded import STOPPED
from scripts.latency.memory import check_card
from scripts.latency.plan import Cell
from scripts.latency.prompts import MIXED, BadPrompts, Prompt, described, read_prompts
from scripts.latency.rounds import Options
from scripts.latency.statistics import DRAWS, METHOD
from scripts.mtp.levers import Chosen, choose
from scripts.mtp.sweep import RULE, draw, report, slim, summary
from scripts.mtp.sweeping import MIB, Sweep, Tell, merged
from scripts.options import add_axes, amount, even, numbers
from scripts.picture import keep
from scripts.quiet import OTHERS
from scripts.served import stoppable
from scripts.starts import NotMeasured
from serve.cli import positive
from serve.errors import ServeError
from serve.preflight import needed_bytes
from serve.variant import MAX_SPECULATIVE_TOKENS

EXAMPLES = """examples:
  python -m scripts.sweep_k seq8-best
  python -m scripts.sweep_k seq8-best --k 0,2,4 --quick --no-record --out /tmp/k.svg
  python -m scripts.sweep_k seq8-best --minutes 6 --together 4
  python -m scripts.sweep_k seq8-best --redraw RECORD.json --out /tmp/k.svg
"""


class Unusable(ValueError):
    """What was asked for cannot be measured, or not be kept; one line says what to ask for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when a K was picked, 1 when it could not be measured, 2 usage."""
    parsed = parser().parse_args(arguments)
    parsed.command = typed("scripts.sweep_k", arguments)
    try:
        if parsed.redraw:
            return redraw(parsed)
        prompts, chosen = asked(parsed)
        with shown() as progress, stoppable():
            record = measured(parsed, chosen, prompts, progress.say)
        print(json.dumps(record.summary, indent=1) if parsed.json else report(record.summary))
        for path in kept(record, parsed):
            print(f"wrote {path}", file=sys.stderr)
    except (Unusable, BadPrompts) as error:
        print(f"sweep_k: {error}", file=sys.stderr)
        return 2
    except ServeError as error:
        print(f"sweep_k: {error}", file=sys.stderr)
        return error.exit_code
    except STOPPED as error:
        print(f"sweep_k: {error}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.sweep_k",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("variant", help="the variant whose drafts are swept")
    add_axes(top)
    top.add_argument("--k", type=_drafts, default=None, help="0,1,… (all the target bears)")
    top.add_argument(
        "--concurrency", type=numbers(1), default=[1, 4, 8], help="clients at once (1,4,8)"
    )
    top.add_argument("--rounds", type=even, default=6, help="an even number (6)")
    top.add_argument("--requests", type=positive, help="of each sample (8 and one a client)")
    top.add_argument("--prompts", type=Path, default=MIXED, help="JSON lines (mixed.jsonl)")
    top.add_argument("--together", type=positive, help="engines alive at most (what memory holds)")
    top.add_argument("--minutes", type=amount, default=15, help="it may take, with starts (15)")
    top.add_argument("--seed", type=int, default=7, help="of prompts, turns, bootstrap (7)")
    top.add_argument("--busy-ok", action="store_true", help="keep samples beside others' work")
    top.add_argument("--quick", action="store_true", help="2 rounds of 8 requests a sample")
    top.add_argument("--out", type=Path, help="the picture (k-sweep.svg of the variant)")
    top.add_argument("--redraw", type=Path, help="a record: only draw its picture again")
    top.add_argument("--json", action="store_true", help="figures as JSON, not as a table")
    top.add_argument(
        "--record", action=argparse.BooleanOptionalAction, default=True, help="add a record (yes)"
    )
    return top


def _drafts(text: str) -> list[int]:
    return sorted({0, *numbers(0, MAX_SPECULATIVE_TOKENS)(text)})


def borne(chosen: Chosen) -> int:
    """The most drafts a step that the target bears."""
    return chosen.target.max_speculative_tokens or MAX_SPECULATIVE_TOKENS


def asked(parsed: argparse.Namespace) -> tuple[list[Prompt], Chosen]:
    """What is sent, and what is served: looked up, as is where the figures go, before an hour of
    engines.

    :raises Unusable, BadPrompts, ServeError: something is not there, or does not fit.
    """
    prompts = read_prompts(parsed.prompts)
    chosen = choose(parsed.variant, parsed.model, parsed.target)
    if not chosen.model.has_mtp:
        raise Unusable(f"model {chosen.model.name} has no mtp.* weights: name another with --model")
    most = borne(chosen)
    if above := [k for k in parsed.k or () if k > most]:
        raise Unusable(f"--k {above[0]}: target {chosen.target.name} bears {most} drafts")
    if parsed.k == [0]:
        raise Unusable("--k 0: expected a K beside it, e.g. --k 0,2,4")
    check_card(chosen.target, needed_bytes(chosen.model, chosen.target), 2)
    check_places(parsed)
    return prompts, chosen


def check_places(parsed: argparse.Namespace) -> None:
    """Whether record and picture may be written.

    :raises Unusable: one may not.
    """
    out = picture_of(parsed)
    if out and out.is_dir():
        raise Unusable(f"--out {out}: expected a file, got a folder")
    folders = ([out.parent] if out else []) + ([folder_of(parsed.variant)] if parsed.record else [])
    for folder in folders:
        try:
            check_writable(folder)
        except OSError as error:
            raise Unusable(f"{folder}: cannot be written to: {error.strerror}") from error


def picture_of(parsed: argparse.Namespace) -> Path | None:
    """Where the picture goes; none where nothing is kept and none was asked for."""
    beside: Path | None = (
        folder_of(parsed.variant).parent / "k-sweep.svg" if parsed.record else None
    )
    return parsed.out or beside


def wanted(parsed: argparse.Namespace) -> tuple[list[Cell], Options]:
    """Cells and options as the command line has them."""
    rounds, requests = parsed.rounds, parsed.requests
    if parsed.quick:
        rounds, requests = 2, requests or 8
    loads = [Cell(concurrency=c, requests=max(8 + c, 2 * c)) for c in parsed.concurrency]
    options = Options(rounds, requests, parsed.seed, busy_ok=parsed.busy_ok, strict=True)
    return loads, options


def measured(
    parsed: argparse.Namespace, chosen: Chosen, prompts: Sequence[Prompt], tell: Tell
) -> Record:
    """Every K, and the record of them.

    :raises NotServed: an engine does not start. :raises NotMeasured: one fails, or others work.
    """
    made, machine, began = now(), this_machine(), time.monotonic()
    most = borne(chosen)
    ks = [k for k in parsed.k or range(MAX_SPECULATIVE_TOKENS + 1) if k <= most]
    if len(ks) < 2:
        raise NotMeasured(f"nothing beside K=0: {chosen.target.name} bears {most} drafts")
    loads, options = wanted(parsed)
    prompt_set = described(prompts, parsed.prompts)
    with tempfile.TemporaryDirectory(prefix="preheat-") as folder:
        until = began + 60 * parsed.minutes
        sweep = Sweep(chosen, prompts, loads, options, Path(folder), until, tell)
        alive = sweep.all(ks, parsed.together)
    samples = [slim(one, at) for at, run in enumerate(sweep.runs) for one in run.samples]
    return Record(
        kind="k-sweep",
        made=made,
        command=parsed.command,
        machine=machine,
        variant=sweep.variant(),
        parameters={
            **vars(options),
            "k": ks,
            "concurrency": parsed.concurrency,
            "requests_of": {one.label: one.requests for one in loads},
            "alive_together": [[0, *group] for group in alive],
            "minutes": parsed.minutes,
            "prompt_set": prompt_set,
            "model": chosen.model.name,
            "rule": RULE,
            "others_at_most": None if parsed.busy_ok else OTHERS,
            "statistics": f"{METHOD}; {DRAWS} draws, seed {options.seed}",
        },
        summary={
            **summary(samples, options.seed),
            "left_out": sweep.left_out,
            "rounds": [run.rounds for run in sweep.runs],
            "memory_mib": {one: size // MIB for one, size in sweep.memory.items()},
            "idle_cpu_share_of_one_core": merged(run.idle_cpu for run in sweep.runs),
            "others_most": max(one["others"] for one in samples),
            "rejected_samples": [one for run in sweep.runs for one in run.rejected],
            "seconds": round(time.monotonic() - began, 1),
        },
        samples=samples,
    )


def kept(record: Record, parsed: argparse.Namespace) -> Iterator[Path]:
    """Write record and picture where they are asked for, and say each that is there: a picture can
    be drawn again, a record cannot.

    :raises OSError: one cannot be written.
    """
    if parsed.record:
        yield add(record, folder_of(parsed.variant))
    if out := picture_of(parsed):
        keep(out, lambda: draw(record.summary, title(record)))
        yield out


def redraw(parsed: argparse.Namespace) -> int:
    """The picture of a record.

    :raises Unusable: there is no place for it, or the record cannot be read.
    :raises OSError: it cannot be written.
    """
    if not parsed.out:
        raise Unusable("--redraw needs --out")
    parsed.record = False
    check_places(parsed)
    try:
        raw = parsed.redraw.read_bytes()
    except OSError as error:
        raise Unusable(f"{parsed.redraw}: {error.strerror}") from error
    try:
        record = Record.model_validate_json(raw)
        keep(parsed.out, lambda: draw(record.summary, title(record)))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        why = str(error).splitlines()[0]
        print(f"sweep_k: {parsed.redraw}: no record of K side by side: {why}", file=sys.stderr)
        return 1
    print(f"wrote {parsed.out}", file=sys.stderr)
    return 0


def title(record: Record) -> str:
    """Of the picture."""
    of = {axis: record.variant[axis]["name"] for axis in ("model", "target")}
    return f"{record.variant['variant']}, {of['model']} on {of['target']}"


if __name__ == "__main__":
    sys.exit(main())
