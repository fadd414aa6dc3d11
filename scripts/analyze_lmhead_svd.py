"""Whether a low-rank preview of the head could replace reading all of it: spectrum and recall.

A preview projects the hidden state onto r directions, scores the whole vocabulary by them, and
asks the full head for its m best candidates only. Directions are the head's own (its right
singular vectors) or those of hidden states (their principal axes, from other texts than are
tested). An analysis: vLLM has no such path, and nothing here makes one.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.record import MEASUREMENTS, Record, add, check_writable, now, this_machine
from scripts.options import numbers
from serve.settings import REPOSITORY

EXAMPLES = """examples:
  python -m scripts.analyze_lmhead_svd
  python -m scripts.analyze_lmhead_svd weights/smollm2-135m --ranks 32,64,128,256
  python -m scripts.analyze_lmhead_svd --json --no-record

Recall needs hidden states, which this command computes for the tiny model; of any other folder of
safetensors it tells the spectrum and what a rank would save.
"""
TINY = REPOSITORY / "weights" / "tiny"
BYTES = 2
LEAST_TOKENS = 512
# A preview that misses more often than this would be seen in greedy text.
ENOUGH = 0.999


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when analysed, 1 when a folder cannot be read or written, 2 usage."""
    parsed = parser().parse_args(arguments)
    # Heavy, and --help needs neither.
    from scripts.head.read import NoHead, read_head
    from scripts.head.states import held_out_states

    out: Path = parsed.out or MEASUREMENTS
    try:
        name, head = read_head(parsed.folder)
        if parsed.record:
            check_writable(out)
    except (NoHead, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    ranks = [r for r in parsed.ranks if r <= head.shape[1]]
    if not ranks or min(ranks) < 1:
        print(f"--ranks: expected 1 to {head.shape[1]}, the width of {name}", file=sys.stderr)
        return 2
    if parsed.candidates[-1] > head.shape[0]:
        print(f"--candidates: expected 1 to {head.shape[0]}, the tokens of {name}", file=sys.stderr)
        return 2
    made, machine = now(), this_machine()
    states = held_out_states(parsed.folder, parsed.tokens) if tiny(parsed.folder) else None
    summary = analyse(head, states, ranks, parsed.candidates) | {"tensor": name}
    record = Record(
        kind="lmhead-svd",
        made=made,
        command=[
            "python",
            "-m",
            "scripts.analyze_lmhead_svd",
            *(sys.argv[1:] if arguments is None else arguments),
        ],
        machine=machine,
        variant={},
        parameters={
            "model": parsed.folder.name,
            "ranks": ranks,
            "candidates": parsed.candidates,
            "tokens": parsed.tokens,
        },
        summary=summary,
        samples=[],
    )
    print(json.dumps(summary)) if parsed.json else show(summary)
    if parsed.record:
        keep(record, out)
    return 0


def tiny(folder: Path) -> bool:
    """Whether this is the model whose network ``scripts.tiny`` has."""
    return (folder / "training.json").is_file() and (folder / "heldout.jsonl").is_file()


def analyse(
    head: Any, states: tuple[Any, Any] | None, ranks: Sequence[int], candidates: Sequence[int]
) -> dict[str, Any]:
    """Spectrum, what each rank saves, and its recall where there are states to test it on."""
    from scripts.head.preview import costs, directions, energy, recall

    values, own = directions(head)
    bases = {"head": own}
    if states:
        bases["states"] = directions(states[0])[1]
    rows = [
        {"rank": rank, "energy": round(energy(values, rank), 5)}
        | costs(head.shape[0], head.shape[1], rank, candidates[-1], BYTES)
        | {
            basis: recall(head, axes[:, :rank], states[1], candidates)
            for basis, axes in bases.items()
            if states
        }
        for rank in ranks
    ]
    return {
        "vocabulary": head.shape[0],
        "hidden": head.shape[1],
        "singular_values": [round(float(v), 4) for v in values],
        "tested_tokens": len(states[1]) if states else 0,
        "ranks": rows,
        "verdict": verdict(rows, candidates[-1]),
    }


def verdict(rows: Sequence[dict[str, Any]], candidates: int) -> str:
    """What these figures allow one to say; an analysis, whatever they are."""
    end = "an analysis only: vLLM has no path for it"
    tested = [row for row in rows if "head" in row]
    if not tested:
        return f"spectrum only, no hidden states to test recall on; {end}"
    for row in tested:
        for basis in ("head", "states"):
            found = row[basis]["top1"][str(candidates)]
            if found >= ENOUGH and row["bytes_read"] < row["bytes_full"]:
                saved = 1 - row["bytes_read"] / row["bytes_full"]
                return (
                    f"rank {row['rank']} ({basis}) with {candidates} candidates keeps "
                    f"{found:.2%} of greedy choices and reads {saved:.0%} less; {end}"
                )
    return f"no rank keeps {ENOUGH:.1%} of greedy choices and reads less; {end}"


def show(summary: dict[str, Any]) -> None:
    """The table, and the verdict under it."""
    table = Table(
        title=f"{summary['tensor']}: {summary['vocabulary']:,} x {summary['hidden']}", box=None
    )
    tested = summary["tested_tokens"] > 0
    most = list(summary["ranks"][0]["head"]["top1"])[-1] if tested else ""
    names = [f"{of} {b} @{most}" for b in ("head", "states") for of in ("top1", "top5")]
    for name in ["rank", "energy", "bytes read", "FLOPs", *(names if tested else ())]:
        table.add_column(name, justify="right")
    for row in summary["ranks"]:
        found = (
            [f"{row[b][of][most]:.4f}" for b in ("head", "states") for of in ("top1", "top5")]
            if tested
            else []
        )
        table.add_row(
            str(row["rank"]),
            f"{row['energy']:.4f}",
            f"{row['bytes_read'] / row['bytes_full']:.0%}",
            f"{row['flops'] / row['flops_full']:.0%}",
            *found,
        )
    console = Console()
    console.print(table)
    console.print(summary["verdict"])


def keep(record: Record, out: Path) -> None:
    """The record, and its picture beside it."""
    from scripts.head.plot import draw

    path = add(record, out)
    draw(record.summary, path.with_suffix(".svg"))
    print(f"wrote {path} and {path.with_suffix('.svg').name}", file=sys.stderr)


def tokens(text: str) -> int:
    """How many held-out tokens; fewer would leave one of the halves without a text.

    :raises argparse.ArgumentTypeError: too few, or no number.
    """
    if not text.isdigit() or int(text) < LEAST_TOKENS:
        raise argparse.ArgumentTypeError(f"expected a number from {LEAST_TOKENS}, got {text!r}")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.analyze_lmhead_svd",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("folder", nargs="?", type=Path, default=TINY, help="checkpoint (weights/tiny)")
    top.add_argument("--ranks", type=numbers(1), default=[16, 32, 64, 96, 128, 192, 256])
    top.add_argument("--candidates", type=numbers(1), default=[1, 5, 32, 128], help="(1,5,32,128)")
    top.add_argument(
        "--tokens", type=tokens, default=4096, help="held-out tokens, half tested (4096)"
    )
    top.add_argument("--out", type=Path, help="folder of the record (experiments/measurements)")
    top.add_argument("--json", action="store_true", help="figures as JSON, not as a table")
    top.add_argument("--record", action=argparse.BooleanOptionalAction, default=True)
    return top


if __name__ == "__main__":
    sys.exit(main())
