"""Measures what pruning a vocabulary costs and saves, on texts that were not counted.

``coverage``  tokens that stay and tokens for each character, by language and kind of code; whether
              every kept token is reachable; for Qwen3.5, whether the rebuilt tokenizer is the real
              one
``tables``    time and memory of pruning tables of Qwen3.5-4B's shape (1.3 GB in --folder, removed)
``quality``   bits per character of held-out texts before and after, by the model itself
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bake.errors import BakeError
from bake.progress import bar
from bake.vocabulary import counts as counting
from bake.vocabulary import tokenizer as tokenizers
from bake.vocabulary.ids import Numbering
from bake.vocabulary.keep import unreachable
from bake.vocabulary.pruning import prune
from bake.vocabulary.tokenizer import Tokenizer
from blob.errors import Stop
from experiments.record import MEASUREMENTS, Record, add, check_writable, now, this_machine, typed
from scripts.options import add_sampling
from scripts.quiet import attempts
from scripts.starts import NotMeasured
from scripts.vocab import coverage, quality, qwen, synthetic
from scripts.vocab.counting import held_out, histograms
from scripts.vocab.models import FOLDER, MODELS, WORK, Corpus, Model, corpus_of, tokenizer_of
from scripts.vocab.texts import Text
from serve.cli import positive
from serve.settings import REPOSITORY

Measured = tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]
Measure = Callable[[argparse.Namespace], Measured]
COMPARED = 5000
QUICK_TEXTS = 3
EXAMPLES = """Figures are JSON on standard output.

examples:
  python -m scripts.measure_vocab coverage qwen3.5-4b
  python -m scripts.measure_vocab tables --rounds 5
  python -m scripts.measure_vocab quality smollm2-135m --texts 12

Counts are those of experiments/vocabularies: python -m scripts.analyze_vocab <model>
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when it was measured, 1 when it could not be, 2 usage."""
    parsed = parser().parse_args(arguments)
    made, machine = now(), this_machine()
    try:
        if parsed.record:
            check_writable(parsed.out)
        parameters, summary, samples = parsed.measure(parsed)
        print(json.dumps(summary, indent=1))
        if parsed.record:
            record = Record(
                kind=f"vocab_{parsed.what}",
                made=made,
                command=typed("scripts.measure_vocab", arguments),
                machine=machine,
                variant={},
                parameters=parameters,
                summary=summary,
                samples=samples,
            )
            print(f"wrote {add(record, parsed.out)}", file=sys.stderr)
    except (Stop, NotMeasured, OSError, subprocess.CalledProcessError) as error:
        print(f"not measured: {error}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.measure_vocab",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = top.add_subparsers(required=True, metavar="WHAT", dest="what")
    whole = _verb(kinds, _coverage, "coverage", "tokens that stay, and tokens of a text")
    whole.add_argument("model", choices=sorted(MODELS), help="whose vocabulary")
    add_kept(whole)
    tables = _verb(kinds, _tables, "tables", "time and memory of pruning large tables")
    tables.add_argument("--folder", type=Path, help="where 2 GB may lie for a while (/tmp)")
    add_sampling(tables, 5, "one round", seconds=0)
    some = _verb(kinds, _quality, "quality", "bits per character before and after")
    readable = sorted(one for one in MODELS if MODELS[one].folder)
    some.add_argument("model", choices=readable, help="whose vocabulary")
    some.add_argument("--texts", type=positive, default=12, help="of each group (12)")
    some.add_argument("--quick", action="store_true", help=f"{QUICK_TEXTS} texts of each group")
    add_kept(some)
    return top


def _verb(kinds: Any, run: Measure, name: str, told: str) -> argparse.ArgumentParser:
    """What all verbs take."""
    verb: argparse.ArgumentParser = kinds.add_parser(
        name,
        help=told,
        description=f"Measures: {told}.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument("--work", type=Path, default=WORK, help="where packages lie (.cache)")
    verb.add_argument("--out", type=Path, default=MEASUREMENTS, help="where records go")
    verb.add_argument("--counts", type=Path, help="counts (experiments/vocabularies/<model>)")
    verb.add_argument("--size", type=positive, help="tokens that stay (the model's own)")
    verb.set_defaults(measure=run)
    return verb


def add_kept(verb: argparse.ArgumentParser) -> None:
    """Whether progress is told, and a record added; the figures are JSON in any case."""
    verb.add_argument("--json", action="store_true", help="no progress on standard error")
    verb.add_argument(
        "--record", action=argparse.BooleanOptionalAction, default=True, help="add a record (yes)"
    )


def _model(parsed: argparse.Namespace, name: str) -> tuple[Model, int, Path]:
    model = MODELS[name]
    return model, parsed.size or model.size, parsed.counts or FOLDER / f"{name}.json"


def _coverage(parsed: argparse.Namespace) -> Measured:
    """By group: coverage and tokens for each character, before and after."""
    model, size, path = _model(parsed, parsed.model)
    tokenizer = tokenizers.read(tokenizer_of(model, parsed.work))
    counts = counting.read(path)
    counting.check_same(counts, tokenizer.digest, len(tokenizer.texts), path)
    with bar("fetching", quiet=parsed.json) as shown:
        corpus = corpus_of(model, parsed.work, shown)
    began = time.monotonic()
    kept = coverage.kept_at(tokenizer, counts.numbers(), counts.always, size)
    seconds = round(time.monotonic() - began, 2)
    whole, small = coverage.library(tokenizer), coverage.library(tokenizer, kept)
    samples: list[dict[str, Any]] = []
    curve: dict[str, Any] = {}
    for origin, texts in held_out(corpus.texts).items():
        if not texts:
            continue
        with bar("encoding", quiet=parsed.json) as shown:
            found = histograms(whole, texts, len(tokenizer.texts), shown)
            held = coverage.Held(origin, texts, found)
            samples += coverage.rows(held, kept, coverage.lengths(small, held, shown))
        curve[origin] = coverage.by_kind(coverage.covered(held, kept), model.shares)
    summary = {
        "tokens": len(tokenizer.texts),
        "merges": len(tokenizer.merges),
        "size": size,
        "coverage": curve,
        "growth": growth(samples, model),
        "seconds_to_choose": seconds,
        **closure(tokenizer, kept),
        **back(whole, small, corpus),
    }
    if model.folder is None:
        summary["rebuilt"] = same_as_package(whole, corpus, parsed.work)
    return told(model, path, corpus), summary, samples


def told(model: Model, path: Path, corpus: Corpus) -> dict[str, Any]:
    """What was asked for."""
    return {
        "model": model.name,
        "counts": path.name,
        "corpus": corpus.name,
        "corpus_sha256": corpus.digest,
        "held_out": "by the hash of a text's name; 'other sources' are never counted",
    }


def growth(samples: Sequence[Mapping[str, Any]], model: Model) -> dict[str, Any]:
    """Tokens after for each before, by origin and kind, each group alike."""
    found: dict[str, Any] = {}
    for origin in dict.fromkeys(row["origin"] for row in samples):
        rows = {row["group"]: row["growth"] for row in samples if row["origin"] == origin}
        found[origin] = coverage.by_kind(rows, model.shares)
    return found


def closure(tokenizer: Tokenizer, kept: Sequence[int]) -> dict[str, int]:
    """Kept tokens that no text becomes, of those that merges should make: before and after."""
    tree = tokenizers.pruned(tokenizer, Numbering(tuple(kept)), kept)
    small = tokenizers.parsed(json.dumps(tree, ensure_ascii=False).encode(), "pruned")
    return {
        "unreachable_before": len(unreachable(tokenizer.bpe(), tokenizer.by_merging())),
        "unreachable_after": len(unreachable(small.bpe(), small.by_merging())),
        "merges_after": len(small.merges),
    }


def back(whole: Any, small: Any, corpus: Corpus) -> dict[str, int]:
    """How many of the held-out texts come back as they do before pruning."""
    texts = [one.text for one in corpus.texts if one.held_out][:COMPARED]
    wrong = sum(_back(whole, text) != _back(small, text) for text in texts)
    return {"texts_there_and_back": len(texts), "texts_that_came_back_otherwise": wrong}


def _back(made: Any, text: str) -> str:
    ids = made.encode(text, add_special_tokens=False).ids
    return str(made.decode(ids, skip_special_tokens=False))


def same_as_package(whole: Any, corpus: Corpus, work: Path) -> dict[str, Any]:
    """The rebuilt tokenizer against the package's own encoder, on texts of all groups."""
    package = qwen.unpacked(work)
    own = qwen.module(package)
    real = own.QwenTokenizer(
        str(package / "resources" / qwen.RANKS),
        pat_str=own.QWEN3_5_PAT_STR,
        special_tokens=own.QWEN3_5_SPECIAL_TOKENS,
    )
    step = max(1, len(corpus.texts) // COMPARED)
    texts = [one.text[:2000] for one in corpus.texts[::step]]
    wanted = [real.encode(text) for text in texts]
    # tiktoken looks a whole word up before it merges; Qwen's published files do not.
    tree = json.loads(whole.to_str())
    tree["model"]["ignore_merges"] = True
    looked_up = type(whole).from_str(json.dumps(tree, ensure_ascii=False))
    return {
        "texts": len(texts),
        "otherwise": _otherwise(whole, texts, wanted),
        "otherwise_with_words_looked_up": _otherwise(looked_up, texts, wanted),
    }


def _otherwise(made: Any, texts: Sequence[str], wanted: Sequence[list[int]]) -> int:
    """How many of the texts become other ids."""
    pairs = zip(texts, wanted, strict=True)
    return sum(made.encode(text, add_special_tokens=False).ids != ids for text, ids in pairs)


def _tables(parsed: argparse.Namespace) -> Measured:
    """Time and memory of the tables of Qwen3.5-4B, against the libraries' plain way."""
    model, size, path = _model(parsed, "qwen3.5-4b")
    tokenizer = tokenizer_of(model, parsed.work)
    parent = parsed.folder.absolute() if parsed.folder else None
    rounds = 1 if parsed.quick else parsed.rounds
    samples: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="preheat-vocab-", dir=parent) as folder:
        source, counts = Path(folder) / "source", Path(folder) / path.name
        synthetic.write(source, tokenizer)
        shutil.copy(path, counts)
        for at in range(rounds):
            for kind in ("ours", "plain"):
                samples += _one(kind, at, (source, counts, size), busy=parsed.busy or parsed.quick)
    summary = {kind: _medians(kind, samples) for kind in ("ours", "plain")}
    saved = summary["ours"]["bytes_before"] - summary["ours"]["bytes_after"]
    shape = {"rows": synthetic.ROWS, "hidden": synthetic.HIDDEN, "dtype": "BF16", "size": size}
    return shape, {**summary, "bytes_saved": saved}, samples


def _one(kind: str, at: int, job: tuple[Path, Path, int], *, busy: bool) -> list[dict[str, Any]]:
    """Samples of one kind, those that others disturbed among them."""
    source, counts, size = job
    out, said = source.parent / "made", ""

    def work() -> None:
        nonlocal said
        shutil.rmtree(out, ignore_errors=True)
        command = synthetic.command(kind, source, out, counts, size)
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
        if done.returncode:
            raise BakeError(f"{kind}: {done.stderr.strip()[-300:]}")
        said = done.stdout

    found = []
    for sample, kept in attempts(work, 1, busy=busy):
        figures = {"kind": kind, "round": at, "kept": kept, "seconds": round(sample.seconds, 3)}
        found.append({**figures, "others": sample.others, **(json.loads(said) if kept else {})})
    if kind == "ours":
        ids = json.loads((out / "vocab_map.json").read_text())["kept"]
        (source.parent / "kept.json").write_text(json.dumps(ids))
    shutil.rmtree(out)
    return found


def _medians(kind: str, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the samples that count."""
    own = [one for one in samples if one["kind"] == kind and one["kept"]]
    names = [name for name in own[0] if name not in ("kind", "round", "kept", "others")]
    return {name: statistics.median(one[name] for one in own) for name in names}


def _quality(parsed: argparse.Namespace) -> Measured:
    """Bits per character by the model, whole and pruned."""
    model, size, path = _model(parsed, parsed.model)
    if model.folder is None:
        raise BakeError(f"{model.name}: only its vocabulary is here")
    with bar("fetching", quiet=parsed.json) as shown:
        corpus = corpus_of(model, parsed.work, shown)
    texts = quality.samples(
        _languages(held_out(corpus.texts)["same sources"], model),
        QUICK_TEXTS if parsed.quick else parsed.texts,
    )
    with tempfile.TemporaryDirectory(prefix="preheat-vocab-") as folder:
        out = Path(folder) / model.name
        report = prune(model.folder, out, path, size)
        kept = json.loads((out / "vocab_map.json").read_text())["kept"]
        with bar("reading", quiet=parsed.json) as shown:
            rows = quality.compare(model.folder, out, kept, texts, shown)
    sizes = {"size": size, "tokens": quality.tokens_of(model.folder)}
    weights = {"bytes_before": report.bytes_before, "bytes_after": report.bytes_after}
    return told(model, path, corpus), {**sizes, **weights, **quality.summary(rows)}, rows


def _languages(texts: Sequence[Text], model: Model) -> list[Text]:
    """What the model was made for: not the languages that it can hardly read."""
    other = {"en", "de", "fr", "es"}
    return [
        one
        for one in texts
        if one.group in model.shares or one.group in other or one.group.startswith("code:")
    ]


if __name__ == "__main__":
    sys.exit(main())
