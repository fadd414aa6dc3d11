"""Measures how long it takes to know what is in a checkpoint, against the libraries of each format.

Every sample opens a file, reads its header and knows names, types and shapes of all tensors; the
file is in the page cache. Peers take turns with us, round after round, and before anything is timed
both must have found the same. Samples beside which others burn CPU are taken again, and kept apart.

What is short is done over and over in one sample; figures are milliseconds for once. Files with
holes, of 10 MB to 10 GB, show that the bytes of tensors are never looked at.
"""

import argparse
import importlib
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from bake.checkpoint import gguf, hops, pth, safetensors
from bake.checkpoint.contents import Contents
from bake.checkpoint.source import mapped
from experiments.record import MEASUREMENTS, Record, add, now, this_machine
from scripts import inspected_files
from scripts.options import add_sampling, sample_seconds
from scripts.quiet import attempts
from scripts.starts import NotMeasured
from serve.plan import versions
from serve.settings import REPOSITORY

OURS = "preheat"
PARSERS = {"safetensors": safetensors.parse, "gguf": gguf.parse, "pth": pth.parse}
PEERS = ("safetensors", "gguf", "libgguf", "torch", "msgspec", "numba", "numpy")
# A tick of /proc/stat is 10 ms: in a sample of 0.4 s, two ticks of two cores are 2.5 %.
SAMPLE_SECONDS = 0.4
PTH_BYTES = 105_000_000
# 97 make 3,211 instructions of a pickle: the goal's file. The other has a 4B model's tensors.
PTH_TENSORS = (97, 396)
MEGABYTES = (10, 100, 1_000, 10_000)
# Issue 6: milliseconds at most, and how many times faster than which peer.
GOALS = {
    "safetensors": (None, 1.0, "safe_open"),
    "gguf": (5.0, 500.0, "gguf-py"),
    "pth": (1.5, 30.0, "torch.load"),
}
EXAMPLES = """examples:
  python -m scripts.measure_inspect
  python -m scripts.measure_inspect --rounds 9 --folder /mnt/disk
  python -m scripts.measure_inspect --quick --json --no-record
"""

Told = set[tuple[str, tuple[int, ...]]]


class Different(RuntimeError):
    """A peer found something else, so nothing is measured."""


@dataclass
class Case:
    """One kind of sample. ``work`` gives whatever ``told`` makes names and shapes of."""

    subject: str
    by: str
    work: Callable[[], Any]
    told: Callable[[Any], Told]
    repeats: int = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when all was measured, 1 when peers differ or others never rest, 2 usage."""
    parsed = parser().parse_args(arguments)
    made, machine = now(), this_machine()
    try:
        with tempfile.TemporaryDirectory(prefix="preheat-", dir=parsed.folder) as folder:
            cases = list(cases_in(Path(folder), parsed))
            samples = list(measured(cases, parsed))
    except (Different, NotMeasured) as stop:
        print(f"not measured: {stop}", file=sys.stderr)
        return 1
    record = Record(
        kind="inspect",
        made=made,
        command=["python", "-m", "scripts.measure_inspect", *sys.argv[1:]],
        machine=machine,
        variant={"versions": versions() | peers()},
        parameters={
            "rounds": parsed.rounds,
            "sample_seconds": sample_seconds(parsed),
        }
        | {"busy": parsed.busy or parsed.quick, "tokens": tokens_of(parsed)}
        | {"tensors": len(inspected_files.names()), "sparse_megabytes": MEGABYTES},
        summary=summary(samples),
        samples=samples,
    )
    print(json.dumps(record.summary, indent=1)) if parsed.json else show(record.summary)
    if parsed.record:
        path = add(record, MEASUREMENTS)
        print(f"wrote {path.relative_to(REPOSITORY)}", file=sys.stderr)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.measure_inspect",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--folder", type=Path, help="where the files are made (TMPDIR)")
    add_sampling(top, 5, "small files", seconds=SAMPLE_SECONDS)
    return top


def tokens_of(parsed: argparse.Namespace) -> int:
    """Of the vocabulary."""
    return 2_000 if parsed.quick else inspected_files.TOKENS


def peers() -> dict[str, str]:
    """Versions of those that are installed."""
    return {name: version(name) for name in PEERS if importlib.util.find_spec(name)}


def cases_in(folder: Path, parsed: argparse.Namespace) -> Iterator[Case]:
    """All that is measured, of files made in ``folder``."""
    yield from safetensors_cases(folder / "model.safetensors")
    yield from gguf_cases(folder / "model.gguf", tokens_of(parsed))
    for tensors in PTH_TENSORS:
        size = PTH_BYTES // (100 if parsed.quick else 1)
        yield from pth_cases(folder / f"{tensors}.pth", size, tensors)
    for kind in PARSERS:
        for megabytes in MEGABYTES:
            path = folder / f"{megabytes}.{kind}"
            inspected_files.sparse_file(kind, path, megabytes * 10**6)
            yield ours(f"{kind}, {megabytes} MB sparse", kind, path)


def ours(subject: str, kind: str, path: Path, by: str = OURS) -> Case:
    """Open, map, parse."""
    parse = PARSERS[kind]

    def work() -> Contents:
        with mapped(path) as source:
            return parse(source)

    return Case(subject, by, work, lambda found: {(one.name, one.shape) for one in found.tensors})


def safetensors_cases(path: Path) -> Iterator[Case]:
    """Ours, and the library's own: each tensor's shape and type asked for."""
    from safetensors import safe_open

    inspected_files.safetensors_file(path)

    def theirs() -> list[tuple[str, list[int], str]]:
        with safe_open(path, "np") as file:
            slices = ((name, file.get_slice(name)) for name in file.keys())  # noqa: SIM118
            return [(name, one.get_shape(), one.get_dtype()) for name, one in slices]

    yield ours("safetensors", "safetensors", path)
    yield Case(
        "safetensors", "safe_open", theirs, lambda found: {(n, tuple(s)) for n, s, _ in found}
    )


def gguf_cases(path: Path, tokens: int) -> Iterator[Case]:
    """Ours twice, with the kernel and as a command line without numba; gguf-py; libgguf."""
    from gguf import GGUFReader

    inspected_files.vocabulary_file(path, tokens)
    # From here on numba is imported, which is when the kernel is taken.
    importlib.import_module("numba")
    yield ours("gguf", "gguf", path)
    plainly = ours("gguf", "gguf", path, f"{OURS}, no numba")
    compiled = plainly.work

    def plain() -> Any:
        chosen = hops.walk
        hops.walk = lambda *asked: hops.plain(*asked[:4])
        try:
            return compiled()
        finally:
            hops.walk = chosen

    plainly.work = plain
    yield plainly
    yield Case("gguf", "gguf-py", lambda: GGUFReader(path), shapes_of_gguf_py)
    if importlib.util.find_spec("libgguf"):
        inspect = importlib.import_module("libgguf").inspect_gguf
        yield Case("gguf", "libgguf", lambda: inspect(path, max_array_values=0), shapes_of_libgguf)


def shapes_of_gguf_py(found: Any) -> Told:
    """Rows first, as ours are."""
    return {(one.name, tuple(reversed(one.shape.tolist()))) for one in found.tensors}


def shapes_of_libgguf(found: Any) -> Told:
    """Rows first, as ours are."""
    return {(one.name, tuple(reversed(one.shape))) for one in found.tensors}


def pth_cases(path: Path, size: int, tensors: int) -> Iterator[Case]:
    """Ours, and torch's own; it has no way to tell what is in a file but to load it."""
    import torch

    inspected_files.pth_file(path, size, tensors)
    subject = "pth" if tensors == PTH_TENSORS[0] else f"pth, {tensors} tensors"

    def told(found: Any) -> Told:
        return {(name, tuple(one.shape)) for name, one in found.items()}

    yield ours(subject, "pth", path)
    yield Case(subject, "torch.load", lambda: torch.load(path, weights_only=True), told)
    yield Case(
        subject, "torch.load, mmap", lambda: torch.load(path, weights_only=True, mmap=True), told
    )


def measured(cases: Sequence[Case], parsed: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Samples, in turn; those rejected among them.

    :raises Different: peers found something else.
    :raises NotMeasured: others never rested.
    """
    first: dict[str, Told] = {}
    for case in cases:
        told = case.told(case.work())
        if told != first.setdefault(case.subject, told):
            raise Different(f"{case.subject}: {case.by} found other tensors")
        began = time.perf_counter()
        case.work()
        case.repeats = max(1, round(sample_seconds(parsed) / (time.perf_counter() - began)))
    turns = [case for _ in range(parsed.rounds) for case in cases]
    for case in track(turns, "measuring", console=Console(stderr=True)):
        for sample, kept in attempts(case.work, case.repeats, busy=parsed.busy or parsed.quick):
            yield {
                "subject": case.subject,
                "by": case.by,
                "milliseconds": round(1e3 * sample.seconds / case.repeats, 4),
                "repeats": case.repeats,
                "others": sample.others,
                "kept": kept,
            }


def summary(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Milliseconds by subject and by whom, and how many times as long peers take."""
    found: dict[str, Any] = {}
    for taken in samples:
        found.setdefault(taken["subject"], {}).setdefault(taken["by"], [])
        if taken["kept"]:
            found[taken["subject"]][taken["by"]].append(taken["milliseconds"])
    for of in found.values():
        for by, each in of.items():
            median = round(statistics.median(each), 4)
            of[by] = {"median_ms": median, "min_ms": min(each), "max_ms": max(each)}
        for by, own in of.items():
            if not by.startswith(OURS):
                own["times_ours"] = round(own["median_ms"] / of[OURS]["median_ms"], 2)
    return {"inspect": found, "met": goals(found)}


def goals(found: dict[str, Any]) -> dict[str, bool]:
    """Which goals of issue 6 are met."""
    met = {}
    for subject, (most, times, peer) in GOALS.items():
        quick = most is None or found[subject][OURS]["median_ms"] <= most
        met[subject] = bool(quick and found[subject][peer]["times_ours"] >= times)
    return met


def show(summed: dict[str, Any]) -> None:
    """The figures as a table on standard output."""
    table = Table("file", "by", "ms", "least", "most", "times ours", "goal")
    for subject, of in summed["inspect"].items():
        for by, own in of.items():
            figures = (f"{own[f'{which}_ms']:.3f}" for which in ("median", "min", "max"))
            met = summed["met"].get(subject) if by == OURS else None
            goal = "" if met is None else "met" if met else "not met"
            table.add_row(subject, by, *figures, str(own.get("times_ours", "")), goal)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
