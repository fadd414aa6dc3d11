"""Counts are compared with the vocabulary of the model that is served, by name only found."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bake.vocabulary import counts as counting
from bake.vocabulary import tokenizer as tokenizers
from serve import counts
from serve.settings import REPOSITORY
from serve.translate import SCHEMA

TOKENS = 64
TINY = REPOSITORY / "weights" / "tiny"
TINY_COUNTS = REPOSITORY / "experiments" / "vocabularies" / "tiny.json"


def vocabulary(model: Path, path: Path, first: str = "a", always: tuple[int, ...] = (3,)) -> Path:
    """Give ``model`` a vocabulary that begins with ``first``; the counts of it, in ``path``."""
    texts = [first, *(f"t{one}" for one in range(1, TOKENS))]
    # Not in the order of ids: a file may list them in any.
    vocab = {text: at for at, text in reversed([*enumerate(texts)])}
    told = {
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
        "added_tokens": [],
        "pre_tokenizer": {"type": "ByteLevel"},
        "decoder": {"type": "ByteLevel"},
    }
    model.mkdir(parents=True, exist_ok=True)
    (model / "tokenizer.json").write_text(json.dumps(told))
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = counts.vocabulary(model / "tokenizer.json")
    path.write_text(counting.dumped(counting.Counts("m", digest, bytes(TOKENS), always)))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return vocabulary(tmp_path / "model", tmp_path / "counts.json")


def read(path: Path, tokens: int | None = TOKENS) -> counts.Counts:
    return counts.read(path, path.parent / "model", tokens)


def test_counts_of_the_models_own_vocabulary_fit(path: Path) -> None:
    for tokens in (None, TOKENS, TOKENS + 8):
        assert read(path, tokens) == counts.Counts(path, least=1)


def test_those_that_ship_fit_their_models() -> None:
    told = counts.read(TINY_COUNTS, TINY, 16384)
    assert (told.misfit, told.path) == ("", TINY_COUNTS)
    assert 10 < told.least < 512


def test_one_digest_says_which_vocabulary_to_baker_and_server(path: Path) -> None:
    for folder in (TINY, path.parent / "model"):
        file = folder / "tokenizer.json"
        assert counts.vocabulary(file) == tokenizers.read(file).digest


def test_counts_of_another_vocabulary_do_not(path: Path) -> None:
    was = counts.vocabulary(path.parent / "model/tokenizer.json")
    vocabulary(path.parent / "model", path.parent / "other.json", "z")
    own = counts.vocabulary(path.parent / "model/tokenizer.json")
    assert read(path).misfit == (
        f"its counts are of another vocabulary ({was[:12]}…, its own is {own[:12]}…)"
    )


def test_counts_of_more_tokens_than_the_model_has_do_not(path: Path) -> None:
    assert read(path, 60).misfit == "its counts are of 64 tokens, and it has 60"


def test_of_a_pruned_vocabulary_the_sizes_are_compared(path: Path) -> None:
    file = path.parent / "model/vocab_map.json"
    for size, misfit in ((64, ""), (63, "its counts are of 64 tokens, and it has 63")):
        told = {"schema": SCHEMA, "original_size": size, "kept": [3, 0, 5, 9]}
        file.write_text(json.dumps(told))
        # Its own tokenizer.json is another by then.
        (path.parent / "model/tokenizer.json").write_text('{"added_tokens": []}')
        assert read(path, 4) == counts.Counts(path, least=0 if misfit else 1, misfit=misfit)


@pytest.mark.parametrize("raw", ["", "[]", "{}", '{"tokenizer": 1}', "[" * 100_000])
def test_damaged_ones_are_named(path: Path, raw: str) -> None:
    file = path.parent / "model/tokenizer.json"
    whole = path.read_text(), file.read_text()
    path.write_text(raw)
    assert read(path).misfit.startswith("counts.json cannot be compared with its vocabulary: ")
    path.write_text(whole[0])
    file.write_text(raw)
    assert read(path).misfit.startswith("counts.json cannot be compared with its vocabulary: ")
    file.write_text(whole[1])
    path.write_text(whole[0].replace('"levels": "', '"levels": "abcd'))
    assert read(path).misfit.startswith("counts.json cannot be compared with its vocabulary: ")
    path.write_text(whole[0].replace(f'"tokens": {TOKENS}', '"tokens": 60'))
    assert read(path, 60).misfit.endswith("ValueError: 64 levels for 60 tokens")


def test_who_compares_imports_no_numpy() -> None:
    code = (
        "import sys; from pathlib import Path; from serve import counts; "
        f"print(counts.read(Path({str(TINY_COUNTS)!r}), Path({str(TINY)!r}), 16384).misfit == '', "
        "'numpy' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert done.stdout == "True False False\n", done.stderr
