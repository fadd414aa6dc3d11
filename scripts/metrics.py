"""A page of Prometheus' text format, as numbers: vLLM's metrics and the gateway's."""

from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Point:
    """One line: its name as it stands there (``…_total``), labels, value."""

    name: str
    labels: dict[str, str]
    value: float


def read(text: str) -> list[Point]:
    """Every line of a page."""
    families = text_string_to_metric_families(text)
    return [Point(p.name, p.labels, p.value) for family in families for p in family.samples]


def summed(points: Iterable[Point]) -> dict[str, float]:
    """Each name's value, summed over its labels."""
    found: dict[str, float] = {}
    for point in points:
        found[point.name] = found.get(point.name, 0.0) + point.value
    return found


def by_label(points: Iterable[Point], name: str, label: str) -> dict[str, float]:
    """One name's values by those of a label, summed over the others."""
    found: dict[str, float] = {}
    for point in points:
        if point.name == name:
            key = point.labels[label]
            found[key] = found.get(key, 0.0) + point.value
    return found
