"""A sweep over K: engines of all K alive side by side, as many as memory holds, and measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.latency.commanded import STOPPED
from scripts.latency.memory import available, fitting, on_card, taken
from scripts.latency.plan import Cell, groups
from scripts.latency.prompts import Prompt
from scripts.latency.rigs import Rig, rigs
from scripts.latency.rounds import Options, Run, measure
from scripts.mtp.levers import Chosen, place, with_drafts
from scripts.mtp.sweep import name, number
from scripts.starts import NotMeasured
from serve.preflight import needed_bytes
from serve.settings import REPOSITORY

CACHE = REPOSITORY / ".cache" / "sweep-k"
MIB = 2**20
# Engines that start side by side: two cores are busy with two.
AT_ONCE = 2
Tell = Callable[[str], None]


@dataclass
class Sweep:
    """A sweep under way: what it is asked, and what it has seen."""

    chosen: Chosen
    prompts: Sequence[Prompt]
    loads: Sequence[Cell]
    options: Options
    folder: Path
    until: float
    tell: Tell
    runs: list[Run] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)
    # Ks that were not reached, by name, and what stopped each.
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.monotonic()

    def settings(self, k: int) -> dict[str, str]:
        """Of a gateway with `k` drafts."""
        root = self.folder / name(k)
        made = place(root, self.chosen, with_drafts(self.chosen, k))
        return made | {"PREHEAT_CACHE_ROOT": str(CACHE)}

    def variant(self) -> dict[str, Any]:
        """What the engine says that has the variant's own K, or the last one."""
        every = merged(run.told for run in self.runs)
        own = name(self.chosen.variant.num_speculative_tokens or 0)
        return dict(every.get(own) or list(every.values())[-1])

    def all(self, ks: Sequence[int], together: int | None) -> list[list[int]]:
        """K = 0, then the others in groups beside it; the groups that were measured, each without
        0. What stops a group leaves what the others gave: its Ks are left out.

        :raises Exception: one of ``STOPPED``, where no group gave anything.
        """
        measured = []
        self.tell(f"start {name(0)}")
        with rigs({name(0): self.settings(0)}, self.folder / "base", 1, self.left) as (base,):
            found = self._groups([k for k in ks if k], self._together(base, together))
            for place_, group in enumerate(found):
                until = time.monotonic() + self.left / (len(found) - place_)
                try:
                    self._group(base, group, until)
                    measured.append(group)
                except STOPPED as error:
                    self._leave_out(group, error)
                    if not measured and place_ == len(found) - 1:
                        raise
        return measured

    def _leave_out(self, group: Sequence[int], error: Exception) -> None:
        first = next(iter(str(error).splitlines()), "")
        why = first.rstrip(":") or type(error).__name__
        self.left_out |= {name(k): why for k in group}
        self.tell(f"left out {', '.join(map(name, group))}: {why}")

    def _groups(self, others: Sequence[int], together: int) -> list[list[int]]:
        named = groups([name(k) for k in others], together)
        return [[number(one) for one in group] for group in named]

    def _together(self, base: Rig, most: int | None) -> int:
        """How many engines may be alive.

        :raises NotMeasured: not two.
        """
        self.memory[base.name] = one = taken(base.pid)
        needed = needed_bytes(self.chosen.model, self.chosen.target)
        fits = 1 + fitting(available(), one, needed)
        if self.chosen.target.device != "cpu":
            fits = min(fits, on_card(self.chosen.target, needed))
        self.tell(f"an engine takes {one // MIB} MiB: {fits} fit")
        if min(fits, most or fits) < 2:
            raise NotMeasured(f"no two engines side by side (memory for {fits}, --together {most})")
        return min(fits, most or fits)

    def _group(self, base: Rig, group: Sequence[int], until: float) -> None:
        each = {name(k): self.settings(k) for k in group}
        self.tell(f"start {', '.join(each)}")
        at_once = AT_ONCE if self.chosen.target.device == "cpu" else 1
        seconds = until - time.monotonic()
        with rigs(each, self.folder / "group", at_once, seconds) as alive:
            both = [base, *alive]
            run = measure(both, self.prompts, self.loads, self.options, self.tell, until)
            self.memory |= {one.name: taken(one.pid) for one in both}
        self.runs.append(run)


def merged(each: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """All of them; the last says what several say."""
    return {key: value for one in each for key, value in one.items()}
