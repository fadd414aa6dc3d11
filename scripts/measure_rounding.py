"""Measures what each codec costs the tiny model: error of its weights, and held-out perplexity.

The perplexity is of the same texts and by the same network as in ``weights/tiny/training.json``:
every token of each held-out text but its first. Weights come from a blob, packed for it.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tokenizers import Tokenizer

from bake.weights.checkpoint import open_checkpoint
from bake.weights.pack import pack
from blob.blob import Blob
from blob.codecs.bfloat16 import to_float32
from blob.recipe import Recipe
from blob.reconstruct import stream
from blob.store import Store
from experiments.record import MEASUREMENTS, Record, add, now, this_machine
from scripts.tiny.model import TinyModel
from scripts.tiny.shape import Shape
from serve.plan import versions
from serve.settings import REPOSITORY

MODEL = REPOSITORY / "weights" / "tiny"
RECIPES = (
    Recipe("raw"),
    Recipe("int5"),
    Recipe("q8_0"),
    Recipe("q6_k"),
    Recipe("q5_k"),
    Recipe("q4_k"),
    Recipe("int4", targets="mlp"),
    Recipe("int4"),
    Recipe("int4", 128),
)
EXAMPLES = """examples:
  python -m scripts.measure_rounding
  python -m scripts.measure_rounding --texts 20 --record /tmp/records
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when a record was added, 2 usage."""
    parsed = parser().parse_args(arguments)
    made, machine = now(), this_machine()
    rows = (MODEL / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(row)["text"] for row in rows][: parsed.texts]
    samples = [
        sample(recipe, texts)
        for recipe in track(RECIPES, "measuring", console=Console(stderr=True))
    ]
    figures = {one["recipe"]: against(one, samples[0]) for one in samples}
    record = Record(
        kind="rounding",
        made=made,
        command=["python", "-m", "scripts.measure_rounding", *sys.argv[1:]],
        machine=machine,
        variant={"versions": versions()},
        parameters={"model": "tiny", "texts": len(texts)},
        summary=figures,
        samples=samples,
    )
    path = add(record, parsed.record)
    if parsed.json:
        print(json.dumps(figures, indent=1))
    else:
        Console().print(table(figures))
    print(f"wrote {path}", file=sys.stderr)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.measure_rounding",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--texts", type=int, help="take the first so many (all)")
    top.add_argument("--record", type=Path, default=MEASUREMENTS, help="folder of records")
    top.add_argument("--json", action="store_true", help="figures as JSON")
    return top


def sample(recipe: Recipe, texts: Sequence[str]) -> dict[str, Any]:
    """One recipe: how large, how far from the weights it was made of, and how the model reads."""
    with tempfile.TemporaryDirectory(prefix="preheat-") as folder:
        pack(MODEL, recipe, Path(folder) / "blob", Store(Path(folder) / "store"))
        blob = Blob.open(Path(folder) / "blob")
        weights = {one.name: to_float32(one.array.copy()) for one in stream(blob)}
        chosen = [t.name for t in blob.manifest.tensors if t.codec != "raw"]
        stored = sum(t.stored_size for t in blob.manifest.tensors if t.codec != "raw")
    nll, tokens = read(weights, texts)
    return {
        "recipe": " ".join(str(word) for word in recipe.describe().values()),
        "tensors": len(chosen),
        "bits_per_weight": round(8 * stored / max(1, sum(weights[n].size for n in chosen)), 3),
        "relative_rms_error": error(weights, chosen),
        "nll": nll,
        "tokens": tokens,
    }


def error(weights: Mapping[str, Any], chosen: Sequence[str]) -> float:
    """‖given back - original‖ / ‖original‖ over all weights that were quantized."""
    original = open_checkpoint(MODEL).tensors
    wrong = right = 0.0
    for name in chosen:
        was = to_float32(original[name].array).astype("float64")
        wrong += float(((weights[name] - was) ** 2).sum())
        right += float((was**2).sum())
    return round(math.sqrt(wrong / right), 6) if right else 0.0


def read(weights: Mapping[str, Any], texts: Sequence[str]) -> tuple[float, int]:
    """Summed negative log-likelihood of ``texts`` in nats, and how many tokens were predicted."""
    model = TinyModel(Shape())
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    nll, tokens = 0.0, 0
    for text in texts:
        ids = torch.tensor(tokenizer.encode(text).ids)
        with torch.no_grad():
            logits = model.logits(ids[None, :-1])[0].float()
        nll += float(F.cross_entropy(logits, ids[1:], reduction="sum"))
        tokens += len(ids) - 1
    return nll, tokens


def against(one: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, float]:
    """Perplexity, and its change from the weights as they were trained."""
    mine, was = (math.exp(it["nll"] / it["tokens"]) for it in (one, plain))
    return {
        "perplexity": round(mine, 4),
        "change": round(mine / was - 1, 5),
        "bits_per_weight": one["bits_per_weight"],
        "relative_rms_error": one["relative_rms_error"],
    }


def table(figures: Mapping[str, Mapping[str, float]]) -> Table:
    """For a person."""
    made = Table(title="the tiny model, read from blobs")
    made.add_column("recipe")
    for column in ("bits", "relative error", "perplexity", "change"):
        made.add_column(column, justify="right")
    for name, row in figures.items():
        made.add_row(
            name,
            f"{row['bits_per_weight']:.2f}",
            f"{row['relative_rms_error']:.4f}",
            f"{row['perplexity']:.3f}",
            f"{row['change']:+.2%}",
        )
    return made


if __name__ == "__main__":
    sys.exit(main())
