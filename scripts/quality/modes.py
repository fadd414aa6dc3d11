"""How much is asked in each mode, and which texts: the same ones every time. Pure but for files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from scripts.lines import BadLine, read_objects
from scripts.quality.rule import LEAST_ITEMS

# Of a text, so that no long one outweighs all others.
CHARACTERS = 2_000
# Shorter ones tell more of how a model begins than of how it reads.
LEAST_CHARACTERS = 80
T = TypeVar("T")


@dataclass(frozen=True)
class Mode:
    """``texts`` and ``items`` at most; a share of a task's items; tokens of an answer at most.

    As many texts are drawn from the reference as are held out.
    """

    texts: int | None
    items: int | None
    share: float
    answer_tokens: int

    def count(self, of: int) -> int:
        """How many items of a task that has ``of``."""
        if self.items is not None:
            return min(of, self.items)
        return min(of, max(LEAST_ITEMS, round(of * self.share)))


MODES = {
    "smoke": Mode(24, 4, 0, 64),
    "fast": Mode(60, 32, 0, 256),
    "10%": Mode(100, None, 0.1, 1280),
    "full": Mode(None, None, 1.0, 1280),
}


@dataclass(frozen=True)
class Text:
    """Some text, and where it is from; of what stands before byte ``after`` nothing is asked."""

    source: str
    text: str
    after: int = 0


def spread(of: int, count: int) -> list[int]:
    """``count`` places of ``of``, evenly apart: sets are sorted by subject."""
    return [place * of // count for place in range(count)]


def evenly(of: Sequence[T], count: int | None) -> list[T]:
    """So many of them, evenly apart; all where there are no more."""
    return [of[place] for place in spread(len(of), min(len(of), count or len(of)))]


def read_texts(path: Path) -> list[Text]:
    """Lines of JSON with ``text`` and ``source``, cut to size; those too short are left out.

    :raises BadLine: naming the line that is none, or none is long enough.
    :raises OSError: it cannot be read.
    """
    found = []
    for where, item in read_objects(path):
        if not isinstance(text := item.get("text"), str):
            raise BadLine(f"{where}: expected an object with a text")
        if len(text) >= LEAST_CHARACTERS:
            found.append(Text(str(item.get("source", "")), text[:CHARACTERS]))
    if not found:
        raise BadLine(f"{path}: no text of {LEAST_CHARACTERS} characters or more")
    return found
