"""Measures what quantizing costs a model, ours and llm-compressor's: held-out perplexity, time,
memory, bytes.

Every recipe is made by the command a person types, in a process of its own (whose peak of memory is
told), read back as plain BF16 by ``preheat bake convert``, and read by transformers in float32: so
what differs is the weights alone. Perplexity is of every token of each held-out text but its first;
intervals are 95 %, over texts, and AWQ is told beside rounding to nearest, llm-compressor beside
ours, text by text. llm-compressor runs in the environment that PREHEAT_LLMCOMPRESSOR names; it is
left out without.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from experiments.record import MEASUREMENTS, Record, add, check_writable, now, this_machine, typed
from scripts.intervals import Interval, bootstrap
from scripts.lines import BadLine, read_objects
from scripts.quality.kept import Kept, name_of
from scripts.quality.reading import TOKENS, read
from scripts.served import stoppable
from serve.cli import positive
from serve.plan import versions
from serve.settings import REPOSITORY

CORPUS = REPOSITORY / "experiments" / "calibration" / "corpus.jsonl"
FETCHED = REPOSITORY / ".cache" / "datasets" / "texts.jsonl"
HELDOUT = REPOSITORY / "weights" / "tiny" / "heldout.jsonl"
# What makes a model of a recipe and reads it back as plain weights, and what reads it.
MAKERS = tuple(REPOSITORY / "bake" / room for room in ("quantize", "checkpoint"))
READER = REPOSITORY / "scripts" / "quality" / "reading.py"
PEERS = ("llmcompressor", "compressed_tensors", "torch", "transformers")
# Of the last line of a command that failed.
SAID_CHARACTERS = 400
PREHEAT = ("-c", "import sys, preheat; sys.exit(preheat.main())", "bake")
EXAMPLES = """examples:
  python -m scripts.measure_quantize --grid
  python -m scripts.measure_quantize --grid --only '(mlp|linear) g(32|128)( by|$)'
  python -m scripts.measure_quantize --model smollm2-135m --group-size 64 --texts 60
  PREHEAT_LLMCOMPRESSOR=/tmp/w/llmc/bin/python python -m scripts.measure_quantize
  python -m scripts.measure_quantize --grid --take-up
"""


@dataclass(frozen=True)
class Wanted:
    """One row: a recipe as its words on the command line; none is the model as it is."""

    name: str
    words: tuple[str, ...] = ()
    by: str = "preheat"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when a record was added, 1 when a command failed, 2 usage."""
    parsed = parser().parse_args(arguments)
    model = REPOSITORY / "weights" / parsed.model
    if not model.is_dir():
        print(f"{model}: no such folder\nhint: make fetch MODEL={parsed.model}", file=sys.stderr)
        return 2
    made, machine = now(), this_machine()
    try:
        texts, source = heldout(parsed)
    except BadLine as error:
        print(f"--heldout: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"--heldout: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    try:
        check_writable(parsed.record)
        kept = Kept(depends_on(model, texts, parsed), fresh=not parsed.take_up)
        with stoppable():
            samples = [
                kept.get(one.name) or kept.put(one.name, sample(one, model, texts, parsed))
                for one in track(list(wanted(parsed)), "measuring", console=Console(stderr=True))
            ]
        figures = summary(samples)
        record = Record(
            kind="quantize",
            made=made,
            command=typed("scripts.measure_quantize", arguments),
            machine=machine,
            variant={"versions": versions()},
            parameters=parameters(parsed, len(texts), source),
            summary=figures,
            samples=samples,
        )
        path = add(record, parsed.record)
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"not measured: {told_of(error)}", file=sys.stderr)
        return 1
    kept.forget()
    if parsed.json:
        print(json.dumps(figures, indent=1))
    else:
        Console().print(table(parsed.model, figures))
    print(f"wrote {path}", file=sys.stderr)
    return 0


def parameters(parsed: argparse.Namespace, texts: int, source: str) -> dict[str, Any]:
    """What was asked for, of how many texts, from which file."""
    return {
        "model": parsed.model,
        "texts": texts,
        "of": source,
        "tokens_of_a_text": TOKENS,
        "samples": parsed.samples,
        "sequence": parsed.sequence,
        "threads": parsed.threads,
    }


def told_of(error: Exception) -> str:
    """Of a command that failed its last line, which is the error, then the command; of others what
    they say.
    """
    if not isinstance(error, subprocess.CalledProcessError):
        return str(error)
    said = str(error.stderr or "").strip().splitlines() or [f"exit status {error.returncode}"]
    return f"{said[-1][-SAID_CHARACTERS:]}\nof: {' '.join(map(str, error.cmd))}"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.measure_quantize",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--model", default="tiny", help="a folder in weights/ (tiny)")
    top.add_argument("--grid", action="store_true", help="all schemes, targets, groups and heads")
    top.add_argument(
        "--only", type=pattern, default="", help="recipes whose name has this pattern (all)"
    )
    top.add_argument("--group-size", type=int, choices=(32, 64, 128), default=32)
    top.add_argument("--targets", choices=("mlp", "linear"), default="mlp")
    top.add_argument("--texts", type=positive, help="take the first so many (all)")
    top.add_argument("--heldout", type=Path, help="JSON lines to read (by model)")
    top.add_argument("--samples", type=positive, default=64, help="texts that AWQ looks at")
    top.add_argument("--sequence", type=positive, default=512, help="tokens of each")
    top.add_argument("--threads", type=positive, default=1, help="of each process")
    top.add_argument("--record", type=Path, default=MEASUREMENTS, help="folder of records")
    top.add_argument("--take-up", action="store_true", help="go on with what was interrupted")
    top.add_argument("--json", action="store_true", help="figures as JSON")
    return top


def pattern(word: str) -> str:
    """A regular expression; argparse tells what is none."""
    try:
        re.compile(word)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{word!r} is no pattern: {error}") from error
    return word


def wanted(parsed: argparse.Namespace) -> Iterator[Wanted]:
    """The model as it is, then each recipe that was asked for."""
    yield Wanted("bf16")
    yield from (one for one in recipes(parsed) if re.search(parsed.only, one.name))


def recipes(parsed: argparse.Namespace) -> Iterator[Wanted]:
    """All of the grid, or of one group and targets."""
    if parsed.grid:
        yield from grid()
        return
    words = ("--targets", parsed.targets, "--group-size", str(parsed.group_size))
    told = f"{parsed.targets} g{parsed.group_size}"
    yield Wanted(f"rtn {told}", ("--scheme", "rtn-w4a16", *words))
    yield Wanted(f"awq {told}", ("--scheme", "awq-w4a16", *words))
    yield from peers((parsed.targets,), (parsed.group_size,))


def peers(targets: Sequence[str], groups: Sequence[int]) -> Iterator[Wanted]:
    """The same by llm-compressor, where it is; it leaves a tied head as it is."""
    if not os.environ.get("PREHEAT_LLMCOMPRESSOR"):
        return
    for which in targets:
        for group in groups:
            for scheme in ("rtn", "awq"):
                words = ("--scheme", f"{scheme}-w4a16", "--targets", which, "--group-size")
                name = f"{scheme} {which} g{group} by llm-compressor"
                by = ("--by", "llm-compressor")
                yield Wanted(name, (*words, str(group), *by), "llm-compressor")


def grid() -> Iterator[Wanted]:
    """Every recipe; the head alone; then the peer's."""
    for head in (False, True):
        for targets in ("mlp", "linear"):
            for group in (32, 64, 128):
                for scheme in ("rtn", "awq"):
                    layers = ("--scheme", f"{scheme}-w4a16", "--targets", targets)
                    rest = ("--group-size", str(group), *(["--lm-head"] if head else []))
                    name = f"{scheme} {targets} g{group}{' head' if head else ''}"
                    yield Wanted(name, (*layers, *rest))
    for group in (32, 64, 128):
        alone = ("--scheme", "none", "--lm-head", "--group-size", str(group))
        yield Wanted(f"head g{group}", alone)
    yield from peers(("mlp", "linear"), (32, 64, 128))


def heldout(parsed: argparse.Namespace) -> tuple[list[str], str]:
    """Texts that no corpus holds, and where they are from: the tiny model's own; for others, those
    that make datasets fetched, or the same.

    :raises BadLine: a line that is no object with a text, or there is none.
    :raises OSError: the file cannot be read.
    """
    default = FETCHED if parsed.model != "tiny" and FETCHED.is_file() else HELDOUT
    path: Path = parsed.heldout or default
    rows = [_text(row, where) for where, row in read_objects(path)]
    if not rows:
        raise BadLine(f"{path}: no text in it: expected one JSON object a line")
    # As they come, one source stands after the other.
    step = max(1, len(rows) // parsed.texts) if parsed.texts else 1
    return rows[::step][: parsed.texts], path.name


def _text(row: Mapping[str, Any], where: str) -> str:
    if not isinstance(text := row.get("text"), str) or not text:
        raise BadLine(f"{where}: expected an object with a text")
    return text


def depends_on(model: Path, texts: Sequence[str], parsed: argparse.Namespace) -> str:
    """The name of all that a recipe's figures come of, but the recipe itself: the model, what makes
    it and reads it, ours and others'.
    """
    stacks = (json.dumps(versions(), sort_keys=True), *peer_versions())
    words = (model.name, parsed.samples, parsed.sequence, parsed.threads, *stacks, *texts)
    ours = [*sorted(path for folder in MAKERS for path in folder.rglob("*.py")), READER]
    files = [*sorted(model.glob("*.safetensors")), model / "tokenizer.json", CORPUS, *ours]
    return name_of(words, files)


def peer_versions() -> list[str]:
    """The distributions that llm-compressor's figures come of, with their versions; none without
    its environment.
    """
    python = os.environ.get("PREHEAT_LLMCOMPRESSOR")
    if not python:
        return []
    places = Path(python).parent.parent.glob("lib/python*/site-packages/*.dist-info")
    return sorted(one.name for one in places if one.name.partition("-")[0] in PEERS)


def sample(
    one: Wanted, model: Path, texts: Sequence[str], parsed: argparse.Namespace
) -> dict[str, Any]:
    """One recipe: how it was made, and how the model reads with it."""
    with tempfile.TemporaryDirectory(prefix="preheat-") as place:
        plain, cost = model, {"seconds": 0.0, "peak_bytes": 0}
        made = Path(place) / "made"
        if one.words:
            counts = ("--samples", str(parsed.samples), "--sequence", str(parsed.sequence))
            looked = ("--corpus", str(CORPUS), *counts)
            words = [*PREHEAT, "quantize", str(model), str(made), *one.words, *looked]
            cost = run(words, parsed.threads)
            plain = Path(place) / "plain"
            run([*PREHEAT, "convert", str(made), str(plain)], parsed.threads)
        weights = (made if one.words else model).glob("*.safetensors")
        size = sum(path.stat().st_size for path in weights)
        nll, tokens = read(plain, texts, parsed.threads)
    return {
        "recipe": one.name,
        "by": one.by,
        "bytes": size,
        **cost,
        "nll": nll,
        "tokens": tokens,
    }


def run(words: Sequence[str], threads: int) -> dict[str, Any]:
    """Run a command of ours; how long it took, and the most memory it, or a child of it, had.

    :raises subprocess.CalledProcessError: it failed.
    """
    began = time.monotonic()
    asked = [sys.executable, "-m", "scripts.measured_child", sys.executable, *words]
    with subprocess.Popen(
        asked,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        try:
            said, odd = child.communicate()
        except BaseException:
            # The command is a child of it, and would go on for an hour alone.
            os.killpg(child.pid, signal.SIGKILL)
            raise
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, asked, said, odd)
    seconds = round(time.monotonic() - began, 2)
    return {"seconds": seconds, "peak_bytes": json.loads(said)}


def summary(samples: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each recipe against the first, which is the model as it is, and against its rival."""
    by_name = {one["recipe"]: one for one in samples}
    told = {one["recipe"]: against(one, samples[0]) for one in samples}
    for name, figures in told.items():
        if (rival := rival_of(name)) in by_name:
            beside = change(by_name[name], by_name[rival]).describe()
            figures["beside"] = {"recipe": rival, **beside}
    return told


def rival_of(name: str) -> str:
    """The recipe that differs in one thing alone: for llm-compressor's, ours; for AWQ, rounding to
    nearest. Empty where there is none.
    """
    ours = name.removesuffix(" by llm-compressor")
    if ours != name:
        return ours
    return f"rtn{name.removeprefix('awq')}" if name.startswith("awq") else ""


def against(one: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    """Perplexity, its change from the weights as they were, and what making them took."""
    changed = change(one, plain)
    return {
        "perplexity": round(float(np.exp(sum(one["nll"]) / sum(one["tokens"]))), 4),
        "change": round(changed.point, 5),
        "change_low": round(changed.low, 5),
        "change_high": round(changed.high, 5),
        "bytes": one["bytes"],
        "seconds": one["seconds"],
        "peak_mb": round(one["peak_bytes"] / 1e6),
    }


def change(one: Mapping[str, Any], other: Mapping[str, Any]) -> Interval:
    """Relative change of perplexity from ``other`` to ``one``, which have read the same texts."""
    more = np.array(one["nll"], np.float64) - np.array(other["nll"], np.float64)
    columns = np.column_stack([more, np.array(other["tokens"], np.float64)])
    return bootstrap(columns, lambda sums: np.exp(sums[:, 0] / sums[:, 1]) - 1)


def table(model: str, figures: Mapping[str, Mapping[str, Any]]) -> Table:
    """For a person."""
    made = Table(title=f"{model}, quantized", caption="beside: AWQ to RTN, theirs to ours")
    made.add_column("recipe")
    for column in ("MB", "perplexity", "change", "95 %", "beside", "seconds", "peak MB"):
        made.add_column(column, justify="right")
    for name, row in figures.items():
        made.add_row(
            name,
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['perplexity']:.3f}",
            f"{row['change']:+.2%}",
            f"{row['change_low']:+.2%} to {row['change_high']:+.2%}",
            f"{row['beside']['point']:+.2%}" if "beside" in row else "",
            f"{row['seconds']:.1f}",
            f"{row['peak_mb']:.0f}",
        )
    return made


if __name__ == "__main__":
    sys.exit(main())
