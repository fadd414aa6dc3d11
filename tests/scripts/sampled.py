"""Records of every kind that the report reads, made up, in the shapes that the commands write."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from experiments.record import Machine, Record, add

MADE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MACHINE = Machine(
    processor="AMD <EPYC>", cores=2, memory_bytes=2**34, kernel="6.1", load_before=0.1
)
VARIANTS = {"awq": (1.4, 0.004), "seq8-best": (2.3, 0.0001), "seq8-stacked": (2.9, 0.031)}


MODEL = "tiny <img onerror=x>"
ASKED: dict[str, dict[str, Any]] = {
    "latency": {"reference": "baseline", "rounds": 3, "requests": None, "busy_ok": False},
    "quality": {"mode": "full", "reference": {"variant": "baseline", "model": {"name": MODEL}}},
}


def record(
    kind: str,
    variant: str,
    summary: dict[str, Any],
    later: int = 0,
    target: str = "cpu",
    **asked: Any,
) -> Record:
    told = {"variant": variant, "model": {"name": MODEL}, "target": {"name": target}}
    return Record(
        kind=kind,
        made=MADE + timedelta(minutes=later),
        command=["python", "-m", f"scripts.{kind}", variant],
        machine=MACHINE,
        variant=told,
        parameters=ASKED.get(kind, {}) | asked,
        summary=summary,
        samples=[],
    )


def latency(
    variant: str, speed: float, later: int = 0, target: str = "cpu", **asked: Any
) -> Record:
    cells = {f"c{n}": _cell(variant, speed * (0.8 + n / 40)) for n in (1, 2, 4, 8)}
    cells["r2"] = _cell(variant, speed)
    reference = asked.get("reference", "baseline")
    summary = {"reference": reference, "candidate": variant, "cells": cells, "texts": {}}
    return record("latency", variant, summary, later, target, **asked)


def _cell(variant: str, speed: float) -> dict[str, Any]:
    def figures(ms: float) -> dict[str, Any]:
        spread = {"mean": ms, "p50": ms * 0.9, "p90": ms * 1.5, "p99": ms * 2}
        return {"e2e_ms": spread, "ttft_ms": spread, "tokens_per_s": 1e5 / ms, "requests": 40}

    ratio = {"ratio": speed, "low": speed * 0.93, "high": speed * 1.08}
    return {
        "baseline": figures(900.0),
        variant: figures(900.0 / speed),
        "ratios": {"e2e_ms": {"mean": ratio, "p50": ratio}, "tokens_per_s": ratio},
        "texts": {"compared": 40, "equal": 39},
    }


def quality(variant: str, kl: float, later: int = 0, target: str = "cpu", **asked: Any) -> Record:
    def interval(point: float) -> dict[str, float]:
        return {"point": point, "low": point * 0.7, "high": point * 1.3, "items": 173}

    summary = {
        "verdict": "parity" if kl < 0.01 else "not at parity",
        "judged_on": "texts",
        "criteria": [
            {"criterion": "perplexity_change at most 0.01", "finding": "holds"},
            {"criterion": "kl at most 0.02", "finding": "holds"},
        ],
        "texts": {
            "perplexity_change": interval(kl / 3),
            "kl": interval(kl),
            "top1_agreement": interval(0.97),
        },
        "tasks": {"gsm8k": {k: interval(0.2) for k in ("reference", "variant", "difference")}},
    }
    return record("quality", variant, summary, later, target, **asked)


def sweep() -> Record:
    by_k = [
        {
            "k": k,
            "acceptance": {"mean_acceptance_length": 1 + 0.6 * k**0.7} if k else None,
            "concurrency": {
                c: {"tokens_per_second": 100 + 40 * k - 5 * k * k, "latency_p50": 0.5}
                for c in ("1", "8")
            },
        }
        for k in range(8)
    ]
    return record("k-sweep", "seq8-best", {"picked": 4, "rule": "the best", "by_k": by_k})


def sweep_beside(later: int = 1) -> Record:
    """Of engines side by side: intervals, and a K for each concurrency."""

    def ratio(k: int, clients: int) -> dict[str, float]:
        point = 1 + 0.1 * k / clients - 0.01 * k * k
        return {"ratio": point, "low": point - 0.05 * bool(k), "high": point + 0.05 * bool(k)}

    def length(k: int) -> dict[str, float]:
        point = 1 + 0.6 * k**0.7
        return {"mean_acceptance_length": point, "low": point - 0.1, "high": point + 0.1}

    by_k = [
        {
            "k": k,
            "acceptance": length(k) if k else None,
            "cells": {f"c{n}": {"ratio": ratio(k, n), "tokens_per_s": 99.5} for n in (1, 4, 8)},
        }
        for k in range(8)
    ]
    summary = {"picked": {"c1": 2, "c4": 0, "c8": 0}, "rule": "the least", "by_k": by_k}
    return record("k-sweep", "seq8-best", summary, later, rounds=6)


def acceptance() -> Record:
    group = {"prompts": 9, "mean_acceptance_length": 2.9, "acceptance_rate_at": [0.8, 0.6, 0.4]}
    return record("acceptance", "seq8-best", {"all": group, "chat": group})


def coldstart() -> Record:
    def start(seconds: float) -> dict[str, Any]:
        phases = {"imports": seconds * 0.4, "compile": seconds * 0.5}
        spread = {"median": seconds, "min": seconds, "max": seconds}
        return spread | {"phases_median": phases, "compiled": [2]}

    summary = {"stock cold": start(75.0), "baked": start(6.9), "ratios": {"a": 10.8}}
    return record("coldstart", "seq8-best", summary)


def rounding() -> Record:
    def recipe(bits: float) -> dict[str, float]:
        change = 0.3 / bits**2 if bits else 0.0
        return {
            "perplexity": 28.8 * (1 + change),
            "change": change,
            "bits_per_weight": bits,
            "relative_rms_error": 0.01,
        }

    return record("rounding", "", {"raw": recipe(0), "q8_0": recipe(8.5), "int4": recipe(4.5)})


def parity() -> Record:
    compared = {"verdict": "same", "prompts": 9, "different": 0, "near_ties": 0}
    soak = {"k": 5, "seconds": 60.0, "requests": 99, "sound": False, "said": "it died"}
    comparisons = {"bfloat16, 8 at once": compared | {"largest_gap": None}}
    summary = {"agreed": False, "comparisons": comparisons, "soak": [soak]}
    return record("parity", "seq8-best", summary)


def quantize() -> Record:
    def recipe(size: int, change: float) -> dict[str, float]:
        made = {"seconds": 3.1, "peak_mb": 500}
        made |= {"change_low": change - 0.001, "change_high": change + 0.001}
        return {"perplexity": 28.8 * (1 + change), "change": change, "bytes": size} | made

    beside = {"recipe": "rtn mlp g32", "point": -0.002, "low": -0.003, "high": -0.001, "items": 9}
    recipes: dict[str, dict[str, Any]] = {
        "bf16": recipe(15_000_000, 0.0),
        "rtn mlp g32": recipe(12_000_000, 0.005),
        "awq mlp g32": recipe(12_000_000, 0.003) | {"beside": beside},
        "awq mlp g32 by llm-compressor": recipe(12_000_000, 0.004),
        "awq linear g128 head": recipe(8_000_000, 0.02),
    }
    return record("quantize", "", recipes)


def vocab() -> Record:
    shares = {"held out": {"de": 0.98, "code": 0.995}, "other sources": {"de": 0.96}}
    growth = {"held out": {"de": 1.03, "code": 1.01}, "other sources": {"de": 1.08}}
    summary = {"tokens": 248_077, "size": 65_536, "coverage": shares, "growth": growth}
    return record("vocab_coverage", "", summary)


def everything(root: Path) -> None:
    """One record of each kind, and those of some variants, under ``root``."""
    made = [
        *(latency(name, speed) for name, (speed, _) in VARIANTS.items()),
        *(quality(name, kl) for name, (_, kl) in VARIANTS.items()),
        *(sweep(), acceptance(), coldstart(), parity(), quantize(), rounding(), vocab()),
        record("inspect", "", {"a": {"b": 1.5}}),
    ]
    for one in made:
        variant = one.variant["variant"]
        add(one, root / "experiments" / variant / "measurements")
