"""Measures how long a baked root takes to verify: every file hashed and compared with its manifest.

The root is made for it, of files as compile caches have them: many small ones, some shared
libraries, one artifact that is as large as half of all. Budget: under a second for each GB on two
cores. A cold sample begins with none of the files in the page cache; how many bytes then came from
the disk is read from ``/proc/self/io`` and kept.
"""

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from experiments.record import MEASUREMENTS, Record, add, now, this_machine
from serve import manifest
from serve.plan import versions
from serve.settings import REPOSITORY

# Size of a file, and the part of all bytes that stands in such files; None is one with the rest.
MIX = ((32 * 1024, 0.12), (4 * 1024**2, 0.40), (None, 0.48))
EXAMPLES = """examples:
  python -m scripts.measure_verify
  python -m scripts.measure_verify --gigabytes 4 --samples 10 --folder /mnt/disk
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when a record was added, 1 when the root was not sound, 2 usage."""
    parsed = parser().parse_args(arguments)
    made, machine = now(), this_machine()
    threads = sorted({1, machine.cores, manifest.hashers()})
    with tempfile.TemporaryDirectory(prefix="preheat-", dir=parsed.folder) as folder:
        root = Path(folder)
        total = fill(root, int(parsed.gigabytes * 1e9))
        stood = manifest.write(root)
        os.sync()
        # Interleaved, so that a slow minute of the machine is everybody's.
        turns = [(cache, n) for _ in range(parsed.samples) for n in threads for cache in STATES]
        samples = [sample(root, cache, n) for cache, n in watched(turns)]
    if any(taken["violations"] for taken in samples):
        print("not measured: the root changed meanwhile", file=sys.stderr)
        return 1
    record = Record(
        kind="verify",
        made=made,
        command=["python", "-m", "scripts.measure_verify", *sys.argv[1:]],
        machine=machine,
        variant={"versions": versions()},
        parameters={
            "bytes": total,
            "files": len(stood.files),
            "samples": parsed.samples,
            "largest_bytes": max(entry.size for entry in stood.files),
        },
        summary=summary(samples, total),
        samples=samples,
    )
    path = add(record, MEASUREMENTS)
    print(json.dumps(record.summary, indent=1))
    print(f"wrote {path.relative_to(REPOSITORY)}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.measure_verify",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--gigabytes", type=float, default=1.0, help="size of the root, 10^9 (1)")
    top.add_argument("--samples", type=int, default=7, help="of each kind (7)")
    top.add_argument("--folder", type=Path, help="where the root is made (TMPDIR)")
    return top


def fill(root: Path, total: int) -> int:
    """Files of random bytes, ``total`` in all; returns how many bytes were written."""
    written = 0
    for size, part in MIX:
        each = size or total - written
        folder = root / f"files-of-{each}"
        folder.mkdir(parents=True)
        for number in range(max(1, int(total * part / each)) if size else 1):
            with (folder / str(number)).open("wb") as file:
                written += file.write(os.urandom(each))
    return written


def forget(root: Path) -> None:
    """Take the root's files out of the page cache; they are clean, so nothing holds them there."""
    for path in root.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def remember(root: Path) -> None:
    """Have all of them there."""
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(2**22):
                    pass


STATES = {"cold": forget, "warm": remember}


def sample(root: Path, cache: str, threads: int) -> dict[str, Any]:
    """One verification."""
    STATES[cache](root)
    before, started = from_disk(), time.perf_counter()
    violations = manifest.verify(root, threads)
    seconds = time.perf_counter() - started
    return {
        "cache": cache,
        "threads": threads,
        "seconds": round(seconds, 4),
        "bytes_from_disk": from_disk() - before,
        "violations": len(violations),
    }


def from_disk() -> int:
    """Bytes that this process has had read from storage."""
    found = re.search(r"^read_bytes: (\d+)$", Path("/proc/self/io").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def summary(samples: Sequence[dict[str, Any]], total: int) -> dict[str, Any]:
    """Median, spread and seconds per GB, for each state of the cache and number of threads."""
    groups = sorted({(taken["cache"], taken["threads"]) for taken in samples})
    return {
        f"{cache}, {threads} threads": figures(
            [t["seconds"] for t in samples if (t["cache"], t["threads"]) == (cache, threads)], total
        )
        for cache, threads in groups
    }


def figures(seconds: Sequence[float], total: int) -> dict[str, float]:
    """Of one kind of sample."""
    median = statistics.median(seconds)
    return {
        "median_seconds": round(median, 4),
        "least_seconds": min(seconds),
        "most_seconds": max(seconds),
        "seconds_per_gb": round(median / (total / 1e9), 4),
    }


def watched(turns: list[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """The turns, with a bar on standard error."""
    return iter(track(turns, "measuring", console=Console(stderr=True)))


if __name__ == "__main__":
    sys.exit(main())
