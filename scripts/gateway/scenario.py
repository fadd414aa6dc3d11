"""What a scenario is: a fault, a promise, the rule that decides, and how it is played."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.gateway.verdict import Counts, Rule


@dataclass(frozen=True)
class Size:
    """How much of everything, beside the full number."""

    share: float = 1.0

    def of(self, full: int) -> int:
        """So many of ``full``, a few at least."""
        return max(3, round(full * self.share))


@dataclass(frozen=True)
class Scenario:
    """``fault`` and ``promise`` are for people; ``rule`` is the promise for a program."""

    name: str
    fault: str
    promise: str
    rule: Rule
    play: Callable[[Path, Size], Coroutine[Any, Any, Counts]]
