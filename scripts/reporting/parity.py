"""Reads `parity` records: whether drafts change what is said, greedily."""

from typing import Any

from pydantic import Field

from scripts.reporting.page import Section, Table
from scripts.reporting.records import Shape, Source, summary, taken

KIND = "parity"
# Ends the name of what compares no drafts with no drafts.
FLOOR = "floor"


class Comparison(Shape):
    """Texts of two ways to serve, prompt by prompt."""

    verdict: str
    prompts: int
    different: int
    near_ties: int
    largest_gap: float | None


class Soak(Shape):
    """Load of many lengths at once with so many drafts a step."""

    k: int
    seconds: float
    requests: int
    sound: bool
    said: str = ""


class Parity(Shape):
    """The summary of a record."""

    agreed: bool
    words: str = ""
    left_out: dict[str, str] = Field(default_factory=dict)
    comparisons: dict[str, Comparison]
    soak: tuple[Soak, ...] = ()
    prefix_caching: dict[str, Any] = Field(default_factory=dict)

    @property
    def same(self) -> tuple[int, int]:
        """Prompts whose text drafts left as it was in every pass, at the least, and all of them."""
        drafts = [one for name, one in self.comparisons.items() if not name.endswith(FLOOR)]
        same = min((one.prompts - one.different for one in drafts), default=0)
        return same, max((one.prompts for one in drafts), default=0)

    @property
    def told(self) -> str:
        """What came of it, as the record says it where it does."""
        own = "drafts change nothing" if self.agreed else "drafts change what is said"
        return self.words or own


def section(source: Source) -> Section:
    """A row for each comparison, and for each soak."""
    made = Section(
        KIND,
        "Drafts and text",
        "Greedy texts with drafts beside those without, over all prompts. A near tie is a place "
        "where the two likeliest tokens lie so close that rounding decides; the floor is what a "
        "batch's size alone changes, without drafts.",
        "No record of kind parity yet: make eval-parity VARIANT=seq8-best.",
    )
    good, made.notes = taken(summary(Parity), source.of(KIND))
    made.records = [found for found, _ in good]
    for found, parity in good:
        name = ", ".join(filter(None, (found.variant, found.model)))
        rows = [_compared(what, one) for what, one in parity.comparisons.items()]
        rows += [_soaked(one) for one in parity.soak]
        rows += [[what, f"left out: {why}", *[""] * 4] for what, why in _left_out(parity).items()]
        head = ["comparison", "verdict", "prompts", "different", "near ties", "largest gap, nats"]
        made.tables.append(Table(f"{name}: {parity.told}", head, rows))
    return made


def _left_out(parity: Parity) -> dict[str, str]:
    """What was not compared, and why."""
    caching = parity.prefix_caching
    why = caching.get("reason", "") if caching.get("on") is False else ""
    return parity.left_out | ({"prefix caching": str(why)} if why else {})


def _compared(what: str, one: Comparison) -> list[str]:
    gap = "" if one.largest_gap is None else f"{one.largest_gap:.4f}"
    return [what, one.verdict, str(one.prompts), str(one.different), str(one.near_ties), gap]


def _soaked(one: Soak) -> list[str]:
    end = "sound" if one.sound else f"failed: {one.said}"
    return [f"soak, K = {one.k}, {one.seconds:.0f} s", end, str(one.requests), "", "", ""]
