"""From settings to bakes: which variants, one after the other, and what stops them cleanly.

A SIGTERM ends a bake as Ctrl-C does: the engine is stopped, temporary copies are removed, and what
was made so far stays in ``.R.preheat.part``, which nobody uses and the next bake removes.
"""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from bake import cache
from bake.cache import Report
from bake.progress import Progress, Timer
from serve.engine import Limits
from serve.identity import instructions
from serve.plan import Plan, make_plan
from serve.preflight import (
    check_kernels,
    check_memory,
    free_memory,
    needed_bytes,
)
from serve.settings import Settings


def bake_all(
    settings: Settings, variants: Sequence[str], progress: Progress, present: str = ""
) -> list[Report]:
    """Bake each variant below ``settings.baked_root``.

    :raises ServeError: the first that failed; those before it are in place.
    """
    # All are planned first: a name that does not exist should not show after a long bake.
    plans = [plan_of(settings, name) for name in dict.fromkeys(variants)]
    limits = Limits(settings.start_seconds, settings.stop_seconds, 0)
    reports = []
    with terminated_as_interrupted():
        for plan in plans:
            if settings.check_memory:
                needed = needed_bytes(plan.model, plan.target)
                check_memory(needed, *free_memory(plan.target, plan.gpu))
            if plan.target.device == "cpu":
                check_kernels(plan.model, plan.variant, instructions())
            progress.say(f"baking {plan.variant.name} of {plan.model.name} for {plan.target.name}")
            progress.say(f"  model {plan.model.name}: {plan.why}")
            for dropped in plan.command.dropped:
                progress.say(f"  {dropped}")
            timer = Timer(progress)
            reports.append(cache.bake(plan, settings.baked_root, limits, timer, present))
    return reports


def plan_of(settings: Settings, variant: str) -> Plan:
    """The plan that a server of ``variant`` would make; its place is not used."""
    chosen = settings.model_copy(update={"variant": variant})
    return make_plan(chosen, Path(sys.executable), Path("engine.sock"))


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Within: SIGTERM raises, so that everything on the way out is cleaned up."""

    def on_signal(number: int, _frame: FrameType | None) -> None:
        # The second one waits for nothing.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
