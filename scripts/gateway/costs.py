"""What a system under load takes: CPU time and memory of its processes, read from ``/proc``."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.quiet import TICKS, own_ticks
from serve.keeper import descendants

# A system that takes less of a core is at rest.
REST = 0.05
LOOK_SECONDS = 0.25
LOOKS = 2
KIB = 1024


@dataclass(frozen=True)
class Processes:
    """``root`` and all below it, but for ``aside`` and all below that: the fake engine, which the
    gateway started and which is not what is measured.
    """

    root: int
    aside: int | None = None

    def cpu_seconds(self) -> float:
        """User and system time so far; the kernel counts in hundredths."""
        aside = own_ticks(self.aside) if self.aside else 0
        return (own_ticks(self.root) - aside) / TICKS

    def resident_bytes(self) -> int:
        """Memory that they hold now."""
        return sum(_status(pid, "VmRSS") for pid in self._pids())

    def peak_bytes(self) -> int:
        """The most that each of those which live has held, together."""
        return sum(_status(pid, "VmHWM") for pid in self._pids())

    def _pids(self) -> set[int]:
        aside = {self.aside, *descendants(self.aside)} if self.aside else set[int]()
        return {self.root, *descendants(self.root)} - aside


def rested(each: Sequence[Processes], seconds: float) -> bool:
    """Wait until all of them are at rest, twice in a row; whether they were within so long."""
    until, quiet = time.monotonic() + seconds, 0
    while quiet < LOOKS and time.monotonic() < until:
        before = [one.cpu_seconds() for one in each]
        time.sleep(LOOK_SECONDS)
        took = (one.cpu_seconds() - was for one, was in zip(each, before, strict=True))
        quiet = quiet + 1 if max(took, default=0) <= REST * LOOK_SECONDS else 0
    return quiet == LOOKS


def _status(pid: int, name: str) -> int:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.M)
    except OSError:
        # Between the list and the look it ended.
        return 0
    return int(found[1]) * KIB if found else 0
