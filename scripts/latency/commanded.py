"""What ``eval_latency`` and ``compare`` share: their options, the run, its records."""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any

from experiments.record import Machine, Record, add, check_writable, folder_of, now, this_machine
from scripts.latency import memory
from scripts.latency.loader import LoadFailed
from scripts.latency.plan import Cell, cells
from scripts.latency.prompts import MIXED, described, read_prompts
from scripts.latency.results import summary
from scripts.latency.rigs import rigs
from scripts.latency.rounds import POLL_SECONDS, Options, Run, measure
from scripts.latency.statistics import DRAWS, METHOD
from scripts.options import add_axes, amount, even, numbers
from scripts.quiet import OTHERS
from scripts.served import NotServed
from scripts.starts import NotMeasured
from serve.choice import choose_model
from serve.cli import positive
from serve.derivation import derived
from serve.model import find_model, load_model
from serve.preflight import needed_bytes
from serve.settings import REPOSITORY, Settings
from serve.target import choose_target, probe_gpu
from serve.variant import load_variant

# What ends a run: gateways that do not start or are gone (a connection that is reset is an OSError,
# an answer that is none an HTTPException), a machine that never rests, a load that ended.
STOPPED = (NotServed, NotMeasured, LoadFailed, OSError, HTTPException)


@dataclass(frozen=True)
class Began:
    """When a run began, where, and what was typed."""

    made: datetime
    machine: Machine
    command: Sequence[str]


def add_options(top: argparse.ArgumentParser) -> None:
    """Options of both commands."""
    top.add_argument("--reference", default="baseline", help="measured beside it (baseline)")
    add_axes(top)
    top.add_argument(
        "--concurrency", type=counts, default=[1, 2, 4, 8], help="clients at once (1,2,4,8)"
    )
    top.add_argument("--rates", type=rates, default=[], help="arrivals a second, e.g. 2,4 (none)")
    top.add_argument("--rounds", type=even, default=4, help="an even number (4)")
    top.add_argument(
        "--requests", type=positive, help="of each sample (16 to 32; 30 s of arrivals)"
    )
    top.add_argument("--prompts", type=Path, default=MIXED, help="JSON lines (mixed.jsonl)")
    top.add_argument("--seed", type=int, default=7, help="of order, arrivals, bootstrap (7)")
    top.add_argument("--timeout", type=amount, default=60, help="seconds a request may take (60)")
    top.add_argument("--deadline", type=amount, default=240, help="seconds a sample may take (240)")
    top.add_argument("--as-served", action="store_true", help="sampling as the variant has it")
    top.add_argument("--shared-prefix", action="store_true", help="prompts may hit prefix caches")
    top.add_argument("--busy-ok", action="store_true", help="keep samples beside others' work")
    top.add_argument("--quick", action="store_true", help="1 and 8 at once, 1 round, 8 requests")
    top.add_argument("--json", action="store_true", help="figures as JSON, not as a table")
    top.add_argument(
        "--record", action=argparse.BooleanOptionalAction, default=True, help="add records (yes)"
    )


def counts(text: str) -> list[int]:
    """Whole numbers, rising, each once; of an empty text none: only --rates is measured."""
    return numbers(1)(text) if text.strip() else []


def rates(text: str) -> list[float]:
    """Numbers above 0, rising, each once; of an empty text none."""
    return sorted({amount(word) for word in text.split(",")}) if text.strip() else []


def wanted(parsed: argparse.Namespace) -> tuple[list[Cell], Options]:
    """Cells and options as the command line has them.

    :raises ValueError: no load at all.
    """
    if parsed.quick:
        parsed.concurrency, parsed.rates, parsed.rounds = [1, 8], [], 1
        parsed.requests = parsed.requests or 8
    loads = cells(parsed.concurrency, parsed.rates)
    if not loads:
        raise ValueError("no load: expected --concurrency or --rates with a number in it")
    options = Options(
        parsed.rounds,
        parsed.requests,
        parsed.seed,
        parsed.timeout,
        parsed.deadline,
        parsed.as_served,
        parsed.shared_prefix,
        parsed.busy_ok,
    )
    return loads, options


def run_group(
    names: Sequence[str], parsed: argparse.Namespace, tell: Callable[[str], None]
) -> list[Record]:
    """The reference, ``names[0]``, and its candidates alive at once: a record for each candidate.

    :raises Exception: one of ``STOPPED``.
    :raises BadPrompts, ValueError: what was asked for.
    """
    loads, options = wanted(parsed)
    prompts = read_prompts(parsed.prompts)
    # Now: in an hour the file may be another.
    prompt_set = described(prompts, parsed.prompts)
    began = Began(now(), this_machine(), parsed.command)
    axes = {n: {"VARIANT": n, "MODEL": parsed.model, "TARGET": parsed.target} for n in names}
    with tempfile.TemporaryDirectory(prefix="preheat-") as folder:
        tell(f"start {', '.join(names)}")
        with rigs(axes, Path(folder)) as alive:
            run = measure(alive, prompts, loads, options, tell)
    asked = {
        **vars(options),
        "concurrency": parsed.concurrency,
        "rates": parsed.rates,
        "prompt_set": prompt_set,
        "reference": run.reference,
        "alive_together": list(names),
        "others_at_most": None if options.busy_ok else OTHERS,
        "kv_use_polled_seconds": POLL_SECONDS,
        "statistics": f"{METHOD}; {DRAWS} draws, seed {options.seed}",
    }
    return [record(run, name, asked, began) for name in candidates(names)]


def candidates(names: Sequence[str]) -> Sequence[str]:
    """All but the reference, which is the first; it alone where there is no other."""
    return names[1:] or names


def common_model(names: Sequence[str], model: str, target: str) -> str:
    """The one model that all of the variants serve: one with an MTP head where any of them drafts.

    :raises ConfigError: an unknown variant or target.
    """
    experiments = REPOSITORY / "experiments"
    where = choose_target(target or None, probe_gpu(), experiments)
    variants = [load_variant(name, experiments) for name in names]
    return choose_model(model or None, where, variants).model


def check_weights(names: Sequence[str], model: str) -> None:
    """Whether what each variant serves of ``model`` is there.

    :raises ConfigError: it is not, or is no checkpoint.
    """
    experiments = REPOSITORY / "experiments"
    source = find_model(model, experiments)
    root = Settings.model_validate({}).derived_root
    for name in names:
        load_model(derived(load_variant(name, experiments), source, root))


def check_card(engines: int, model: str, target: str) -> None:
    """Whether so many engines of ``model`` can be alive side by side on one card of ``target``.

    :raises ConfigError: they cannot.
    """
    experiments = REPOSITORY / "experiments"
    where = choose_target(target or None, probe_gpu(), experiments)
    if engines > 1 and where.device != "cpu":
        served = load_model(find_model(model, experiments))
        memory.check_card(where, needed_bytes(served, where), engines)


def target_name(target: str) -> str:
    """The target that was named, or the one this machine is.

    :raises ConfigError: an unknown one.
    """
    return choose_target(target or None, probe_gpu(), REPOSITORY / "experiments").name


def record(run: Run, name: str, asked: dict[str, Any], began: Began) -> Record:
    """What is kept of one candidate: its own samples and the reference's."""
    pair = list(dict.fromkeys((run.reference, name)))
    kept = [one for one in run.samples if one["variant"] in pair]
    found = summary(kept, run.reference, name, asked["seed"])
    found |= {
        "warm_up": {each: run.warm_up[each] for each in pair},
        "idle_cpu_share_of_one_core": {each: run.idle_cpu[each] for each in pair},
        "rejected_samples": run.rejected,
        "seconds": run.seconds,
    }
    told = {**run.told[name], "reference": run.told[run.reference]}
    return Record(
        kind="latency",
        made=began.made,
        command=list(began.command),
        machine=began.machine,
        variant=told,
        parameters=asked,
        summary=found,
        samples=kept,
    )


def check_folders(names: Sequence[str]) -> None:
    """Whether records of these candidates may be added, before any is measured.

    :raises ValueError: naming the folder that takes none.
    """
    for folder in map(folder_of, names):
        try:
            check_writable(folder)
        except OSError as error:
            raise ValueError(f"{folder}: no record can be added: {error.strerror}") from error


def keep(records: Sequence[Record]) -> Iterator[str]:
    """Write each record to its variant's folder; where it is now, from the repository's root.

    :raises OSError: one cannot be written.
    """
    for one in records:
        yield str(add(one, folder_of(one.summary["candidate"])).relative_to(REPOSITORY))
