"""A sample of what this process and all below it do, and how much others took meanwhile.

Ours are this process and every descendant, gateways and engines that go on living among them.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.starts import NotMeasured, cpu_times
from serve.keeper import descendants

# Share of all cores that others may take during a sample.
OTHERS = 0.03
TRIES = 20
# Of samples that take a minute.
TRIES_BESIDE = 5
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Sample:
    """Wall seconds, and the share of all cores that went to other processes."""

    seconds: float = 0.0
    others: float = 0.0

    @property
    def quiet(self) -> bool:
        """Whether it counts."""
        return self.others <= OTHERS


@contextmanager
def timed() -> Iterator[Sample]:
    """Time the body; the sample is filled in at its end."""
    sample = Sample()
    all_, own = cpu_times(), own_ticks(os.getpid())
    began = time.perf_counter()
    yield sample
    sample.seconds = time.perf_counter() - began
    passed = [after - was for was, after in zip(all_, cpu_times(), strict=True)]
    busy = sum(passed) - passed[3] - passed[4]
    others = busy - (own_ticks(os.getpid()) - own)
    # A short sample may see no tick of the idle time that it had.
    whole = max(sum(passed), sample.seconds * TICKS, 1)
    sample.others = round(max(0.0, others / whole), 4)


def own_ticks(root: int) -> int:
    """CPU time of a process, of all below it, and of the children that they have buried, in ticks
    (proc(5), /proc/pid/stat: utime, stime, cutime, cstime).
    """
    return sum(_ticks(pid) for pid in (root, *descendants(root)))


def _ticks(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    # The name stands in parentheses and may hold anything.
    return sum(int(word) for word in stat.rpartition(")")[2].split()[11:15])


def sampled(work: Callable[[], object]) -> tuple[Sample, list[Sample]]:
    """A quiet sample of ``work``, and those rejected before it.

    :raises NotMeasured: none of many was quiet.
    """
    rejected: list[Sample] = []
    for _ in range(TRIES):
        with timed() as sample:
            work()
        if sample.quiet:
            return sample, rejected
        rejected.append(sample)
        time.sleep(1)
    others = min(sample.others for sample in rejected)
    raise NotMeasured(f"others never took less than {others:.0%} of this machine")


def attempts(
    work: Callable[[], object], repeats: int, *, busy: bool
) -> Iterator[tuple[Sample, bool]]:
    """Samples of so many times ``work``, and which of them count: with ``busy`` the first, whatever
    others did.

    :raises NotMeasured: others never rest.
    """

    def whole() -> None:
        for _ in range(repeats):
            work()

    if busy:
        with timed() as sample:
            whole()
        yield sample, True
        return
    kept, rejected = sampled(whole)
    yield from ((one, False) for one in rejected)
    yield kept, True


def undisturbed(
    take: Callable[[int], list[dict[str, Any]]], *, busy_ok: bool, tries: int = TRIES_BESIDE
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Samples, each with its ``others``, that belong together and count together: ``take(n)``, the
    n-th try from 1 on, until nobody else worked meanwhile; and those rejected before.

    :raises NotMeasured: somebody always did.
    """
    rejected: list[dict[str, Any]] = []
    least = 1.0
    for attempt in range(1, tries + 1):
        taken = take(attempt)
        most = max(one["others"] for one in taken)
        if busy_ok or most <= OTHERS:
            return taken, rejected
        least = min(least, most)
        rejected += taken
        time.sleep(1)
    raise NotMeasured(
        f"other processes took {least:.0%} of this machine or more during a sample, {tries} times "
        f"over (at most {OTHERS:.0%} is measured beside)\n"
        "hint: stop them, or --busy-ok keeps such samples and says so in the record"
    )
