"""Prompts of a load, as token ids: real text, so that drafts are as good as they are on text, and
each with a beginning of its own, so that no prefix cache knows it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from scripts.lines import read_objects
from scripts.mtp.held_out import HELD_OUT
from scripts.profile.engine import Asked, Running

# Ids in the middle of every vocabulary, of which a beginning is made: three digits of base 97.
FIRST_ID, BASE, DIGITS = 300, 97, 3
# Characters that are tokenized: of 2,048 tokens eight prompts are a third of it.
CHARACTERS = 200_000


@dataclass
class Prompts:
    """Loads of one engine: ``ids`` are a long text's; every prompt is another part of it."""

    ids: Sequence[int]
    _numbers: "count[int]" = field(default_factory=count)

    def load(self, batch: int, context: int, output: int) -> list[Asked]:
        """``batch`` requests of ``context`` prompt tokens, none like any before."""
        return [Asked(self._prompt(next(self._numbers), context), output) for _ in range(batch)]

    def _prompt(self, number: int, context: int) -> list[int]:
        mark = [FIRST_ID + number // BASE**place % BASE for place in range(DIGITS)]
        # A stride that is prime to most lengths, so that parts of later loads differ, too.
        start = number * 1009 % len(self.ids)
        text = [self.ids[(start + place) % len(self.ids)] for place in range(context)]
        return (mark + text)[:context]


def of(running: Running) -> Prompts:
    """Of the held-out texts that ship beside tiny, as the engine itself tokenizes them.

    :raises scripts.served.NotServed: it does not.
    """
    texts = (str(item.get("text", "")) for _, item in read_objects(HELD_OUT))
    body: dict[str, Any] = {
        "model": running.plan.model.name,
        "prompt": "\n".join(texts)[:CHARACTERS],
        "add_special_tokens": False,
    }
    return Prompts(running.post("/tokenize", body)["tokens"])
