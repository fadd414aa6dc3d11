"""Visits and what became of them: each ends in a way that is right for its kind, or is lost.

Knows neither HTTP nor what a kind asks; keeps every count, and the stories of what was lost.
"""

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

# How a visit ends that goes well, and one whose client does not wait for the end.
WHOLE, LEFT = "whole", "left"
# A visit without an end is lost, and its client goes on with the next.
LONGEST_SECONDS = 180.0
STORIES = 50
STORY_CHARACTERS = 500


class Amiss(Exception):
    """An answer came that is not what was asked for; the text says in what."""


@dataclass(frozen=True)
class Kind:
    """One kind of visit. ``ask`` says how it ended; ``right`` are the ends that are.

    ``weight`` is how often it comes, beside the others; ``requests`` the least and the most that
    a server which loses none may count for one visit.
    """

    name: str
    ask: Callable[[random.Random], Awaitable[str]]
    right: frozenset[str] = frozenset((WHOLE,))
    weight: int = 1
    requests: tuple[int, int] = (1, 1)


@dataclass
class Entry:
    """All visits of one kind so far."""

    kind: Kind
    ends: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    seconds: list[float] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        """For a record."""
        return {
            "visits": len(self.seconds),
            "ends": dict(self.ends.most_common()),
            "lost": self.lost,
            "median_s": round(statistics.median(self.seconds), 3),
            "longest_s": round(max(self.seconds), 3),
        }


class Book:
    """Every visit is entered once, when it is over."""

    def __init__(self, kinds: Iterable[Kind]) -> None:
        self.entries = {kind.name: Entry(kind) for kind in kinds}
        self.stories: list[dict[str, Any]] = []
        self.at_work = 0
        self._began = time.monotonic()

    @property
    def visits(self) -> int:
        """How many are over."""
        return sum(len(entry.seconds) for entry in self.entries.values())

    @property
    def lost(self) -> int:
        """How many of them ended as none of their kind may."""
        return sum(entry.lost for entry in self.entries.values())

    @property
    def requests(self) -> tuple[int, int]:
        """The least and the most that a server may have counted."""
        both = [
            (
                entry.kind.requests[0] * len(entry.seconds),
                entry.kind.requests[1] * len(entry.seconds),
            )
            for entry in self.entries.values()
        ]
        return sum(least for least, _ in both), sum(most for _, most in both)

    async def visit(
        self, kind: Kind, chance: random.Random, longest: float = LONGEST_SECONDS
    ) -> None:
        """Make one, and enter it."""
        self.at_work += 1
        began = time.monotonic()
        try:
            async with asyncio.timeout(longest):
                end = await kind.ask(chance)
        except TimeoutError:
            end = f"no end in {longest:g} s"
        except Exception as error:
            end = told(error)
        finally:
            self.at_work -= 1
        self.enter(kind, end, began, time.monotonic())

    def enter(self, kind: Kind, end: str, began: float, ended: float) -> None:
        """One more is over."""
        entry = self.entries[kind.name]
        entry.seconds.append(ended - began)
        if end in kind.right:
            entry.ends[end] += 1
            return
        entry.lost += 1
        if len(self.stories) < STORIES:
            at, took = round(began - self._began, 3), round(ended - began, 3)
            story = {"kind": kind.name, "at_s": at, "seconds": took}
            self.stories.append(story | {"end": end[:STORY_CHARACTERS]})

    def describe(self) -> dict[str, Any]:
        """For a record: by kind, those that came."""
        return {name: entry.describe() for name, entry in self.entries.items() if entry.seconds}


def told(error: BaseException) -> str:
    """An exception in words, with what it was made from: a client's own says little."""
    words, cause = f"{type(error).__name__}: {error}", error.__cause__ or error.__context__
    return f"{words} ← {told(cause)}" if cause else words
