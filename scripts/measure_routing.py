"""What it is worth to send requests that begin alike to the replica that knows the beginning.

Two appliances of one variant behind vLLM's own router, twice: in turn (round_robin), and by the
longest beginning that a replica has seen (cache_aware). The same engines serve both, loaded in
turn, in an order drawn for each two rounds and backwards in the second of them; each sample has
beginnings that nobody has seen. Read from the engines: prompt tokens that were looked for in the
prefix cache, and found. Seen by clients: time to first token.

`make router` installs the router. Of tiny on two quiet cores it takes some minutes.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bake.progress import shown
from experiments.record import MEASUREMENTS, Record, add, check_writable, now, this_machine, typed
from scripts.fleet.prefixes import Shape, beginnings, requests, visited
from scripts.fleet.router import NoRouter, check, router
from scripts.intervals import bootstrap
from scripts.latency import facts
from scripts.latency.loader import Loader, LoadFailed, loader
from scripts.latency.plan import turns
from scripts.latency.prompts import MIXED, BadPrompts, read_prompts
from scripts.latency.rigs import Rig, rigs
from scripts.latency.samples import pack, unpack
from scripts.options import add_axes, even
from scripts.quiet import timed, undisturbed
from scripts.served import PAUSE_SECONDS, NotServed
from scripts.starts import NotMeasured
from serve.cli import positive
from serve.errors import ConfigError
from serve.keeper import descendants
from serve.settings import REPOSITORY

# The reference first.
POLICIES = ("round_robin", "cache_aware")
REPLICAS = 2
REQUEST_SECONDS, SAMPLE_SECONDS = 120, 900
EXAMPLES = """examples:
  python -m scripts.measure_routing
  python -m scripts.measure_routing --families 8 --visits 3 --rounds 2 --no-record
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when it was measured, 1 when it could not be, 2 usage."""
    asked = parser().parse_args(arguments)
    made, machine = now(), this_machine()
    try:
        # Before two engines are started for it.
        check()
        if asked.record:
            check_writable(MEASUREMENTS)
        with shown() as progress:
            told, samples, rejected = measured(asked, progress.say)
    except (BadPrompts, ConfigError) as error:
        print(error, file=sys.stderr)
        return 2
    except (NoRouter, NotServed, NotMeasured, LoadFailed, OSError) as error:
        print(f"not measured: {error}", file=sys.stderr)
        return 1
    summary = summed_up(samples) | {"rejected": len(rejected)}
    if asked.json:
        print(json.dumps(summary, indent=1))
    else:
        show(summary)
    if asked.record:
        record = Record(
            kind="routing",
            made=made,
            command=typed("scripts.measure_routing", arguments),
            machine=machine,
            variant=dict(told),
            parameters={k: v for k, v in vars(asked).items() if k not in ("json", "record")},
            summary=summary,
            samples=samples,
        )
        print(f"wrote {add(record, MEASUREMENTS).relative_to(REPOSITORY)}", file=sys.stderr)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.measure_routing",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--variant", default="baseline", help="of both replicas (baseline)")
    add_axes(top)
    top.add_argument("--families", type=positive, default=12, help="beginnings (12)")
    top.add_argument("--visits", type=positive, default=3, help="requests of each (3)")
    top.add_argument("--characters", type=positive, default=6000, help="of a beginning (6000)")
    top.add_argument("--tokens", type=positive, default=8, help="of each answer (8)")
    top.add_argument("--concurrency", type=positive, default=2, help="clients at once (2)")
    top.add_argument("--rounds", type=even, default=4, help="an even number (4)")
    top.add_argument("--seed", type=int, default=7, help="of all orders (7)")
    top.add_argument("--busy-ok", action="store_true", help="keep samples beside others' work")
    top.add_argument("--json", action="store_true", help="figures as JSON, not as a table")
    top.add_argument(
        "--record", action=argparse.BooleanOptionalAction, default=True, help="add a record (yes)"
    )
    return top


Samples = list[dict[str, Any]]


def measured(
    asked: argparse.Namespace, tell: Callable[[str], None]
) -> tuple[Mapping[str, Any], Samples, Samples]:
    """What the replicas say they are, the samples that count, and those rejected.

    :raises NotServed, NoRouter, NotMeasured, LoadFailed: it cannot be.
    """
    texts = [one.prompt for one in read_prompts(MIXED) if one.prompt]
    shape = Shape(asked.families, asked.visits, asked.characters, asked.tokens)
    axes = {"VARIANT": asked.variant, "MODEL": asked.model, "TARGET": asked.target}
    each = {f"replica-{n}": {k: v for k, v in axes.items() if v} for n in range(REPLICAS)}
    kept: Samples = []
    rejected: Samples = []
    with tempfile.TemporaryDirectory(prefix="preheat-") as name, ExitStack() as open_:
        folder = Path(name)
        tell(f"start {REPLICAS} replicas of {asked.variant}")
        alive = open_.enter_context(rigs(each, folder))
        part(alive)
        urls = {
            policy: open_.enter_context(router(policy, [one.url for one in alive], folder))
            for policy in POLICIES
        }
        load = open_.enter_context(loader())
        bench = Bench(asked, shape, texts, alive, urls, load)
        tell("warm-up")
        bench.sample(POLICIES[0], 0, 0)
        for round_ in range(1, asked.rounds + 1):
            tell(f"round {round_} of {asked.rounds}")

            def both(attempt: int, at: int = round_) -> Samples:
                return [bench.sample(one, at, attempt) for one in turns(POLICIES, at, asked.seed)]

            taken, thrown = undisturbed(both, busy_ok=asked.busy_ok)
            kept += taken
            rejected += thrown
        return alive[0].told, kept, rejected


def part(alive: Sequence[Rig]) -> None:
    """Give each replica cores of its own, as machines have. vLLM's CPU backend binds every engine's
    work to the same first ones, where two that spin keep each other waiting for seconds.
    """
    cores = sorted(os.sched_getaffinity(0))
    for place, one in enumerate(alive):
        own = cores[place :: len(alive)] or cores
        for process in (one.pid, *descendants(one.pid)):
            for thread in Path(f"/proc/{process}/task").iterdir():
                os.sched_setaffinity(int(thread.name), own)


@dataclass(frozen=True)
class Bench:
    """What samples are taken of: replicas, the routers' URLs by policy, and who asks."""

    asked: argparse.Namespace
    shape: Shape
    texts: Sequence[str]
    alive: Sequence[Rig]
    urls: Mapping[str, str]
    load: Loader

    def sample(self, policy: str, round_: int, attempt: int) -> dict[str, Any]:
        """All visits of a round through one router.

        :raises NotMeasured: one was not answered in full.
        """
        shape, asked = self.shape, self.asked
        order = visited(shape, asked.seed, round_)
        begun = beginnings(self.texts, shape, policy, round_, attempt, asked.seed)
        job = {
            "url": self.urls[policy],
            "requests": requests(begun, order, self.alive[0].model, shape),
            "concurrency": asked.concurrency,
            "timeout": REQUEST_SECONDS,
            "deadline": SAMPLE_SECONDS,
        }
        time.sleep(PAUSE_SECONDS)
        before = [self._counters(one) for one in self.alive]
        with timed() as sample:
            answer = self.load.run(job)
        grown = [
            facts.grown(was, self._counters(one))
            for was, one in zip(before, self.alive, strict=True)
        ]
        if wrong := [one["failed"] for one in answer["requests"] if one["failed"]]:
            raise NotMeasured(f"{policy}: {len(wrong)} requests were not answered: {wrong[0]}")
        return {
            "round": round_,
            "cell": f"c{asked.concurrency}",
            "variant": policy,
            "wall_s": round(answer["wall"], 3),
            "others": sample.others,
            "families": " ".join(map(str, order)),
            # Of each replica: what was looked for in its prefix cache, found, and computed for.
            "prefix_queries": [one["prefix_queries"] for one in grown],
            "prefix_hits": [one["prefix_hits"] for one in grown],
            **pack(answer["requests"]),
        }

    @staticmethod
    def _counters(one: Rig) -> dict[str, float]:
        return facts.read(one.get("/metrics").decode())


def summed_up(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each policy: the share of prompt tokens that a cache had, and TTFT (ms); and the mean TTFT
    of the second as a ratio to the first's, over requests that stand at the same place.
    """
    found: dict[str, Any] = {}
    times = {}
    for policy in POLICIES:
        mine = sorted(
            (one for one in samples if one["variant"] == policy), key=lambda one: int(one["round"])
        )
        times[policy] = np.concatenate([unpack(one).ttft for one in mine])
        asked = np.array([one["prefix_queries"] for one in mine]).sum(axis=0)
        hits = np.array([one["prefix_hits"] for one in mine]).sum(axis=0)
        found[policy] = {
            "requests": len(times[policy]),
            "hit_rate": round(float(hits.sum() / asked.sum()), 4),
            "busier_replica": round(float(asked.max() / asked.sum()), 4),
            "ttft_ms": {
                "mean": round(float(times[policy].mean()), 1),
                **{f"p{q}": round(float(np.percentile(times[policy], q)), 1) for q in (50, 90, 99)},
            },
            "wall_s": round(sum(float(one["wall_s"]) for one in mine), 1),
        }
    columns = np.stack([times[policy] for policy in POLICIES], axis=1)
    found["ttft_ratio"] = bootstrap(columns, lambda sums: sums[:, 1] / sums[:, 0]).describe()
    return found


def show(summary: Mapping[str, Any]) -> None:
    """The table for a person."""
    made = Table()
    for name in ("policy", "hit rate", "TTFT mean ms", "p50", "p90", "p99", "busier replica"):
        made.add_column(name, justify="left" if name == "policy" else "right")
    for policy in POLICIES:
        one = summary[policy]
        times = one["ttft_ms"]
        made.add_row(
            policy,
            f"{one['hit_rate']:.1%}",
            *(f"{times[name]:.0f}" for name in ("mean", "p50", "p90", "p99")),
            f"{one['busier_replica']:.0%}",
        )
    console = Console()
    console.print(made)
    ratio = summary["ttft_ratio"]
    console.print(
        f"mean TTFT {ratio['point']:.3f} × round_robin's, 95 % {ratio['low']:.3f} … "
        f"{ratio['high']:.3f}",
        highlight=False,
    )


if __name__ == "__main__":
    sys.exit(main())
