"""Measures what a zygote imports: seconds in all, and the part of each package.

Wall time comes from plain runs; the parts from ``-X importtime``, which slows every import down, so
they tell shares and not seconds.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from experiments.record import MEASUREMENTS, Record, add, now, this_machine
from scripts.starts import NotMeasured, wait_until_idle
from serve.command import CPU_ENVIRONMENT
from serve.plan import versions
from serve.settings import REPOSITORY

LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$")
# In these the second name tells more than the first.
LARGE = ("torch", "vllm")
MOST = 12
PRELOAD = "from serve.plugin import zygote; zygote.preload({architectures})"
# Without what the zygote does about it, the three processes of a stock start import this each.
PLAIN = """
import importlib
from serve.plugin import zygote
for name in zygote.MODULES:
    importlib.import_module(name)
"""
EXAMPLES = """examples:
  python -m scripts.measure_imports
  python -m scripts.measure_imports --rounds 10 --architecture Qwen3_5ForCausalLM
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when a record was added, 1 when something cannot be imported, 2 usage."""
    parsed = parser().parse_args(arguments)
    made, machine = now(), this_machine()
    ways = {"zygote": PRELOAD.format(architectures=[parsed.architecture]), "plain": PLAIN}
    try:
        samples = [
            {"way": way, "busy_before": wait_until_idle(), "seconds": round(seconds(code), 3)}
            for _ in range(parsed.rounds)
            for way, code in ways.items()
        ]
        parts = shares(said_by(PLAIN, "-X", "importtime").splitlines())
    except (subprocess.CalledProcessError, NotMeasured) as error:
        print(f"not measured: {error}\n{getattr(error, 'stderr', '')[-2000:]}", file=sys.stderr)
        return 1
    record = Record(
        kind="imports",
        made=made,
        command=["python", "-m", "scripts.measure_imports", *sys.argv[1:]],
        machine=machine,
        variant={"versions": versions()},
        parameters={"rounds": parsed.rounds, "architecture": parsed.architecture},
        summary={way: spread(samples, way) for way in ways} | {"shares of plain": parts},
        samples=samples,
    )
    path = add(record, MEASUREMENTS)
    print(json.dumps(record.summary, indent=1))
    print(f"wrote {path.relative_to(REPOSITORY)}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.measure_imports",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--rounds", type=int, default=5, help="plain runs of each way (5)")
    top.add_argument(
        "--architecture", default="Qwen3_5ForCausalLM", help="of the model that is served"
    )
    return top


def said_by(code: str, *switches: str) -> str:
    """What a fresh interpreter of the engine's writes to standard error while it runs ``code``."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    done = subprocess.run(
        [sys.executable, *switches, "-c", code],
        env=kept | CPU_ENVIRONMENT | {"VLLM_PLUGINS": "preheat", "HF_HUB_OFFLINE": "1"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr


def seconds(code: str) -> float:
    """From exec to exit, which is made short."""
    began = time.monotonic()
    said_by(f"{code}\nimport os; os._exit(0)")
    return time.monotonic() - began


def shares(lines: Iterable[str]) -> dict[str, float]:
    """The part of each package in all time spent in imports, largest first, the rest together."""
    spent: Counter[str] = Counter()
    for line in lines:
        if match := LINE.match(line):
            names = match[2].split(".")
            spent[".".join(names[: 2 if names[0] in LARGE else 1])] += int(match[1])
    total = sum(spent.values()) or 1
    largest = {name: round(own / total, 3) for name, own in spent.most_common(MOST)}
    return largest | {"all others": round(1 - sum(largest.values()), 3)}


def spread(samples: Sequence[dict[str, Any]], way: str) -> dict[str, float]:
    """Median, least and most seconds of one way."""
    own = [sample["seconds"] for sample in samples if sample["way"] == way]
    return {"median": statistics.median(own), "min": min(own), "max": max(own)}


if __name__ == "__main__":
    sys.exit(main())
