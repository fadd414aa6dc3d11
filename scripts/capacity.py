"""How many replicas, at what cost, for which load: on paper, with numbers that were measured here.

    python -m scripts.capacity RECORD --variant seq8-best --first 0.5 --gap 0.05 --price 1.01

RECORD is one of `make eval-latency` with closed loops. What the figures assume stands in
docs/fleet.md; `--check` holds them against the record's own open loops.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from experiments.record import Record
from scripts.fleet.curve import Curve, NoCurve, Shape, numbers, read
from scripts.fleet.line import line
from scripts.fleet.size import Growth, Promise, Size, size
from scripts.options import amount

EXAMPLES = """examples:
  python -m scripts.capacity experiments/seq8-best/measurements/latency_2026-11-21T213452Z.json
  … --rate 40 --prompt 800 --output 200 --first 1 --gap 0.05 --share 0.99
  … --growth 1 --start 75            (a start that compiles, beside one that is baked)
  … --gateway experiments/measurements/gateway_2026-11-22T171824Z.json
  … --check                          (formula and simulation beside what was measured)
"""
RATES = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
# Long enough that a mean of simulated times moves in its third digit.
SIMULATED_SECONDS = 2000.0


class NotRead(ValueError):
    """A record that cannot be used; the text says which, and why."""


@dataclass(frozen=True)
class Gateway:
    """What one core of the gateway bears: events of streams a second."""

    events: float


@dataclass(frozen=True)
class Wanted:
    """What a fleet is to keep, and what is told of it; ``price`` is a replica's, an hour."""

    promise: Promise
    growth: Growth
    gateway: Gateway | None = None
    price: float = 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when it was told, 1 when a record cannot be used or no replica keeps it."""
    asked = parser().parse_args(arguments)
    try:
        record = load(asked.record)
        curve = curve_of(record, asked.variant)
        gateway = gateway_of(asked.gateway) if asked.gateway else None
    except NoCurve as error:
        print(f"{asked.record}: {error}", file=sys.stderr)
        return 1
    except NotRead as error:
        print(error, file=sys.stderr)
        return 1
    if asked.check:
        return tell(checked(record, curve), asked.json)
    shape = Shape(asked.prompt or curve.shape.prompt, asked.output or curve.shape.output)
    curve = curve.of(shape)
    promise = Promise(asked.first, asked.gap, asked.share)
    growth = Growth(asked.growth, asked.start, asked.notice)
    rates = [asked.rate] if asked.rate else RATES
    rows = fleets(curve, Wanted(promise, growth, gateway, asked.price), rates)
    if not rows:
        print(
            f"no replica of {curve.variant} keeps it, however little it is given: alone, a request "
            f"has its first token after {curve.first(1):.3f} s and one each {curve.gap(1):.4f} s; "
            "promise more seconds, a smaller share, or take another variant",
            file=sys.stderr,
        )
        return 1
    return tell(rows, asked.json)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.capacity",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("record", type=Path, help="a record of `make eval-latency`")
    top.add_argument("--variant", default="", help="one that it measured (its candidate)")
    top.add_argument("--rate", type=amount, help="requests a second (a table of several)")
    top.add_argument("--prompt", type=amount, help="mean tokens of a prompt (the record's)")
    top.add_argument("--output", type=amount, help="mean tokens of an answer (the record's)")
    top.add_argument(
        "--first", type=amount, default=Promise.first, help="seconds to the first token (0.5)"
    )
    top.add_argument(
        "--gap", type=amount, default=Promise.gap, help="seconds between tokens (0.05)"
    )
    top.add_argument(
        "--share", type=share, default=Promise.share, help="of requests that have it (0.95)"
    )
    top.add_argument(
        "--growth",
        type=at_least_none,
        default=Growth.share,
        help="of the load, a minute (1: doubled)",
    )
    top.add_argument(
        "--start",
        type=amount,
        default=Growth.start_seconds,
        help="seconds of a replica's start (10)",
    )
    top.add_argument(
        "--notice", type=amount, default=Growth.notice_seconds, help="until one is asked for (15)"
    )
    top.add_argument("--price", type=amount, default=0.0, help="of a replica, an hour")
    top.add_argument("--gateway", type=Path, help="a record of `make bench-gateway`")
    top.add_argument("--check", action="store_true", help="beside the record's own open loops")
    top.add_argument("--json", action="store_true", help="one JSON object")
    return top


def share(text: str) -> float:
    """A number between 0 and 1.

    :raises argparse.ArgumentTypeError: it is none.
    """
    number = amount(text)
    if number >= 1:
        raise argparse.ArgumentTypeError(f"expected a share below 1, got {text}")
    return number


def at_least_none(text: str) -> float:
    """0, or a number above it that has an end.

    :raises argparse.ArgumentTypeError: it is neither.
    """
    return 0.0 if text == "0" else amount(text)


def load(path: Path) -> Record:
    """A record from its file.

    :raises NotRead: it is not there, or none.
    """
    try:
        return Record.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise NotRead(f"{path}: {error}") from error


def gateway_of(path: Path) -> Gateway:
    """What a core of the gateway bears, as a record of `make bench-gateway` has it: the most of its
    streams.

    :raises NotRead: as ``load``; or it holds no cells of ours.
    """
    record = load(path)
    events = 0.0
    for cell in record.summary.get("cells", {}).values():
        found = cell.get("systems", {}).get("preheat")
        if not found or not found.get("per_core_second"):
            continue
        each = found["per_core_second"]["point"]
        events = max(events, each * found["chunks"] / max(found["whole"], 1))
    if not events:
        raise NotRead(f"{path}: no cells of streams through the gateway")
    return Gateway(events)


def curve_of(record: Record, variant: str = "") -> Curve:
    """The curve of a variant, or of the one that the record is about.

    :raises NoCurve: it was not measured there.
    """
    return read(record.model_dump(), variant or str(record.summary.get("candidate", "")))


def fleets(curve: Curve, wanted: Wanted, rates: Sequence[float]) -> list[dict[str, Any]]:
    """A line for each rate at which the promise can be kept."""
    found = [size(curve, wanted.promise, wanted.growth, rate) for rate in rates]
    return [row(one, wanted) for one in found if one]


def row(found: Size, wanted: Wanted) -> dict[str, Any]:
    """One line of the table."""
    each, gateway, price = found.each, wanted.gateway, wanted.price
    told: dict[str, Any] = {
        "requests_per_s": found.arrivals,
        "replicas": found.replicas,
        "headroom": found.headroom,
        "busy": round(1 - each.shares[0], 3),
        "in_flight_each": round(each.in_flight, 2),
        "most_each_per_s": round(found.most, 2),
        "mean_s": round(each.seconds, 3),
        "tokens_per_s": round(found.arrivals * each.curve.shape.output),
        "growth_borne": round(wanted.growth.factor, 3),
    }
    if gateway:
        streamed = found.arrivals * each.curve.shape.output / gateway.events
        told["gateway_cores_each"] = round(streamed / found.whole, 4)
        told["one_router_cores"] = round(streamed, 2)
    if price:
        told["cost_per_hour"] = round(found.whole * price, 2)
        tokens = found.arrivals * each.curve.shape.output * 3600
        told["cost_per_million_tokens"] = round(found.whole * price / tokens * 1e6, 4)
    return told


def checked(record: Record, curve: Curve) -> list[dict[str, Any]]:
    """Formula and simulation beside each open loop that the record has of the variant."""
    from scripts.fleet.simulation import Load, simulate

    samples = [one for one in record.samples if one["variant"] == curve.variant]
    tokens = [n for one in samples for n in numbers(one["tokens"])]
    rows: list[dict[str, Any]] = []
    for cell in sorted({one["cell"] for one in samples if one["cell"].startswith("r")}):
        rate = float(cell[1:])
        asked = [one for one in samples if one["cell"] == cell]
        wholes = [n / 1000 for one in asked for n in numbers(one["latency_ms"])]
        firsts = [n / 1000 for one in asked for n in numbers(one["ttft_ms"])]
        found, ran = line(curve, rate), simulate(curve, Load(rate, SIMULATED_SECONDS, tokens))
        rows.append(
            {
                "requests_per_s": rate,
                "requests": len(wholes),
                "failed": sum(len(one["latency_ms"].split()) for one in asked) - len(wholes),
                "measured_s": round(statistics.mean(wholes), 3) if wholes else None,
                "formula_s": round(found.seconds, 3) if found else None,
                "simulated_s": round(statistics.mean(one.ended - one.came for one in ran), 3),
                "measured_first_s": round(statistics.mean(firsts), 4) if firsts else None,
                "simulated_first_s": round(statistics.mean(one.first - one.came for one in ran), 4),
            }
        )
    return rows


def tell(rows: Sequence[dict[str, Any]], as_json: bool) -> int:
    """The rows, for a person or a program."""
    if as_json:
        print(json.dumps(rows, indent=1))
        return 0
    if not rows:
        print("the record has no open loop of this variant: RATES of `make eval-latency`")
        return 1
    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="right")
    for each in rows:
        table.add_row(*(("-" if value is None else f"{value:g}") for value in each.values()))
    Console(width=200).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
