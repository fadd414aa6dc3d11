"""The rule by which a variant is called at parity; fixed before anything was measured.

``docs/quality.md`` states and explains it. Pure: intervals in, verdict out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from scripts.intervals import Interval, items_unseen

Finding = Literal["holds", "fails", "open"]
Verdict = Literal["parity", "not at parity", "undecided"]

# Below this many texts or items a percentile bootstrap is not to be trusted either way.
LEAST_ITEMS = 20


@dataclass(frozen=True)
class Criterion:
    """A bound on one figure: ``at most`` or ``at least`` ``limit``, in ``unit``."""

    name: str
    side: Literal["at most", "at least"]
    limit: float
    unit: str


PERPLEXITY = Criterion("perplexity_change", "at most", 0.01, "relative")
DIVERGENCE = Criterion("kl", "at most", 0.02, "nats per token")
AGREEMENT = Criterion("top1_agreement", "at least", 0.95, "share of tokens")
# Of each task: paired difference of mean scores, variant less reference.
TASK = Criterion("task_difference", "at least", -0.02, "share of items")
ON_TEXTS = (PERPLEXITY, DIVERGENCE, AGREEMENT)


@dataclass(frozen=True)
class Judged:
    """One criterion applied; ``items_to_decide`` where the interval straddles the limit."""

    criterion: Criterion
    of: str
    interval: Interval
    finding: Finding
    items_to_decide: int | None = None

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        told: dict[str, Any] = {
            "criterion": f"{self.of} {self.criterion.side} {self.criterion.limit:g}",
            "unit": self.criterion.unit,
            "interval": self.interval.describe(),
            "finding": self.finding,
        }
        return told | (
            {"items_to_decide": self.items_to_decide} if self.items_to_decide is not None else {}
        )


def judge(criterion: Criterion, interval: Interval, of: str = "") -> Judged:
    """Whether the whole interval lies within the limit, beyond it, or across."""
    of = of or criterion.name
    within, beyond = _position(criterion, interval)
    if interval.items >= LEAST_ITEMS and within:
        return Judged(criterion, of, interval, "holds")
    if interval.items >= LEAST_ITEMS and beyond:
        return Judged(criterion, of, interval, "fails")
    return Judged(criterion, of, interval, "open", items_to_decide(criterion, interval))


def _position(criterion: Criterion, interval: Interval) -> tuple[bool, bool]:
    """Within the limit with all of it; beyond with all of it. An end on the limit is within."""
    if criterion.side == "at most":
        return interval.high <= criterion.limit, interval.low > criterion.limit
    return interval.low >= criterion.limit, interval.high < criterion.limit


def items_to_decide(criterion: Criterion, interval: Interval) -> int | None:
    """About how many items would settle it if the figure stayed as it is.

    An interval narrows by the square root of its items, so the half towards the limit must come
    down to the distance of the figure from it. Where no item was lost its low end rises faster, and
    by items alone. None where the figure lies on the limit, or where there is no distance to
    narrow.
    """
    if interval.unseen and -1 < criterion.limit < min(0, interval.point):
        return max(LEAST_ITEMS, items_unseen(-criterion.limit))
    distance = criterion.limit - interval.point
    half = interval.high - interval.point if distance > 0 else interval.point - interval.low
    if not distance or not math.isfinite(half):
        return None
    return max(LEAST_ITEMS, math.ceil(interval.items * (half / distance) ** 2))


def verdict(judged: list[Judged]) -> Verdict:
    """One failed: not at parity. All hold: parity. Else undecided.

    Without all three criteria on texts nothing can be at parity.
    """
    if any(one.finding == "fails" for one in judged):
        return "not at parity"
    texts = {one.criterion for one in judged if one.finding == "holds"} >= set(ON_TEXTS)
    return "parity" if texts and all(one.finding == "holds" for one in judged) else "undecided"


def apply(on_texts: Mapping[str, Interval], of_tasks: Mapping[str, Interval]) -> dict[str, Any]:
    """The verdict as a record keeps it: what was judged, how, and on what.

    ``on_texts`` by the names of ``ON_TEXTS``, ``of_tasks`` by task: paired differences.

    :raises KeyError: a figure on texts that no criterion knows.
    """
    known = {criterion.name: criterion for criterion in ON_TEXTS}
    judged = [judge(known[name], interval) for name, interval in on_texts.items()]
    judged += [judge(TASK, interval, name) for name, interval in of_tasks.items()]
    return {
        "verdict": verdict(judged),
        "judged_on": "texts and tasks" if of_tasks else "texts alone",
        "criteria": [one.describe() for one in judged],
    }
