"""What samples say: durations of each system, what it adds to direct access, and the goals.

Pure. At a rate, durations of all rounds are taken together, so that the 99 % point is that of all
requests; its interval is a bootstrap over rounds, which are drawn whole. A difference is one of
quantiles: what is added at the 99 % point is no request's own. In a closed loop nothing is said to
be added, since each system is asked as much as it takes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal

import numpy as np

from scripts.gateway.systems import DIRECT, OURS
from scripts.gateway.tally import QUANTILES, Tally, read
from scripts.intervals import Floats, Interval, bootstrap

# Of fewer rounds a bootstrap has hardly any width.
LEAST_ROUNDS = 6
PEER = "litellm"
TIMES_PEER = 10.0
# Of fewer clients a closed loop waits for them, and asks nothing of a core.
LEAST_CLIENTS = 8
Finding = Literal["met", "missed", "undecided"]
Samples = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Goal:
    """A bound on a figure, and whether its interval lies within (met), beyond or across.

    ``sign`` is how the bound is meant: at most, at least, or off by no more, either way.
    """

    cell: str
    what: str
    sign: Literal["≤", "≥", "±"]
    bound: float
    point: float
    low: float
    high: float
    finding: Finding


def summary(samples: Samples, loads: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Of every cell, in the order of ``loads``, and system, and of the goals: as JSON."""
    found = {
        name: {"load": load} | cell([one for one in samples if one["cell"] == name])
        for name, load in loads.items()
    }
    return {"cells": found, "goals": [asdict(goal) for goal in goals(found)]}


def cell(samples: Samples) -> dict[str, Any]:
    """Of one cell: each system by its name, and how much of a core each takes beside the others."""
    systems = sorted({one["system"] for one in samples})
    by_system = {name: of(samples, name) for name in systems}
    direct = by_system.get(DIRECT)
    found: dict[str, Any] = {"systems": {}}
    for name, taken in by_system.items():
        entry = counts(taken) | {"milliseconds": durations(taken)}
        if direct and name != DIRECT and (more := added(taken, direct)):
            entry["added_ms"] = more
        found["systems"][name] = entry
    ours, peer = by_system.get(OURS), by_system.get(PEER)
    if ours and peer and (times := per_core_times(ours, peer)):
        found["per_core_times_litellm"] = times.describe()
    return found


def of(samples: Samples, system: str) -> Samples:
    """One system's, by round."""
    taken = [one for one in samples if one["system"] == system]
    return sorted(taken, key=lambda one: int(one["round"]))


def counts(taken: Samples) -> dict[str, Any]:
    """What became of all requests, and what they cost."""
    failed: dict[str, int] = {}
    for one in taken:
        for kind, count in one["failed"].items():
            failed[kind] = failed.get(kind, 0) + count
    found: dict[str, Any] = {
        "rounds": len(taken),
        "sent": sum(one["sent"] for one in taken),
        "whole": sum(one["whole"] for one in taken),
        "failed": failed,
        "chunks": sum(one["chunks"] for one in taken),
        "per_second": rate(taken, "seconds"),
    }
    if all(one["cpu_s"] for one in taken):
        found["per_core_second"] = rate(taken, "cpu_s")
    return found


def rate(taken: Samples, seconds: str) -> dict[str, Any]:
    """Whole answers for each second of the wall or of a CPU, all rounds together."""
    columns = np.array([(one["whole"], one[seconds]) for one in taken], float)
    return bootstrap(columns, lambda sums: sums[:, 0] / sums[:, 1]).describe()


def per_core_times(ours: Samples, peer: Samples) -> Interval | None:
    """How many times the other's answers we give for a second of a core; None: it gave none.

    Rounds in which it gave none are left out, in its favour.
    """
    pairs = [
        (one["whole"], one["cpu_s"], other["whole"], other["cpu_s"])
        for one, other in zip(ours, peer, strict=True)
        if other["whole"] and other["cpu_s"]
    ]
    if not pairs or not all(pair[1] for pair in pairs):
        return None

    def times(sums: Floats) -> Floats:
        return (sums[:, 0] / sums[:, 1]) / (sums[:, 2] / sums[:, 3])

    return bootstrap(np.array(pairs, float), times)


def durations(taken: Samples) -> dict[str, dict[str, float]]:
    """Quantiles in milliseconds of each duration: of all rounds together where there are tallies,
    else the mean of the rounds' own.
    """
    if tallies := tallied(taken):
        pooled = {name: _pooled(each) for name, each in tallies.items()}
        return {
            name: {
                label: float(at(counts[None, :], micros, share)[0]) / 1_000
                for label, share in QUANTILES.items()
            }
            for name, (micros, counts) in pooled.items()
        }
    rows = [one["milliseconds"] for one in taken if one.get("milliseconds")]
    return {
        name: {label: fmean(row[name][label] for row in rows) for label in QUANTILES}
        for name in (rows[0] if rows else ())
    }


def tallied(taken: Samples) -> dict[str, list[Tally]]:
    """The tallies of each duration by round; a round in which nothing came has an empty one."""
    names = dict.fromkeys(name for one in taken for name in one.get("tallies", ()))
    return {name: [read(one["tallies"].get(name, "")) for one in taken] for name in names}


def _pooled(each: Sequence[Tally]) -> tuple[Floats, Floats]:
    """Durations in microseconds, rising, and how often each came in all."""
    micros = sorted({value for one in each for value in one})
    counts = [sum(one.get(value, 0) for one in each) for value in micros]
    return np.array(micros, float), np.array(counts, float)


def added(taken: Samples, direct: Samples) -> dict[str, dict[str, dict[str, Any]]]:
    """What each quantile of each duration is above direct access, in milliseconds."""
    own, base = tallied(taken), tallied(direct)
    return {
        name: {
            label: difference(own[name], base[name], share).describe()
            for label, share in QUANTILES.items()
        }
        for name in own
        if name in base
    }


def difference(own: Sequence[Tally], base: Sequence[Tally], share: float) -> Interval:
    """Between the quantiles of two systems, in milliseconds, rounds drawn whole and in pairs."""
    micros = np.array(sorted({value for one in (*own, *base) for value in one}), float)
    columns = np.array(
        [
            [one.get(int(value), 0) for one in pair for value in micros]
            for pair in zip(own, base, strict=True)
        ],
        float,
    )
    size = len(micros)

    def apart(sums: Floats) -> Floats:
        return (at(sums[:, :size], micros, share) - at(sums[:, size:], micros, share)) / 1_000

    return bootstrap(columns, apart)


def at(drawn: Floats, micros: Floats, share: float) -> Floats:
    """The quantile of each draw of counts; not a number where it drew none."""
    sofar = np.cumsum(drawn, axis=1)
    total = sofar[:, -1:]
    found: Floats = micros[np.argmax(sofar >= share * total, axis=1)]
    return np.where(total[:, 0] > 0, found, np.nan)


def goals(found: Mapping[str, Any]) -> Iterator[Goal]:
    """Every goal that a cell of ``found`` is about (issue 8)."""
    for name, entry in found.items():
        ours, load = entry["systems"].get(OURS), entry["load"]
        if not ours:
            continue
        if load["rate"]:
            yield from _added_goals(name, ours.get("added_ms", {}), stream=load["stream"])
        times = entry.get("per_core_times_litellm")
        if times and not load["stream"] and load["clients"] >= LEAST_CLIENTS:
            what = "answers a core-second, × litellm"
            yield judged(name, what, "≥", TIMES_PEER, times)
        lost = ours["sent"] - ours["whole"]
        yield Goal(name, "answers lost", "≤", 0, lost, lost, lost, "missed" if lost else "met")


def held(idle: Mapping[str, Any]) -> Goal:
    """Of streams that were held open: all at once, and each to its end."""
    least = min(idle["at_once"], idle["whole"])
    finding: Finding = "met" if least == idle["streams"] else "missed"
    return Goal(
        "idle streams", "held, ended whole", "≥", idle["streams"], least, least, least, finding
    )


def _added_goals(name: str, added_ms: Mapping[str, Any], *, stream: bool) -> Iterator[Goal]:
    waited = "first_chunk" if stream else "whole"
    told = waited.replace("_", " ")
    if waited in added_ms:
        yield judged(name, f"added to {told}, p50 ms", "≤", 0.5, added_ms[waited]["p50"])
        yield judged(name, f"added to {told}, p99 ms", "≤", 3.0, added_ms[waited]["p99"])
    if "gap" in added_ms:
        # Clumped chunks have smaller gaps: the engine's rhythm is lost either way.
        yield judged(name, "added to gaps, p50 ms", "±", 0.1, added_ms["gap"]["p50"])


def judged(
    name: str, what: str, sign: Literal["≤", "≥", "±"], bound: float, told: Mapping[str, Any]
) -> Goal:
    """A figure with its interval against a bound; undecided, too, of few rounds."""
    low, high = told["low"], told["high"]
    if sign == "≥":
        met, missed = low >= bound, high < bound
    else:
        least = -bound if sign == "±" else -np.inf
        met, missed = least <= low and high <= bound, low > bound or high < least
    finding: Finding = "met" if met else "missed" if missed else "undecided"
    if told["items"] < LEAST_ROUNDS:
        finding = "undecided"
    return Goal(name, what, sign, bound, told["point"], low, high, finding)
