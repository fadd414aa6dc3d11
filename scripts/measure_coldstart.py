"""Measures a start from exec to the first token: stock vLLM cold and warm, baked, and a restart.

    stock cold   vLLM by the variant's own argv, with empty caches and none of Preheat's patches
    stock warm   the same again, on the caches that it left
    baked        `preheat serve run` from the baked root, through the gateway
    restart      that engine's worker killed with SIGKILL, until the gateway answers again

All of a round one after the other, so that a slow minute is everybody's. A sample is taken only
when the machine has been idle for a second. What is generated greedily must be equal in all.
"""

import argparse
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.record import Record, check_writable, folder_of, now, this_machine, typed
from scripts.options import add_axes
from scripts.starts import (
    IDLE,
    POLL_SECONDS,
    PROMPT,
    Client,
    Run,
    recorded,
    running,
    started,
    tcp,
    unix,
    wait_until_idle,
)
from serve.cli import positive
from serve.command import EARLY, served_names
from serve.keeper import descendants
from serve.plan import Plan, make_plan
from serve.settings import read_settings

COLD, WARM, BAKED, RESTART = "stock cold", "stock warm", "baked", "restart"
MODES = (COLD, WARM, BAKED, RESTART)
EXAMPLES = """examples:
  python -m scripts.measure_coldstart seq8-best
  python -m scripts.measure_coldstart seq8-best --rounds 5
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when a record was added, 1 when it could not be measured, 2 usage."""
    parsed = parser().parse_args(arguments)
    command = typed("scripts.measure_coldstart", arguments)
    return recorded(parsed.variant, lambda: measured(parsed, command))


def measured(parsed: argparse.Namespace, command: Sequence[str]) -> Record:
    """All rounds, and the record of them.

    :raises Stop: what was asked for is not there.
    :raises NotMeasured, OSError: it cannot be measured, or not be kept.
    """
    axes = {"VARIANT": parsed.variant, "MODEL": parsed.model, "TARGET": parsed.target}
    made, machine = now(), this_machine()
    with tempfile.TemporaryDirectory(prefix="preheat-") as folder:
        plan = make_plan(read_settings(axes), Path(sys.executable), Path(folder) / "engine.sock")
        check_writable(folder_of(parsed.variant))
        rig = Rig(plan, axes, Path(folder))
        samples = [one for number in range(1, parsed.rounds + 1) for one in rig.round(number)]
    return Record(
        kind="coldstart",
        made=made,
        command=list(command),
        machine=machine,
        variant=plan.describe(),
        parameters={
            "rounds": parsed.rounds,
            "prompt": PROMPT,
            "idle_below": IDLE,
            "stock_environment": rig.stock_environment(Path("ROOT")),
        },
        summary=summary(samples),
        samples=samples,
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.measure_coldstart",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("variant", help="a variant that is baked")
    add_axes(top)
    top.add_argument("--rounds", type=positive, default=3, help="samples of each kind (3)")
    return top


@dataclass
class Rig:
    """What is started, and where."""

    plan: Plan
    axes: Mapping[str, str]
    folder: Path

    def round(self, number: int) -> Iterator[dict[str, Any]]:
        """One sample of each kind."""
        root = self.folder / f"stock-{number}"
        for mode in (COLD, WARM):
            yield self._told(number, mode, self._stock(root))
        shutil.rmtree(root)
        for mode, sample in zip((BAKED, RESTART), self._baked(), strict=True):
            yield self._told(number, mode, sample)

    def _told(self, number: int, mode: str, sample: dict[str, Any]) -> dict[str, Any]:
        print(f"round {number}, {mode}: {sample['seconds']:.2f} s", file=sys.stderr, flush=True)
        return {"round": number, "mode": mode, **sample}

    def stock_environment(self, root: Path) -> dict[str, str]:
        """What vLLM needs to start at all on this machine, and caches below ``root``."""
        ours = self.plan.command.env
        # The torchvision that vLLM's CPU wheel brings cannot be imported without this one.
        kept = {"PYTHONPATH": str(EARLY)} if self.plan.target.device == "cpu" else {}
        kept |= {name: ours[name] for name in ("LD_PRELOAD", "HF_HUB_OFFLINE") if name in ours}
        caches = {
            "VLLM_CACHE_ROOT": str(root / "vllm"),
            "TRITON_CACHE_DIR": str(root / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(root / "inductor"),
            "TMPDIR": str(root),
        }
        return {**kept, **caches, "VLLM_PLUGINS": "", "VLLM_NO_USAGE_STATS": "1"}

    def _stock(self, root: Path) -> dict[str, Any]:
        root.mkdir(exist_ok=True)
        inherited = {n: v for n, v in os.environ.items() if n in ("PATH", "HOME", "LANG")}
        env = inherited | self.stock_environment(root)
        self.plan.command.socket.unlink(missing_ok=True)
        busy = wait_until_idle()
        with running(self.plan.command.argv, env) as run:
            model = served_names(self.plan.model, self.plan.variant)[0]
            client = Client(lambda: unix(self.plan.command.socket), model, run)
            return {"busy_before": busy, **client.first_token(run.began), **started(run)}

    def _baked(self) -> Iterator[dict[str, Any]]:
        env = {n: v for n, v in os.environ.items() if n in ("PATH", "HOME", "LANG", "TMPDIR")}
        env |= {name: value for name, value in self.axes.items() if value}
        env |= {"PORT": "0", "PREHEAT_CACHE_POLICY": "require"}
        busy = wait_until_idle()
        with running([sys.executable, "-m", "serve", "run"], env) as run:
            model = served_names(self.plan.model, self.plan.variant)[0]
            client = Client(lambda: tcp(run), model, run)
            yield {"busy_before": busy, **client.first_token(run.began), **started(run)}
            busy, worker, said = wait_until_idle(), worker_pid(run), len(run.lines)
            killed = time.monotonic()
            os.kill(worker, signal.SIGKILL)
            # Its front end is there for a moment longer.
            while worker_pid(run) in (0, worker):
                time.sleep(POLL_SECONDS)
            sample = client.first_token(killed)
            again = Run(run.process, killed, run.lines[said:])
            yield {"busy_before": busy, **sample, **started(again)}


def worker_pid(run: Run) -> int:
    """The process that runs the model, by the title vLLM gives it; 0 when there is none."""
    for pid in descendants(run.process.pid):
        try:
            if Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").startswith("VLLM::Worker"):
                return pid
        except OSError:
            continue
    return 0


def summary(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median and spread of each kind, and how many times longer than baked the others take."""
    found: dict[str, Any] = {mode: spread(samples, mode) for mode in MODES}
    baked, cold = found[BAKED], found[COLD]
    found["ratios"] = {
        "stock cold / baked": ratio(cold["median"], baked["median"]),
        "stock warm / baked": ratio(found[WARM]["median"], baked["median"]),
        "engine init, stock cold / baked": ratio(
            cold["engine_init_median"], baked["engine_init_median"]
        ),
    }
    found["same_text"] = len({sample["text"] for sample in samples}) == 1
    return found


def spread(samples: Sequence[dict[str, Any]], mode: str) -> dict[str, Any]:
    """Of one kind: seconds, phases (medians), graphs compiled."""
    own = [sample for sample in samples if sample["mode"] == mode]
    seconds = [sample["seconds"] for sample in own]
    phases = {name: [s["phases"].get(name, 0.0) for s in own] for s in own for name in s["phases"]}
    return {
        "median": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "engine_init_median": statistics.median(s["engine_init_seconds"] for s in own),
        "phases_median": {name: statistics.median(all_) for name, all_ in phases.items()},
        "compiled": sorted({sample["compiled"] for sample in own}),
        "loaded": sorted({sample["loaded"] for sample in own}),
    }


def ratio(longer: float, shorter: float) -> float:
    """How many times ``shorter`` goes into ``longer``, to one place."""
    return round(longer / shorter, 1)


if __name__ == "__main__":
    sys.exit(main())
