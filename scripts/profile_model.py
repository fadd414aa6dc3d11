"""Where a step's time goes, of a served variant: by phase, operator, kernel, and layer.

vLLM's own hooks drive torch's profiler in the worker, on a CPU as on a GPU. Writes a flame graph
(one HTML file), speedscope's JSON, and a record. A profiler slows what it watches: shares are what
counts, and the same load without it is told beside.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.record import Record, add, check_writable, folder_of, now, this_machine, typed
from scripts.options import add_axes
from scripts.profile import flame, trace
from scripts.profile.engine import Running, engine
from scripts.profile.processes import seconds, spent
from scripts.profile.prompts import Prompts, of
from scripts.served import NotServed
from serve.cli import positive
from serve.errors import ConfigError
from serve.settings import REPOSITORY
from serve.variant import load_variant

EXAMPLES = """examples:
  python -m scripts.profile_model seq8-best --model tiny
  python -m scripts.profile_model baseline --concurrency 1 --layers
  python -m scripts.profile_model seq8-best --out /tmp/profile --no-record

--layers runs the model eagerly, with Python's stacks: only then is a layer seen as such.
"""
EXPERIMENTS = REPOSITORY / "experiments"
ROWS = 25


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when profiled, 1 when the engine or its trace failed, 2 usage."""
    parsed = parser().parse_args(arguments)
    made, machine = now(), this_machine()
    out: Path = parsed.out or EXPERIMENTS / parsed.variant / "profiles"
    try:
        load_variant(parsed.variant, EXPERIMENTS)
        check_writable(out)
        if parsed.record:
            check_writable(folder_of(parsed.variant))
        variant, figures, root = profile(parsed)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except (NotServed, trace.BadTrace, OSError) as error:
        print(f"not profiled: {error}", file=sys.stderr)
        return 1
    record = Record(
        kind="profile",
        made=made,
        command=typed("scripts.profile_model", arguments),
        machine=machine,
        variant=variant,
        parameters=load_of(parsed) | {"layers": parsed.layers},
        summary=figures,
        samples=[],
    )
    title = f"{parsed.variant}, {variant['model']['name']}, concurrency {parsed.concurrency}"
    print(json.dumps(figures)) if parsed.json else show(figures, title)
    try:
        if parsed.record:
            print(f"wrote {add(record, folder_of(parsed.variant))}", file=sys.stderr)
        draw(root, title, out / f"{parsed.variant}_c{parsed.concurrency}_{made:%Y-%m-%dT%H%M%SZ}")
    except OSError as error:
        print(f"not all of it was kept: {error}", file=sys.stderr)
        return 1
    return 0


def profile(parsed: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any], trace.Node]:
    """The variant as served, the figures, and the tree of the flame graph.

    :raises NotServed: the engine failed.
    :raises scripts.profile.trace.BadTrace: it left no trace that can be read.
    """
    settings = {"VARIANT": parsed.variant, "MODEL": parsed.model, "TARGET": parsed.target}
    with tempfile.TemporaryDirectory(prefix="preheat-") as name:
        folder = Path(name)
        flags, env = profiler(folder, layers=parsed.layers)
        print("starting the engine …", file=sys.stderr)
        with engine(settings, folder, flags, env) as running:
            variant = running.plan.describe()
            prompts = of(running)
            plain = measured(running, parsed, prompts)
            print("profiling …", file=sys.stderr)
            running.call("POST", "/start_profile")
            watched = measured(running, parsed, prompts)
            running.call("POST", "/stop_profile")
        events = trace.read(worker_trace(folder))
    root = trace.tree(events)
    if not root.total:
        raise trace.BadTrace("the engine's trace holds nothing that its host did")
    return variant, figures_of(events, root, plain, watched), root


def profiler(folder: Path, *, layers: bool) -> tuple[list[str], dict[str, str]]:
    """Flags and variables that put torch's profiler and vLLM's scopes into the worker."""
    options = {
        "profiler": "torch",
        "torch_profiler_dir": str(folder),
        "torch_profiler_with_stack": layers,
        "ignore_frontend": True,
    }
    flags = ["--profiler-config", json.dumps(options)]
    return [*flags, *(["--enforce-eager"] if layers else [])], {
        "VLLM_CUSTOM_SCOPES_FOR_PROFILING": "1"
    }


def load_of(parsed: argparse.Namespace) -> dict[str, int]:
    """What every load is made of."""
    return {
        "concurrency": parsed.concurrency,
        "requests": parsed.requests or 2 * parsed.concurrency,
        "prompt_tokens": parsed.prompt_tokens,
        "output_tokens": parsed.output_tokens,
    }


def measured(running: Running, parsed: argparse.Namespace, prompts: Prompts) -> dict[str, Any]:
    """One load, after a short one that warms up: its seconds, steps and CPU seconds."""
    load = load_of(parsed)
    asked = prompts.load(load["requests"], load["prompt_tokens"], load["output_tokens"])
    warm = prompts.load(parsed.concurrency, load["prompt_tokens"], 8)
    running.load(warm, parsed.concurrency)
    steps, cpu = running.steps(), seconds(running.process.pid)
    wall = running.load(asked, parsed.concurrency)
    taken = running.steps() - steps
    return {
        "seconds": round(wall, 4),
        "steps": taken,
        "ms_per_step": round(wall * 1e3 / max(1, taken), 3),
        "tokens": load["requests"] * load["output_tokens"],
        "cpu_seconds": spent(cpu, seconds(running.process.pid)),
    }


def worker_trace(folder: Path) -> Path:
    """The trace of the first worker.

    :raises scripts.profile.trace.BadTrace: there is none.
    """
    found = sorted(folder.glob("**/*.json*"), key=lambda path: -path.stat().st_size)
    if not found:
        raise trace.BadTrace(f"{folder}: the engine left no trace")
    return found[0]


def figures_of(
    events: Sequence[Any], root: trace.Node, plain: dict[str, Any], watched: dict[str, Any]
) -> dict[str, Any]:
    """Every table, in milliseconds per step of the profiled load."""
    count = max(1, trace.steps(events))

    def per_step(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {
                "name": row["name"][:200],
                "ms_per_step": round(row["ms"] / count, 4),
                "calls_per_step": round(row["calls"] / count, 2),
            }
            for row in rows[:ROWS]
        ]

    return {
        "plain": plain,
        "profiled": watched,
        "steps_in_trace": count,
        "phases_ms_per_step": {k: round(v / count, 4) for k, v in trace.phases(root).items()},
        "operators": per_step(trace.operators(root)),
        "kernels": per_step(trace.kernels(events)),
        "layers": per_step(trace.layers(root)),
    }


def draw(root: trace.Node, title: str, stem: Path) -> None:
    """The flame graph and speedscope's file."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    for suffix, text in ((".html", flame.page(root, title)), (".json", flame.dump(root, title))):
        path = stem.with_name(stem.name + (suffix if suffix == ".html" else ".speedscope.json"))
        part = path.with_name("." + path.name + ".part")
        part.write_text(text, encoding="utf-8")
        part.replace(path)
        print(f"wrote {path}", file=sys.stderr)


def show(figures: dict[str, Any], title: str) -> None:
    """The tables, on standard output."""
    console = Console()
    plain, watched = figures["plain"], figures["profiled"]
    console.print(
        f"{title}: {plain['ms_per_step']} ms a step plain, {watched['ms_per_step']} profiled"
    )
    phases = figures["phases_ms_per_step"].items()
    _table(console, "phase", [(name, ms, "") for name, ms in phases])
    for kind in ("operators", "kernels", "layers"):
        rows = [(r["name"], r["ms_per_step"], r["calls_per_step"]) for r in figures[kind]]
        if rows:
            _table(console, kind, rows)


def _table(console: Console, kind: str, rows: Sequence[tuple[str, float, object]]) -> None:
    table = Table(box=None)
    table.add_column(kind, overflow="ellipsis", no_wrap=True, max_width=70)
    table.add_column("ms/step", justify="right")
    table.add_column("calls/step", justify="right")
    for name, ms, calls in rows:
        table.add_row(name, f"{ms:.3f}", str(calls))
    console.print(table)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.profile_model",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("variant", help="a variant in experiments/")
    add_axes(top)
    top.add_argument("--concurrency", type=positive, default=8, help="requests at a time (8)")
    top.add_argument("--requests", type=positive, help="requests (twice the concurrency)")
    top.add_argument("--prompt-tokens", type=positive, default=64, help="of each (64)")
    top.add_argument("--output-tokens", type=positive, default=64, help="of each (64)")
    top.add_argument("--layers", action="store_true", help="eager, with each layer's time")
    top.add_argument("--out", type=Path, help="folder of the graphs (experiments/V/profiles)")
    top.add_argument("--json", action="store_true", help="figures as JSON, not as tables")
    top.add_argument("--record", action=argparse.BooleanOptionalAction, default=True)
    return top


if __name__ == "__main__":
    sys.exit(main())
