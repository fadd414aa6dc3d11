"""Measures how many drafted tokens a variant's engine accepts, on held-out prompts, greedily.

The figures are vLLM's own counters, read before and after each prompt. Mean acceptance length is
tokens per verification step: 1 + accepted drafts / steps.
"""

import argparse
import hashlib
import json
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import track

from experiments.record import Record, add, now, this_machine
from scripts.served import NotServed, Served, served
from serve.settings import REPOSITORY

# Characters of a plain text that are given; the engine goes on from there.
BEGINNING = 300
HELD_OUT = REPOSITORY / "weights" / "tiny" / "heldout.jsonl"
EXAMPLES = """examples:
  python -m scripts.measure_acceptance seq8-best
  python -m scripts.measure_acceptance seq8-best --prompts my.jsonl --max-tokens 256

PROMPTS holds one JSON object a line; its "prompt" is completed as it stands. A line without one
is completed from the beginning of its "text", or passed over when it has neither.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when a record was added, 1 when it could not be measured, 2 usage."""
    parsed = parser().parse_args(arguments)
    try:
        requests = list(read_requests(parsed.prompts))
    except (OSError, ValueError) as error:
        print(f"{parsed.prompts}: {error}", file=sys.stderr)
        return 2
    if not requests:
        print(f"{parsed.prompts}: no line with a prompt or text", file=sys.stderr)
        return 2
    settings = {"VARIANT": parsed.variant, "MODEL": parsed.model, "TARGET": parsed.target}
    made, machine = now(), this_machine()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="preheat-") as folder,
            served(settings, Path(folder)) as running,
        ):
            variant = json.loads(running.get("/variant"))
            if "num_speculative_tokens" not in variant["levers"]:
                print(f"variant {parsed.variant} drafts nothing", file=sys.stderr)
                return 2
            samples = [sample(running, request, parsed.max_tokens) for request in watched(requests)]
    except (NotServed, urllib.error.URLError) as error:
        print(f"not measured: {error}", file=sys.stderr)
        return 1
    record = Record(
        kind="acceptance",
        made=made,
        command=["python", "-m", "scripts.measure_acceptance", *sys.argv[1:]],
        machine=machine,
        variant=variant,
        parameters={
            "prompts": parsed.prompts.name,
            "prompts_sha256": hashlib.sha256(parsed.prompts.read_bytes()).hexdigest(),
            "max_tokens": parsed.max_tokens,
            "temperature": 0,
            "repetition_penalty": 1.0,
            "concurrency": 1,
        },
        summary=summary(samples),
        samples=samples,
    )
    path = add(record, REPOSITORY / "experiments" / parsed.variant / "measurements")
    print(json.dumps(record.summary, indent=1))
    print(f"wrote {path.relative_to(REPOSITORY)}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.measure_acceptance",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("variant", help="a variant that speculates")
    top.add_argument("--model", default="", help="name or checkpoint folder (the target's own)")
    top.add_argument("--target", default="", help="cpu, a10g, … (detected)")
    top.add_argument("--prompts", type=Path, default=HELD_OUT, help="JSON lines (held-out set)")
    top.add_argument("--max-tokens", type=int, default=128, help="tokens a prompt (128)")
    return top


def read_requests(path: Path) -> Iterator[dict[str, Any]]:
    """Each line's request, with what it is for kept beside it.

    :raises ValueError: a line that is no JSON object.
    """
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        item = json.loads(line)
        if not isinstance(item, dict):
            raise ValueError(f"line {number}: expected a JSON object")
        if prompt := item.get("prompt") or item.get("text", "")[:BEGINNING]:
            group = str(item.get("source", "")).partition("/")[0]
            yield {"source": item.get("source", ""), "group": group, "prompt": prompt}


def sample(running: Served, item: dict[str, Any], max_tokens: int) -> dict[str, Any]:
    """One prompt, alone on the engine: what its generation added to vLLM's counters."""
    body = {
        "prompt": item["prompt"],
        "model": json.loads(running.get("/v1/models"))["data"][0]["id"],
        "max_tokens": max_tokens,
        "temperature": 0,
        "repetition_penalty": 1.0,
    }
    before = counters(running)
    request = urllib.request.Request(  # noqa: S310 - our own gateway
        running.url + "/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:  # noqa: S310
        tokens = json.load(answer)["usage"]["completion_tokens"]
    after = counters(running)
    grown = {name: int(after[name] - before.get(name, 0)) for name in after}
    return {
        "source": item.get("source", ""),
        "group": item["group"],
        "completion_tokens": tokens,
        "steps": grown.pop("drafts", 0),
        "drafted": grown.pop("draft_tokens", 0),
        "accepted": grown.pop("accepted_tokens", 0),
        "accepted_at": [grown[name] for name in sorted(grown)],
    }


def counters(running: Served) -> dict[str, float]:
    """The engine's ``spec_decode`` counters; acceptances per position under ``at 0``, ``at 1``."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(running.get("/metrics").decode()):
        for point in family.samples:
            name = point.name.removeprefix("vllm:spec_decode_num_").removesuffix("_total")
            if name in ("drafts", "draft_tokens", "accepted_tokens"):
                found[name] = point.value
            elif name == "accepted_tokens_per_pos":
                found[f"at {point.labels['position']}"] = point.value
    return found


def summary(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Totals over all samples, and apart for each group of sources."""
    groups = sorted({item["group"] for item in samples})
    return {"all": totals(samples)} | {
        group: totals([item for item in samples if item["group"] == group]) for group in groups
    }


def totals(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean acceptance length, and the rate at which each drafted position was accepted."""
    steps = sum(item["steps"] for item in samples)
    positions = zip(*(item["accepted_at"] for item in samples), strict=True)
    return {
        "prompts": len(samples),
        "completion_tokens": sum(item["completion_tokens"] for item in samples),
        "steps": steps,
        "mean_acceptance_length": round(1 + sum(item["accepted"] for item in samples) / steps, 3)
        if steps
        else None,
        "acceptance_rate_at": [round(sum(p) / steps, 3) for p in positions] if steps else [],
    }


def watched(requests: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The requests, with a bar on standard error."""
    return iter(track(requests, "measuring", console=Console(stderr=True)))


if __name__ == "__main__":
    sys.exit(main())
