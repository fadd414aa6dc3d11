"""Measures how fast ggml's blocks become numbers, against gguf-py and ggml's C, in Melem/s.

One matrix of 4096 × 11008 for each type: ours to float32 and to BF16, on one thread and on two;
gguf-py and ggml's C to float32 on one. Ours and the C fill an array that is there ("warm"), gguf-py
always makes a new one, so ours into a new one ("new") stands beside it: there the kernel's zeroing
of pages is most of the time. What the machine can do at most is measured in the same rounds: the
same arrays filled with one number.

Before anything is timed, float32 numbers are compared with both peers' bit for bit, BF16 with their
rounding, and two threads with one. Samples are taken in turn, round after round; one beside which
others burn CPU is taken again.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bake.checkpoint.dequant.ggml import BLOCKS, dequantize
from blob.codecs import Bfloats, Floats, bfloat16
from experiments.record import MEASUREMENTS, Record, add, now, this_machine
from scripts.dequant_peers import Bytes, by_c, by_gguf, gguf_reads, quantized
from scripts.options import add_sampling, sample_seconds
from scripts.quiet import attempts
from scripts.starts import NotMeasured
from serve.plan import versions
from serve.settings import REPOSITORY

PEERS = ("gguf", "libggml-python", "numba", "llvmlite")
ROWS, COLUMNS = 4096, 11008
# Rows that are encoded; the matrix is them, over and over: some encoders are slow.
ENCODED = 16
# A tick of /proc/stat is 10 ms: in a sample of 0.4 s, two ticks of two cores are 2.5 %.
SAMPLE_SECONDS = 0.4
NEW = ("f32 1 new", "bf16 1 new")
# Times gguf-py, that ours to float32 must be on one thread for these types (issue 6).
GOAL, GOAL_TYPES = 10, ("Q8_0", "Q4_K", "Q6_K")
EXAMPLES = """examples:
  python -m scripts.measure_dequant
  python -m scripts.measure_dequant --only Q4_K --only Q6_K --rounds 9
  python -m scripts.measure_dequant --quick --json --no-record
"""


class Different(RuntimeError):
    """Bytes are not what they must be, so nothing is measured."""


@dataclass
class Case:
    """One kind of sample: ``work()`` does the matrix once. ``rates`` are its Melem/s so far."""

    name: str
    work: Callable[[], object]
    repeats: int = 1
    rates: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Arrays:
    """What is filled, over and over."""

    floats: Floats
    bfloats: Bfloats


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when all was measured, 1 when bytes differ or others never rest, 2 usage."""
    parsed = parser().parse_args(arguments)
    made, machine = now(), this_machine()
    rows = 64 if parsed.quick else ROWS
    names = parsed.only or list(BLOCKS)
    samples: list[dict[str, Any]] = []
    try:
        summary = measured(names, rows, parsed, samples)
    except (Different, NotMeasured) as stop:
        print(f"not measured: {stop}", file=sys.stderr)
        return 1
    record = Record(
        kind="dequant",
        made=made,
        command=["python", "-m", "scripts.measure_dequant", *sys.argv[1:]],
        machine=machine,
        variant={"versions": versions() | {peer: version(peer) for peer in PEERS}},
        parameters={"rows": rows, "columns": COLUMNS, "rounds": parsed.rounds, "types": names}
        | {
            "sample_seconds": sample_seconds(parsed),
            "busy": parsed.busy or parsed.quick,
        },
        summary=summary,
        samples=samples,
    )
    print(json.dumps(summary, indent=1)) if parsed.json else show(summary)
    if parsed.record:
        path = add(record, MEASUREMENTS)
        print(f"wrote {path.relative_to(REPOSITORY)}", file=sys.stderr)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.measure_dequant",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--only", action="append", choices=list(BLOCKS), help="these types (all)")
    add_sampling(top, 5, "a small matrix", seconds=SAMPLE_SECONDS)
    return top


def measured(
    names: Sequence[str], rows: int, parsed: argparse.Namespace, samples: list[dict[str, Any]]
) -> dict[str, Any]:
    """Figures by type; ``samples`` are added to.

    :raises Different: bytes are not the peers', or two threads do not make those of one.
    :raises NotMeasured: others never rest.
    """
    arrays = Arrays(np.ones((rows, COLUMNS), np.float32), np.ones((rows, COLUMNS), np.uint16))
    found: dict[str, dict[str, dict[str, float]]] = {}
    with ThreadPoolExecutor(2) as pool:
        for name in track(names, "measuring", console=Console(stderr=True)):
            blocks = matrix(name, rows)
            check(name, blocks, arrays)
            both = [*cases(name, blocks, arrays), *fill_cases(arrays, pool)]
            found[name] = rates(taken(name, both, parsed, samples))
    return {"rates": found, "ratios": {name: ratios(own) for name, own in found.items()}}


def matrix(name: str, rows: int) -> Bytes:
    """Blocks of ``rows`` × ``COLUMNS`` normal weights, as ggml encodes them."""
    few = np.random.default_rng(0).normal(0, 0.02, (min(ENCODED, rows), COLUMNS))
    encoded = quantized(name, few.astype(np.float32))
    return np.tile(encoded, (-(-rows // len(encoded)), 1))[:rows]


def check(name: str, blocks: Bytes, arrays: Arrays) -> None:
    """:raises Different: ours are not the peers' bytes."""
    one, two = np.empty_like(arrays.floats), np.empty_like(arrays.bfloats)
    by_c(name, blocks, one)
    dequantize(name, blocks, arrays.floats)
    dequantize(name, blocks, arrays.bfloats)
    same(f"{name}, ggml's C", arrays.floats, one)
    same(f"{name}, BF16", arrays.bfloats, bfloat16.from_float32(one))
    if gguf_reads(name):
        same(f"{name}, gguf-py", arrays.floats, by_gguf(name, blocks))
    dequantize(name, blocks, one, 2)
    dequantize(name, blocks, two, 2)
    same(f"{name}, two threads", arrays.floats, one)
    same(f"{name}, two threads, BF16", arrays.bfloats, two)


def same(what: str, ours: NDArray[Any], theirs: NDArray[Any]) -> None:
    """:raises Different: not the same bytes."""
    if not np.array_equal(ours.view(np.uint16), theirs.view(np.uint16)):
        raise Different(f"{what}: other bytes")


def fill_cases(arrays: Arrays, pool: ThreadPoolExecutor) -> list[Case]:
    """Every number written once, nothing read: the most that memory lets anybody do."""

    def halves(array: NDArray[Any]) -> None:
        middle = len(array) // 2
        list(pool.map(lambda part: part.fill(1), (array[:middle], array[middle:])))

    return [
        Case("fill f32 1", lambda: arrays.floats.fill(1)),
        Case("fill f32 2", lambda: halves(arrays.floats)),
        Case("fill bf16 1", lambda: arrays.bfloats.fill(1)),
        Case("fill bf16 2", lambda: halves(arrays.bfloats)),
        Case("fill f32 1 new", lambda: np.empty_like(arrays.floats).fill(1)),
        Case("fill bf16 1 new", lambda: np.empty_like(arrays.bfloats).fill(1)),
    ]


def cases(name: str, blocks: Bytes, arrays: Arrays) -> list[Case]:
    """What is measured of one type: ours by what is filled and threads, and the peers."""
    floats, bfloats = arrays.floats, arrays.bfloats
    made = [
        Case("f32 1", lambda: dequantize(name, blocks, floats, 1)),
        Case("f32 2", lambda: dequantize(name, blocks, floats, 2)),
        Case("bf16 1", lambda: dequantize(name, blocks, bfloats, 1)),
        Case("bf16 2", lambda: dequantize(name, blocks, bfloats, 2)),
        Case("f32 1 new", lambda: dequantize(name, blocks, np.empty_like(floats), 1)),
        Case("f32 2 new", lambda: dequantize(name, blocks, np.empty_like(floats), 2)),
        Case("bf16 1 new", lambda: dequantize(name, blocks, np.empty_like(bfloats), 1)),
        Case("ggml C", lambda: by_c(name, blocks, floats)),
    ]
    if gguf_reads(name):
        made.append(Case("gguf-py", lambda: by_gguf(name, blocks)))
    return made


def taken(
    name: str, all_cases: list[Case], parsed: argparse.Namespace, samples: list[dict[str, Any]]
) -> list[Case]:
    """``all_cases``, in turn for so many rounds.

    :raises NotMeasured: others never rest.
    """
    busy, long_enough = parsed.busy or parsed.quick, sample_seconds(parsed)
    size = COLUMNS * (64 if parsed.quick else ROWS)
    for case in all_cases:
        began = time.perf_counter()
        case.work()
        case.repeats = max(1, round(long_enough / (time.perf_counter() - began)))
    for _ in range(parsed.rounds):
        for case in all_cases:
            for sample, kept in attempts(case.work, case.repeats, busy=busy):
                rate = size * case.repeats / sample.seconds / 1e6
                if kept:
                    case.rates.append(rate)
                samples.append(
                    {"type": name, "case": case.name, "melem_per_second": round(rate, 1)}
                    | {"repeats": case.repeats, "others": sample.others, "kept": kept}
                )
    return all_cases


def rates(all_cases: Sequence[Case]) -> dict[str, dict[str, float]]:
    """Of each case, the median, least and most Melem/s."""
    return {
        case.name: {
            "median": round(statistics.median(case.rates), 1),
            "min": round(min(case.rates), 1),
            "max": round(max(case.rates), 1),
        }
        for case in all_cases
    }


def ratios(own: dict[str, Any]) -> dict[str, float]:
    """Of medians: over the peers, two threads over one, and which share of filling that is."""

    def over(one: str, other: str) -> float:
        return round(float(own[one]["median"]) / float(own[other]["median"]), 2)

    found = {
        "over_c": over("f32 1", "ggml C"),
        "f32_two_over_one": over("f32 2", "f32 1"),
        "bf16_two_over_one": over("bf16 2", "bf16 1"),
        "fill_f32_two_over_one": over("fill f32 2", "fill f32 1"),
        "fill_bf16_two_over_one": over("fill bf16 2", "fill bf16 1"),
        "f32_of_fill_1": over("f32 1", "fill f32 1"),
        "f32_of_fill_2": over("f32 2", "fill f32 2"),
        "bf16_of_fill_1": over("bf16 1", "fill bf16 1"),
        "bf16_of_fill_2": over("bf16 2", "fill bf16 2"),
        "f32_new_of_fill_new": over("f32 1 new", "fill f32 1 new"),
        "bf16_new_of_fill_new": over("bf16 1 new", "fill bf16 1 new"),
    }
    if "gguf-py" in own:
        found |= {
            "over_gguf_f32_1": over("f32 1", "gguf-py"),
            "over_gguf_f32_1_new": over("f32 1 new", "gguf-py"),
            "over_gguf_f32_2": over("f32 2", "gguf-py"),
            "over_gguf_f32_2_new": over("f32 2 new", "gguf-py"),
            "over_gguf_bf16_1_new": over("bf16 1 new", "gguf-py"),
            "over_gguf_bf16_1": over("bf16 1", "gguf-py"),
            "over_gguf_bf16_2": over("bf16 2", "gguf-py"),
        }
    return found


def show(summary: dict[str, Any]) -> None:
    """The figures as a table on standard output, and whether the goal was met."""
    columns = ("f32 1", "f32 2", "bf16 1", "bf16 2", *NEW, "ggml C", "gguf-py")
    speed = Table(title=f"Melem/s, rows of {COLUMNS}; after /: share of filling the same array")
    speed.add_column("type")
    for column in (*columns, "× gguf-py: f32 1, new, f32 2", "2 ÷ 1: f32, bf16, and filling"):
        speed.add_column(column, justify="right")
    for name, own in summary["rates"].items():
        shares = summary["ratios"][name]
        cells = [cell(own, column, shares) for column in columns]
        keys = ("over_gguf_f32_1", "over_gguf_f32_1_new", "over_gguf_f32_2")
        over = " ".join(f"{shares[key]:.1f}" for key in keys if key in shares)
        scaled = [f"{shares[key]:.2f}" for key in shares if key.endswith("two_over_one")]
        speed.add_row(name, *cells, over, " ".join(scaled))
    console = Console()
    console.print(speed)
    for name in GOAL_TYPES:
        if name in summary["ratios"]:
            reached = summary["ratios"][name]["over_gguf_f32_1"]
            verdict = "met" if reached >= GOAL else "missed"
            console.print(f"{name}: {reached:.1f}× gguf-py, goal {GOAL}×: {verdict}")


def cell(own: dict[str, Any], column: str, shares: dict[str, float]) -> str:
    """A median, and its share of filling where there is one."""
    if column not in own:
        return ""
    kind, _, threads = column.partition(" ")
    key = f"{kind}_new_of_fill_new" if column in NEW else f"{kind}_of_fill_{threads}"
    share = f" /{shares[key]:.0%}" if key in shares else ""
    return f"{own[column]['median']:.0f}{share}"


if __name__ == "__main__":
    sys.exit(main())
