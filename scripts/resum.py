"""Records summed up again from their own samples: what they say must follow from what they keep.

Pure. Only figures that both the record and today's code have are compared, ends of intervals left
out: how they are drawn may change, a mean of the same samples may not.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.pointers import numbers, spelled
from experiments.record import Record

# Samples are kept to six digits, summaries are rounded to three or more.
RELATIVE, ABSOLUTE = 2e-3, 2e-5
ENDS = {"low", "high", "interval", "change_low", "change_high"}


def differences(record: Record) -> Iterator[str]:
    """Each figure of ``record`` that its samples do not give, in words; nothing of other kinds."""
    again = AGAIN.get(record.kind)
    if again is None:
        return
    try:
        made = dict(numbers(again(record)))
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        yield f"its samples cannot be summed up: {type(error).__name__}: {error}"
        return
    for path, said in numbers(record.summary):
        if path in made and not ENDS & {*path} and not _alike(said, made[path]):
            yield f"{spelled(path)} says {said:.6g}, its samples give {made[path]:.6g}"


def _alike(one: float, other: float) -> bool:
    return abs(one - other) <= max(ABSOLUTE, RELATIVE * abs(one))


def _latency(record: Record) -> dict[str, Any]:
    from scripts.latency.results import summary

    said = record.summary
    return summary(
        record.samples, said["reference"], said["candidate"], int(record.parameters["seed"])
    )


def _sweep(record: Record) -> dict[str, Any]:
    """Nothing of a sweep of one engine after the other, which is no longer made."""
    if any("cell" not in one for one in record.samples):
        return {}
    from scripts.mtp.sweep import summary

    return summary(record.samples, int(record.parameters["seed"]))


def _quality(record: Record) -> dict[str, Any]:
    from scripts.quality.divergence import intervals, totals

    kept = {one["texts"]: one for one in record.samples if "texts" in one}
    held, drawn = _texts(kept["held out"]), _texts(kept["drawn from the reference"])
    figures = {name: one.describe() for name, one in intervals(held, drawn).items()}
    tasks = {one["task"]: _task(one) for one in record.samples if "task" in one}
    return {"texts": totals(held) | figures, "drawn": totals(drawn), "tasks": tasks}


def _texts(kept: Mapping[str, Any]) -> list[Any]:
    from dataclasses import fields

    from scripts.quality.divergence import Sums

    names = [field.name for field in fields(Sums)]
    return [Sums(*row) for row in zip(*(kept[name] for name in names), strict=True)]


def _task(kept: Mapping[str, Any]) -> dict[str, Any]:
    rates = {side: _rate(kept[side]) for side in ("reference", "variant")}
    change = rates["variant"] - rates["reference"]
    points = {**rates, "difference": change}
    return {name: {"point": value} for name, value in points.items()}


def _rate(digits: Sequence[str]) -> float:
    return sum(digit == "1" for digit in digits) / len(digits)


def _quantize(record: Record) -> dict[str, Any]:
    from scripts.measure_quantize import summary

    return summary(record.samples)


def _thoughts(record: Record) -> dict[str, Any]:
    from scripts.thoughts.counting import summary

    return summary(record.samples)


def _parity(record: Record) -> dict[str, Any]:
    from scripts.mtp.parity import summed

    return {"comparisons": summed(record.summary["comparisons"], record.samples)}


def _gateway(record: Record) -> dict[str, Any]:
    from scripts.gateway.figures import summary

    return summary(record.samples, record.parameters["cells"])


def _gateway_parts(record: Record) -> dict[str, Any]:
    from scripts.gateway.parts import summary

    return summary(record.samples)


def _losses(record: Record) -> dict[str, Any]:
    from scripts.measure_losses import summed_up

    return summed_up(record.samples)


def _routing(record: Record) -> dict[str, Any]:
    from scripts.measure_routing import summed_up

    return summed_up(record.samples)


AGAIN = {
    "losses-kubernetes": _losses,
    "losses-ray": _losses,
    "routing": _routing,
    "gateway": _gateway,
    "gateway-parts": _gateway_parts,
    "latency": _latency,
    "quality": _quality,
    "k-sweep": _sweep,
    "quantize": _quantize,
    "thoughts": _thoughts,
    "parity": _parity,
}
