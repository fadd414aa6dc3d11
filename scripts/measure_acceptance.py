"""Measures how many drafted tokens a variant's engine accepts, on held-out prompts, greedily.

The figures are vLLM's own counters, read before and after each prompt. Mean acceptance length is
tokens per verification step: 1 + accepted drafts / steps. Intervals are over prompts, 95 %.

With `--head` two engines are measured on the same prompts: one that drafts with the checkpoint's
own head, and one with this head in its place. What they say must be the same text, for
a draft is only ever accepted where the model says so itself.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from bake.heads import swap
from experiments.record import Record, add, check_writable, folder_of, now, this_machine
from scripts.mtp.accepted import counters, difference, grown, totals
from scripts.mtp.asking import Ask, Failed, complete, served_name
from scripts.mtp.held_out import BEGINNING, HELD_OUT, read_asks
from scripts.mtp.levers import Chosen, choose
from scripts.mtp.prompts import PromptError
from scripts.options import add_axes
from scripts.served import NotServed, Served, served
from serve.cli import positive
from serve.errors import ServeError
from serve.settings import REPOSITORY

# Copies of a checkpoint with another head, one for each: vLLM's compile cache goes by the path.
SWAPPED = REPOSITORY / ".cache" / "heads"
EXAMPLES = f"""examples:
  python -m scripts.measure_acceptance seq8-best
  python -m scripts.measure_acceptance seq8-best --prompts my.jsonl --max-tokens 256
  python -m scripts.measure_acceptance seq8-best --head weights/heads/tiny.safetensors

PROMPTS holds one JSON object a line; its "prompt" is completed as it stands. A line without one
is completed from the beginning of its "text" ({BEGINNING} characters).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when it was measured, 1 when it could not be, 2 usage."""
    parsed = parser().parse_args(arguments)
    try:
        asks = read_asks(parsed.prompts, parsed.max_tokens, parsed.limit)
    except PromptError as error:
        print(f"--prompts: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"--prompts: {parsed.prompts}: {error.strerror}", file=sys.stderr)
        return 2
    try:
        chosen = choose(parsed.variant, parsed.model, parsed.target)
        if parsed.head and not parsed.head.is_file():
            print(f"--head: {parsed.head}: no such file", file=sys.stderr)
            return 2
        if not chosen.variant.speculative_method:
            print(f"variant {parsed.variant} drafts nothing", file=sys.stderr)
            return 2
        if parsed.record:
            check_writable(folder_of(parsed.variant))
        record = measured(parsed, chosen, asks)
        print(json.dumps(record.summary, indent=1) if parsed.json else report(record.summary))
        if parsed.record:
            path = add(record, folder_of(parsed.variant))
            print(f"wrote {path.relative_to(REPOSITORY)}", file=sys.stderr)
    except (ServeError, NotServed, Failed, OSError) as error:
        print(f"not measured: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, ServeError) else 1
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
    add_axes(top)
    top.add_argument("--head", type=Path, help="a head to measure beside the checkpoint's own")
    top.add_argument("--prompts", type=Path, default=HELD_OUT, help="JSON lines (held-out set)")
    top.add_argument("--limit", type=positive, default=0, help="prompts taken, evenly spread (all)")
    top.add_argument("--max-tokens", type=positive, default=128, help="tokens a prompt (128)")
    top.add_argument("--json", action="store_true", help="figures as JSON, not as a table")
    top.add_argument(
        "--record", action=argparse.BooleanOptionalAction, default=True, help="add a record (yes)"
    )
    return top


def measured(parsed: argparse.Namespace, chosen: Chosen, asks: Sequence[Ask]) -> Record:
    """Both engines, or the one, and the record of it.

    :raises ServeError: the head does not fit the checkpoint.
    :raises NotServed: an engine does not start.
    """
    made, machine = now(), this_machine()
    settings = {"VARIANT": parsed.variant, "MODEL": parsed.model, "TARGET": parsed.target}
    heads = {"own": settings}
    if parsed.head:
        folder = swapped(chosen, parsed.head)
        heads["new"] = settings | {"MODEL": str(folder)}
    samples: list[dict[str, Any]] = []
    variant: dict[str, Any] = {}
    for head, one in heads.items():
        with engine(one) as running:
            variant = variant or json.loads(running.get("/variant"))
            model = served_name(running)
            for ask in watched(asks, f"head: {head}"):
                samples.append({"head": head, **sample(running, model, ask)})
    return Record(
        kind="acceptance",
        made=made,
        command=["python", "-m", "scripts.measure_acceptance", *sys.argv[1:]],
        machine=machine,
        variant=variant,
        parameters=parameters(parsed),
        summary=summary(samples),
        samples=samples,
    )


def parameters(parsed: argparse.Namespace) -> dict[str, Any]:
    """What was asked for."""
    asked: dict[str, Any] = {
        "prompts": parsed.prompts.name,
        "prompts_sha256": sha256(parsed.prompts),
        "limit": parsed.limit,
        "max_tokens": parsed.max_tokens,
        "temperature": 0,
        "repetition_penalty": 1.0,
        "concurrency": 1,
        "interval": "95 %, bootstrap over prompts, 10,000 draws",
    }
    return asked | ({"head_sha256": sha256(parsed.head)} if parsed.head else {})


def swapped(chosen: Chosen, head: Path) -> Path:
    """A copy of the checkpoint with this head, made once.

    :raises ServeError: the head does not fit.
    """
    folder = SWAPPED / f"{chosen.model.name}-{sha256(head)[:12]}" / chosen.model.name
    if not folder.exists():
        swap(chosen.model.path, folder, head)
    return folder


@contextmanager
def engine(settings: dict[str, str]) -> Iterator[Served]:
    """A gateway that is gone at the end."""
    with (
        tempfile.TemporaryDirectory(prefix="preheat-") as folder,
        served(settings, Path(folder)) as running,
    ):
        yield running


def sample(running: Served, model: str, ask: Ask) -> dict[str, Any]:
    """One prompt, alone on the engine: what its generation added to vLLM's counters."""
    before = counters(running.get("/metrics").decode())
    said = complete(running, model, ask)
    after = counters(running.get("/metrics").decode())
    text = hashlib.sha256(repr(said.tokens).encode()).hexdigest()[:16]
    return {
        "source": ask.source,
        "group": ask.source.partition("/")[0],
        "completion_tokens": len(said.tokens),
        "tokens_sha256": text,
        **grown(before, after),
    }


def summary(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Totals over all samples, and apart for each group of sources; of the head that was given
    under `new`, and what it changes under `new_less_own`.
    """
    own = [item for item in samples if item.get("head", "own") == "own"]
    new = [item for item in samples if item.get("head") == "new"]
    told = by_group(own, totals)
    if new:
        told["new"] = by_group(new, totals)
        pairs = list(zip(own, new, strict=True))
        both = [(a, b) for a, b in pairs if a["steps"] and b["steps"]]
        if both:
            told["new_less_own"] = difference([a for a, _ in both], [b for _, b in both])
        told["same_text_of"] = len(pairs)
        told["same_text"] = sum(a["tokens_sha256"] == b["tokens_sha256"] for a, b in pairs)
    return told


def by_group(
    samples: Sequence[dict[str, Any]], figure: Callable[[Sequence[dict[str, Any]]], Any]
) -> dict[str, Any]:
    """``figure`` of all, and of each group."""
    groups = sorted({item["group"] for item in samples})
    return {"all": figure(samples)} | {
        group: figure([item for item in samples if item["group"] == group]) for group in groups
    }


def report(told: dict[str, Any]) -> str:
    """For a person: what all prompts together say."""
    lines = [_line("own head", told["all"])]
    if "new" in told:
        lines.append(_line("new head", told["new"]["all"]))
        if less := told.get("new_less_own"):
            low, high = less["mean_acceptance_length_interval"]
            mean = less["mean_acceptance_length"]
            lines.append(f"new less own: {mean:+.3f} [{low:+.3f}, {high:+.3f}] tokens a step")
        lines.append(f"same text: {told['same_text']} of {told['same_text_of']} prompts")
    return "\n".join(lines)


def _line(name: str, figures: dict[str, Any]) -> str:
    if not figures["steps"]:
        return f"{name}: drafted nothing: every answer ended with its first token"
    low, high = figures["mean_acceptance_length_interval"]
    rates = " ".join(f"{rate:.3f}" for rate in figures["acceptance_rate_at"])
    mean = figures["mean_acceptance_length"]
    return f"{name}: {mean:.3f} [{low:.3f}, {high:.3f}] tokens a step; accepted at {rates}"


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def watched(asks: Sequence[Ask], what: str) -> Iterator[Ask]:
    """The requests, with a bar on standard error."""
    return iter(track(asks, what, console=Console(stderr=True)))


if __name__ == "__main__":
    sys.exit(main())
