"""What a folder's tokenizer is told to be, and how little a hostile one can ask for."""

import json
import tracemalloc

import pytest

from bake.checkpoint import tokens
from bake.checkpoint.tokens import COMMAS, MAX_BYTES, of_folder
from bake.errors import BakeError, Malformed


@pytest.fixture
def told(tmp_path):
    """Writes a tokenizer, and tells what it is."""

    def tell(raw):
        path = tmp_path / "tokenizer.json"
        path.write_bytes(raw if isinstance(raw, bytes) else json.dumps(raw).encode())
        return of_folder({"tokenizer.json": path})

    return tell


def test_every_kind_of_vocabulary_and_of_merges_is_counted(told):
    bpe = told({"model": {"type": "BPE", "vocab": {"a": 0, "b": 7}, "merges": ["a b"]}})
    assert (bpe.kind, bpe.tokens, bpe.highest, bpe.merges) == ("BPE", 2, 7, 1)
    unigram = {"type": "Unigram", "vocab": [["a", -0.5], ["b", -1]], "merges": None}
    found = told({"model": unigram, "added_tokens": [{"id": 2, "content": "<s>"}]})
    assert (found.tokens, found.highest, found.merges, found.specials) == (3, 2, 0, 1)
    pairs = {"vocab": {}, "merges": [["a", "b"], ["ab", "c"]], "type": None}
    found = told({"model": pairs, "added_tokens": None})
    assert (found.kind, found.tokens, found.highest, found.merges) == ("unknown", 0, -1, 2)


def test_what_is_not_asked_for_takes_no_memory(told):
    raw = b'{"model": {"vocab": {"a": 0}}, "more": [' + b"[]," * 1_000_000 + b"[]]}"
    tracemalloc.start()
    try:
        assert told(raw).tokens == 1
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 2 * len(raw)


def test_more_than_any_tokenizer_has_is_refused_unmade(told, monkeypatch):
    vocabulary = b'"a":1,' * COMMAS + b'"a":1,"b":2'
    with pytest.raises(Malformed, match="commas"):
        told(b'{"model": {"vocab": {' + vocabulary + b"}}}")
    assert MAX_BYTES == 64 * 1024**2
    monkeypatch.setattr(tokens, "MAX_BYTES", 10)
    with pytest.raises(Malformed, match="larger than 10 bytes"):
        told({"model": {"vocab": {}}})


def test_one_that_is_no_file_is_told(tmp_path):
    with pytest.raises(BakeError, match="cannot be read"):
        of_folder({"tokenizer.json": tmp_path})
