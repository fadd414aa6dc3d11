"""How one replica slows down with requests in flight, as a record of `make eval-latency` has it.

In a closed loop of c clients c requests are always in flight, so the times of its requests are
those of a replica in state c. Between two measured states times are interpolated, beyond the last
they grow in proportion: the engine has no more places, and what comes waits.

Requests of other lengths are assumed to take, to their first token, in proportion to the tokens
they bring, and afterwards the same time for each token.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scripts.latency.samples import NOTHING


class NoCurve(ValueError):
    """The record holds no closed loop of the variant; the text says what was looked for."""


@dataclass(frozen=True)
class Shape:
    """Mean tokens of a request: what it brings, what it is answered with."""

    prompt: float
    output: float


@dataclass(frozen=True)
class State:
    """A replica with ``at_once`` requests in flight: mean seconds to the first token, and between
    two tokens of one request; ``firsts`` are the single times to the first token, ascending.
    """

    at_once: int
    first: float
    gap: float
    firsts: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """The measured states, ascending, for requests of ``shape``."""

    variant: str
    states: tuple[State, ...]
    shape: Shape

    @property
    def places(self) -> int:
        """The most requests in flight that were measured: one more waits."""
        return self.states[-1].at_once

    def first(self, at_once: int) -> float:
        """Mean seconds to the first token of a request in state ``at_once``."""
        return self._between(at_once, [state.first for state in self.states])

    def gap(self, at_once: int) -> float:
        """Mean seconds between two tokens of a request in state ``at_once``."""
        return self._between(at_once, [state.gap for state in self.states])

    def seconds(self, at_once: int) -> float:
        """Mean seconds that a request takes in state ``at_once``."""
        return self.first(at_once) + self.gap(at_once) * max(self.shape.output - 1, 0)

    def rate(self, at_once: int) -> float:
        """Requests a second that leave in state ``at_once``, by Little's law."""
        n = min(at_once, self.places)
        return n / self.seconds(n)

    def firsts(self, at_once: int) -> tuple[float, ...]:
        """Single times to the first token, of the nearest measured state that is not below."""
        at = bisect_left([state.at_once for state in self.states], min(at_once, self.places))
        return self.states[at].firsts

    def of(self, shape: Shape) -> "Curve":
        """The same replica with requests of other lengths."""
        more = shape.prompt / self.shape.prompt
        states = tuple(
            State(s.at_once, s.first * more, s.gap, tuple(one * more for one in s.firsts))
            for s in self.states
        )
        return Curve(self.variant, states, shape)

    def _between(self, at_once: int, values: list[float]) -> float:
        known = [state.at_once for state in self.states]
        n = min(at_once, self.places)
        at = bisect_left(known, n)
        if known[at] == n or at == 0:
            return values[at]
        share = (n - known[at - 1]) / (known[at] - known[at - 1])
        return values[at - 1] + share * (values[at] - values[at - 1])


def read(record: Mapping[str, Any], variant: str) -> Curve:
    """The curve of one of the record's variants, over all its rounds.

    :raises NoCurve: it was not measured there, or in no closed loop.
    """
    loops: dict[int, list[Mapping[str, Any]]] = {}
    for sample in record.get("samples", ()):
        cell = str(sample.get("cell", ""))
        if sample.get("variant") == variant and cell.startswith("c") and numbers(sample["ttft_ms"]):
            loops.setdefault(int(cell[1:]), []).append(sample)
    if not loops:
        raise NoCurve(f"no closed loop of {variant}: expected samples of cells c1, c2, …")
    asked = [sample["engine"] for samples in loops.values() for sample in samples]
    requests = sum(len(numbers(s["ttft_ms"])) for samples in loops.values() for s in samples)
    shape = Shape(
        sum(one["prompt_tokens"] for one in asked) / requests,
        sum(one["generation_tokens"] for one in asked) / requests,
    )
    return Curve(variant, tuple(_state(n, loops[n]) for n in sorted(loops)), shape)


def numbers(text: str) -> list[float]:
    """A column of a sample: one number a request, less those that failed."""
    return [float(word) for word in text.split() if word != NOTHING]


def _state(at_once: int, samples: list[Mapping[str, Any]]) -> State:
    firsts = [one for s in samples for one in numbers(s["ttft_ms"])]
    wholes = [one for s in samples for one in numbers(s["latency_ms"])]
    tokens = [one for s in samples for one in numbers(s["tokens"])]
    decoding = sum(wholes) - sum(firsts)
    return State(
        at_once,
        sum(firsts) / len(firsts) / 1000,
        decoding / max(sum(tokens) - len(tokens), 1) / 1000,
        tuple(sorted(one / 1000 for one in firsts)),
    )
