"""Measured figures in running text: which numbers are one, and whether a record has them.

A figure is a number with a unit that only measuring gives (`6.9 s`, `14.9×`, `+0.34 %`). Pure:
takes text and the numbers of records, opens nothing.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

from experiments.pointers import Path, spelled

NUMBER = r"[+−-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
# "300 times" may be a count; "3 times as fast" (or code, blanked to spaces) is a ratio.
TIMES = r"times(?=\s+(?:as|the|what|gguf|(?:fast|short|slow|long|small|larg|few|high|low)er)|\s{3})"
# "4x" is a ratio; "4096 x 512" is a shape.
UNIT = (
    rf"(?:ms|µs|seconds?|s|minutes?|×|(?<=\d)x|-?fold|{TIMES}|%|percent|points|nats?"
    r"|tok(?:ens)?/s|Melem/s|[MG]i?B/s|MB|GB)"
)
JOIN = r"\s*(?:[,/–→]|to|and|or)\s*"
FIGURE = re.compile(
    rf"(?<![\w.,+−-])(?P<list>{NUMBER}(?:\s?(?:{UNIT})?{JOIN}{NUMBER})*)\s?(?P<unit>{UNIT})(?![\w/])"
)
LISTED = re.compile(rf"(?P<number>{NUMBER})(?:\s?(?P<unit>{UNIT}))?")
# Figures without a unit, told by the word before them.
NAMED = re.compile(
    r"(?i:perplexity|acceptance length|divergence)[^\d|.;]{0,30}?"
    rf"(?P<list>{NUMBER})(?![\w×%]|\s?%)"
)
# What was wanted, asked for or expected was not measured; a bound ("up to") is a claim.
WANTED = re.compile(r"(?i)(?:goals?|asked for|wanted|predict\w*|expect\w*)\b[^.;|()\d]{0,30}$")
BARE = re.compile(rf"(?<![\w.,+−-]){NUMBER}(?![\w.×])")
# Ends of a spread and ratios are figures, but no ratio is made of them.
UNDIVIDED = re.compile(
    r"(?:^|_)(?:min|max|least|most|low|high|lower|upper|p99|ratios?|over|against|times|of|change"
    r"|rounds|samples)(?:$|_)"
)
PAIRS = 200_000
SECONDS = {"s": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e3, "µs": 1e6}
SECONDS |= {"minute": 1 / 60, "minutes": 1 / 60}
TIMES_OVER = ("×", "x", "fold", "-fold", "times")
SHARES = dict.fromkeys(TIMES_OVER, 1.0) | {"%": 100.0, "percent": 100.0, "points": 100.0}
BYTES = {
    "": (1.0, 1e-6, 1e-9),
    "MB": (1e-6,),
    "GB": (1e-9,),
    "MiB": (2.0**-20,),
    "GiB": (2.0**-30,),
}
# Last names of what is no ratio.
MEASURES = re.compile(r"^(?:median|min|max|mean|load)$|seconds|(?:^|_)ms$|per_second|perplexity$")
# Names of what is no time.
OTHERWISE = re.compile(
    r"per_second|per_s\b|per_gb|/s\b|ratio|times_|_times|count|tokens|prompts|of_limit|against|bits|perplexity|rate|share"
    r"|change|divergence|agreement|rounds|samples|cores|threads$|seed"
)


@dataclass(frozen=True)
class Figure:
    """A number as it is written: where, how fine, of what unit (empty: a cell without one)."""

    text: str
    unit: str
    at: int

    @property
    def value(self) -> float:
        """The number."""
        return float(self.text.replace(",", "").replace("−", "-"))

    @property
    def half(self) -> float:
        """Half of its last digit; zeros at the end of a large whole number say nothing."""
        digits = self.text.lstrip("+−-").replace(",", "")
        if "." in digits:
            return 0.5 * 10.0 ** -len(digits.split(".")[1])
        zeros = len(digits) - len(digits.rstrip("0"))
        return 0.5 * 10.0 ** max(0, min(zeros, len(digits) - 2))

    def is_value(self, value: float) -> bool:
        """Whether ``value`` is written so when it is rounded."""
        signed = self.text[0] in "+−-"
        known, here = (value, self.value) if signed else (abs(value), abs(self.value))
        return abs(known - here) <= self.half * (1 + 1e-6) + 1e-12

    def __str__(self) -> str:
        return f"{self.text} {self.unit}".strip()


def figures(text: str) -> Iterator[Figure]:
    """The figures of ``text``, in order; goals and predictions are none."""
    for pattern in (FIGURE, NAMED):
        for found in pattern.finditer(text):
            if not WANTED.search(text[: found.start()]):
                yield from _listed(text, found, named=pattern is NAMED)


def _listed(text: str, found: re.Match[str], *, named: bool) -> list[Figure]:
    """The numbers of ``1.5, 2 ms and 90 %``: each has its own unit, or the one that comes next."""
    made: list[Figure] = []
    unit = ""
    # The whole text is searched, since a unit is told by what stands behind it, too.
    numbers = takewhile(lambda n: n.start() < found.end(), LISTED.finditer(text, found.start()))
    for number in reversed(list(numbers)):
        unit = "" if named else number["unit"] or unit
        made.insert(0, Figure(number["number"], unit, number.start()))
    return made


def cells(text: str, unit: str) -> Iterator[Figure]:
    """The numbers of a table's cell that has ``unit`` from its head."""
    for number in BARE.finditer(text):
        yield Figure(number[0], unit, number.start())


@dataclass(frozen=True)
class Known:
    """The numbers of one or more records: ``(where, path, value)``."""

    leaves: tuple[tuple[str, Path, float], ...]

    def has(self, figure: Figure) -> bool:
        """Whether ``figure`` is one of them, in its unit, or a ratio of two named alike."""
        return any(figure.is_value(value) for value, _ in self.candidates(figure.unit))

    def nearest(self, figure: Figure) -> str:
        """The value that comes nearest, and where it lies."""
        found = min(
            self.candidates(figure.unit), key=lambda c: abs(c[0] - figure.value), default=None
        )
        return f"{found[0]:.6g} at {found[1]}" if found else "no number at all"

    def candidates(self, unit: str) -> Iterator[tuple[float, str]]:
        """What a figure of ``unit`` could have been drawn from."""
        for record, path, value in self.leaves:
            for scale in scales(unit, path):
                yield value * scale, f"{record}#{spelled(path)}"
        if not unit:
            yield from self.sums
        if unit in (*TIMES_OVER, "%", "percent"):
            yield from ((self._as(unit, ratio), where) for ratio, where in self.ratios)
        if unit in ("%", "percent"):
            yield from (((ratio - 1) * 100, f"{where} - 1") for ratio, where in self.ratios)

    @staticmethod
    def _as(unit: str, ratio: float) -> float:
        return ratio if unit in TIMES_OVER else ratio * 100

    @cached_property
    def sums(self) -> list[tuple[float, str]]:
        """Numbers at one place of several records, added: what was counted in parts."""
        found: dict[Path, float] = defaultdict(float)
        for _, path, value in self.leaves:
            found[path] += value if path[0] == "summary" else 0
        several = len({record for record, _, _ in self.leaves}) > 1
        return [(value, f"the sum at {spelled(path)}") for path, value in found.items() if several]

    @cached_property
    def ratios(self) -> tuple[tuple[float, str], ...]:
        """Ratios of two values of one name whose places differ in one step, spreads left out."""
        groups: dict[tuple[str, Path], list[tuple[Path, float]]] = defaultdict(list)
        for record, path, value in self.leaves:
            if value and path[0] == "summary" and not any(map(UNDIVIDED.search, path)):
                for hole in range(1, len(path) - 1):
                    alike = (*path[:hole], "*", *path[hole + 1 :])
                    groups[record, alike].append((path, value))
        return tuple(_pairs(groups.items()))


def _pairs(
    groups: Iterable[tuple[tuple[str, Path], list[tuple[Path, float]]]],
) -> Iterator[tuple[float, str]]:
    made = 0
    for (record, _), members in groups:
        for path, value in members:
            for other, divisor in members:
                if path != other:
                    yield value / divisor, f"{record}#{spelled(path)} ÷ {spelled(other)}"
                    made += 1
                    if made >= PAIRS:
                        return


def scales(unit: str, path: Path) -> tuple[float, ...]:
    """What a value at ``path`` is multiplied with to be one of ``unit``: its name tells its own.

    Empty where the name tells of something else: bytes are no seconds.
    """
    name = " ".join(path).lower()
    if "megabytes" in name:
        return tuple(1e6 * scale for scale in BYTES.get(unit, ())[:3])
    if re.search(r"bytes|\bsize\b|memory", name):
        return BYTES.get(unit, ())
    if unit in SECONDS:
        own = 1e-3 if re.search(r"(^|[_ ])(ms|milliseconds)\b", name) else 1.0
        return () if OTHERWISE.search(name) else (own * SECONDS[unit],)
    if unit in SHARES:
        told = re.search(r"\bpercent\b|[_ ]points\b|_pct\b", name)
        return () if MEASURES.search(path[-1].lower()) else (1.0 if told else SHARES[unit],)
    return () if unit in BYTES and unit else (1.0,)
