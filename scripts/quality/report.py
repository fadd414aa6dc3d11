"""From what the reference and a variant answered to what a record keeps. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scripts.intervals import Interval, paired_difference, wilson
from scripts.quality import divergence, rule
from scripts.quality.divergence import Sums, compare
from scripts.quality.harness import Asked, Scored
from scripts.quality.modes import Text
from scripts.quality.session import Answers


@dataclass(frozen=True)
class Compared:
    """Sums over the held-out texts, and over those that the reference drew."""

    texts: list[Sums]
    drawn: list[Sums]


def compared(texts: Sequence[Text], reference: Answers, other: Answers) -> Compared:
    """Each text, of both kinds.

    :raises NotAligned: one cannot be.
    """
    held = zip(texts, reference.texts, other.texts, strict=True)
    drawn = zip(reference.drawn, other.drawn, strict=True)
    return Compared(
        [compare(text.text, ours, theirs) for text, ours, theirs in held],
        [
            compare(text.text, ours, theirs, text.after)
            for (text, ours), (_, theirs) in drawn
            if any(one.start >= text.after for one in ours)
        ],
    )


def summary(
    found: Compared, noise: Compared, reference: Answers, variant: Answers, again: Answers
) -> dict[str, Any]:
    """Figures with intervals, the engine's own noise beside them, and the verdict.

    ``again``: what the reference answered, restarted; of that is the noise.
    """
    on_texts = divergence.intervals(found.texts, found.drawn)
    differences = {task: difference(task, reference, variant) for task in variant.tasks}
    told: dict[str, Any] = rule.apply(on_texts, differences)
    told["texts"] = divergence.totals(found.texts) | described(on_texts)
    told["drawn"] = divergence.totals(found.drawn)
    told["noise"] = described(divergence.intervals(noise.texts, noise.drawn))
    told["noise"]["tasks"] = {task: changed(task, reference, again) for task in again.tasks}
    told["tasks"] = {
        task: {
            "reference": rate(reference.tasks[task]),
            "variant": rate(variant.tasks[task]),
            "difference": found.describe(),
        }
        for task, found in differences.items()
    }
    return told


def described(figures: dict[str, Interval]) -> dict[str, Any]:
    """As JSON."""
    return {name: interval.describe() for name, interval in figures.items()}


def rate(told: Scored) -> dict[str, Any]:
    """Of items passed, and how many answers could not be read."""
    passed = wilson(sum(told.scores), len(told.scores))
    return passed.describe() | {"unread": told.unread}


def difference(task: str, reference: Answers, variant: Answers) -> Interval:
    """Variant less reference, item by item."""
    ours = np.array(reference.tasks[task].scores, dtype=np.float64)
    return paired_difference(ours, np.array(variant.tasks[task].scores, dtype=np.float64))


def changed(task: str, reference: Answers, again: Answers) -> dict[str, Any]:
    """What asking the same server again changes: tasks run several at a time, and what shares a
    step with what is not the same twice.
    """
    pairs = zip(reference.tasks[task].scores, again.tasks[task].scores, strict=True)
    other = sum(one != another for one, another in pairs)
    return {"changed": other, "difference": difference(task, reference, again).describe()}


def samples(
    texts: Sequence[Text],
    found: Compared,
    noise: Compared,
    tasks: Sequence[Asked],
    answers: tuple[Answers, Answers, Answers],
) -> list[dict[str, Any]]:
    """Every item, in order: sums of each text, and one digit for each item of a task.

    ``answers``: the reference's, the variant's, the reference's again.
    """
    sources = {"sources": [text.source for text in texts]}
    kept: list[dict[str, Any]] = [
        {"texts": "held out"} | sources | divergence.columns(found.texts),
        {"texts": "drawn from the reference"} | divergence.columns(found.drawn),
        {"noise": "held out"} | divergence.columns(noise.texts),
        {"noise": "drawn from the reference"} | divergence.columns(noise.drawn),
    ]
    reference, variant, again = answers
    kept += [
        {
            "task": asked.task,
            "of": asked.of,
            "items": len(asked.places),
            "answer_tokens": asked.answer_tokens,
            "reference": digits(reference.tasks[asked.task]),
            "variant": digits(variant.tasks[asked.task]),
        }
        | ({"again": digits(again.tasks[asked.task])} if asked.task in again.tasks else {})
        for asked in tasks
    ]
    return kept


def digits(told: Scored) -> str:
    """``0110…``: item by item, a fourteenth of what a list would take."""
    return "".join(str(score) for score in told.scores)
