"""Which number of which record each figure of the pages is: a line a figure, in their order.

That a record has some number that rounds to a figure may be chance: a large one has hundreds. A
pin says which one it is, so a digit that changes on a page is found though another number of the
record would do. Pure but for its own file.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from experiments.figures import Known
from scripts.claims import Claim

FILE = Path("experiments") / "figures.tsv"
HEAD = "page\tfigure\tplace\n"
WORD = re.compile(r"[a-z]+|\d+")
# The least and the most of samples are meant less often than what lies between.
ENDS = re.compile(r"[/_](?:min|max|low|high|least|most|lower|upper)(?:_\w+)?$")


@dataclass(frozen=True)
class Pin:
    """A figure as it is written, and its place: ``record.json#/pointer``, or two and ``÷``."""

    figure: str
    place: str

    @property
    def record(self) -> str:
        """The record that it lies in; empty for a sum over several."""
        return self.place.split("#", 1)[0] if "#" in self.place else ""


def read(root: Path) -> dict[str, list[Pin]]:
    """The pins of each page; none where there is no file."""
    path = root / FILE
    found: dict[str, list[Pin]] = {}
    lines = path.read_text(encoding="utf-8").splitlines()[1:] if path.is_file() else []
    for line in lines:
        page, figure, place = line.split("\t")
        found.setdefault(page, []).append(Pin(figure, place))
    return found


def dump(pins: dict[str, list[Pin]]) -> str:
    """As the file has them."""
    return HEAD + "".join(
        f"{page}\t{pin.figure}\t{pin.place}\n" for page in sorted(pins) for pin in pins[page]
    )


@dataclass(frozen=True)
class Bound:
    """A claim with its pin, or with the pins of figures that stood here before."""

    claim: Claim
    pin: Pin | None
    before: tuple[Pin, ...] = ()


def bound(claims: Sequence[Claim], pins: Sequence[Pin]) -> Iterator[Bound]:
    """Each claim with what is pinned for it; order tells those of the same digits apart."""
    old, new = [pin.figure for pin in pins], [str(claim.figure) for claim in claims]
    for kind, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        for step in range(d - c):
            pin = pins[a + step] if kind == "equal" else None
            yield Bound(claims[c + step], pin, () if pin else tuple(pins[a:b]))


def left(claims: Sequence[Claim], pins: Sequence[Pin]) -> int:
    """How many pins hold no figure any more."""
    return len(pins) - sum(one.pin is not None for one in bound(claims, pins))


def holds(claim: Claim, pin: Pin, known: Known) -> bool:
    """Whether the pinned place, in the records that the page links, still rounds to the figure."""
    return any(
        where == pin.place and claim.figure.is_value(value)
        for value, where in known.candidates(claim.figure.unit)
    )


def choose(claim: Claim, known: Known) -> Pin | None:
    """The likeliest place of a figure; none where nothing rounds to it.

    By the words that its text and the place have in common, those right before it twice; what a
    record states comes before what can be made of it, a middle before an end of a spread.
    """
    found = {
        where
        for value, where in known.candidates(claim.figure.unit)
        if claim.figure.is_value(value)
    }
    if not found:
        return None
    near, around = _words(claim.near), _words(claim.around)

    def rank(where: str) -> tuple[float, int, str]:
        own = _words(where.partition("#")[2])
        common = 2 * len(own & near) + len(own & around)
        made = 2 * (" - 1" in where) + ("÷" in where) + 3 * ("#" not in where)
        return bool(ENDS.search(where)) + made - common / (1 + len(own)), len(where), where

    return Pin(str(claim.figure), min(found, key=rank))


def _words(text: str) -> set[str]:
    return {word.rstrip("s") for word in WORD.findall(text.lower())}


def replaces(one: Bound, chosen: Pin) -> bool:
    """Whether another figure of the very record stood here: the page changed, not what is known."""
    unit = one.claim.figure.unit
    return any(
        pin.record == chosen.record and pin.figure.partition(" ")[2] == unit for pin in one.before
    )
