"""A sample of what this process and its children do, and how much others took meanwhile."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from scripts.starts import NotMeasured, cpu_times

# Share of all cores that others may take during a sample.
OTHERS = 0.03
TRIES = 20


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
    ticks, own = cpu_times(), _own()
    began = time.perf_counter()
    yield sample
    sample.seconds = time.perf_counter() - began
    passed = [after - was for was, after in zip(ticks, cpu_times(), strict=True)]
    second = os.sysconf("SC_CLK_TCK")
    busy = (sum(passed) - passed[3] - passed[4]) / second
    cores = max(sum(passed) / second, sample.seconds)
    sample.others = round(max(0.0, busy - (_own() - own)) / cores, 4)


def _own() -> float:
    """Seconds of CPU of this process, and of its children that have ended."""
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


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
