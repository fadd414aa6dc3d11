"""A folder becomes a smaller one that is whole: tables, ids wherever they stand, a map of them."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from bake import tree
from bake.errors import BakeError, Malformed, Unsupported
from bake.vocabulary import prune
from bake.vocabulary import tables as writer

from .made import checkpoint, falling, library, tables, write, write_counts

SIZE, KEPT = 700, 448
LIBRARY = library(SIZE)
END, PAD = LIBRARY.token_to_id("<|im_end|>"), LIBRARY.token_to_id("<|endoftext|>")


@pytest.fixture
def counts(tmp_path):
    return write_counts(tmp_path / "counts.json", LIBRARY, falling(5, SIZE))


@pytest.fixture
def made(tmp_path):
    return checkpoint(tmp_path / "model", LIBRARY)


def read(folder, name):
    return json.loads((folder / name).read_text())


def kept(folder):
    return read(folder, "vocab_map.json")["kept"]


def tensors(folder):
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def test_every_file_is_of_the_new_ids(made, counts, tmp_path):
    out = tmp_path / "small"
    report = prune(made, out, counts, KEPT)
    there, ids = Tokenizer.from_file(str(out / "tokenizer.json")), kept(out)
    end, pad = ids.index(END), ids.index(PAD)
    assert there.token_to_id("<|im_end|>") == end
    assert read(out, "vocab_map.json") == {"schema": 1, "original_size": SIZE, "kept": ids}
    config = read(out, "config.json")
    assert (config["vocab_size"], config["eos_token_id"]) == (KEPT, end)
    assert (config["pad_token_id"], config["bos_token_id"]) == (pad, None)
    generation = {"eos_token_id": [end, pad], "temperature": 0.6}
    assert read(out, "generation_config.json") == generation
    decoder = read(out, "tokenizer_config.json")["added_tokens_decoder"]
    assert decoder == {str(there.token_to_id(t["content"])): t for t in decoder.values()}
    assert read(out, "added_tokens.json")["<|im_end|>"] == end
    assert (out / "chat_template.jinja").read_bytes() == (made / "chat_template.jinja").read_bytes()
    assert (report.original_size, report.size, report.unreachable) == (SIZE, KEPT, 0)
    assert report.bytes_before - report.bytes_after == (SIZE - KEPT) * 8 * 4


@pytest.mark.parametrize("shards", [1, 3])
def test_every_table_keeps_the_rows_of_its_tokens(shards, counts, tmp_path, monkeypatch):
    before = tables(SIZE, head=True, drafts=True)
    folder = checkpoint(tmp_path / "model", LIBRARY, before, shards=shards)
    monkeypatch.setattr(writer, "PIECE_BYTES", 100)
    prune(folder, tmp_path / "small", counts, KEPT)
    after, ids = tensors(tmp_path / "small"), kept(tmp_path / "small")
    assert after.keys() == before.keys()
    for name, table in before.items():
        rows = table[ids] if len(table) == SIZE else table
        np.testing.assert_array_equal(after[name], rows)


def test_many_bytes_become_several_files(counts, tmp_path, monkeypatch):
    folder = checkpoint(tmp_path / "model", LIBRARY, tables(SIZE, head=True))
    monkeypatch.setattr(writer, "most", lambda: 15_000)
    prune(folder, tmp_path / "small", counts, KEPT)
    listed = read(tmp_path / "small", "model.safetensors.index.json")["weight_map"]
    assert len(set(listed.values())) > 1
    assert tensors(tmp_path / "small").keys() == listed.keys()


def test_ids_and_sizes_of_inner_configs_are_rewritten(counts, tmp_path):
    inner = {"vocab_size": SIZE, "eos_token_id": END, "tie_word_embeddings": True}
    folder = checkpoint(
        tmp_path / "model",
        LIBRARY,
        text_config=inner,
        image_token_id=PAD,
        vision_config={"vision_start_token_id": 300, "depth": 300},
        suppress_tokens=[301, 302],
        bad_words_ids=[[303], [304, 305]],
        forced_decoder_ids=[[1, 306]],
        sequence_bias=[[[307], 9.5]],
        max_new_tokens=300,
    )
    prune(folder, tmp_path / "small", counts, KEPT)
    told, ids = read(tmp_path / "small", "config.json"), kept(tmp_path / "small")
    assert told["text_config"]["vocab_size"] == KEPT
    assert told["text_config"]["eos_token_id"] == ids.index(END)
    assert told["image_token_id"] == ids.index(PAD)
    assert told["vision_config"] == {"vision_start_token_id": ids.index(300), "depth": 300}
    assert told["suppress_tokens"] == [ids.index(301), ids.index(302)]
    assert told["bad_words_ids"] == [[ids.index(303)], [ids.index(304), ids.index(305)]]
    assert told["forced_decoder_ids"] == [[1, ids.index(306)]]
    assert told["sequence_bias"] == [[[ids.index(307)], 9.5]]
    assert told["max_new_tokens"] == 300


def test_rows_behind_the_last_token_go(counts, tmp_path):
    folder = checkpoint(tmp_path / "model", LIBRARY, tables(SIZE + 60), vocab_size=SIZE + 60)
    report = prune(folder, tmp_path / "small", counts, KEPT)
    assert report.original_size == SIZE + 60
    assert len(tensors(tmp_path / "small")["model.embed_tokens.weight"]) == KEPT


def test_older_files_of_a_vocabulary_are_written_anew(made, counts, tmp_path):
    (made / "vocab.json").write_text("{}")
    (made / "merges.txt").write_text("")
    prune(made, tmp_path / "small", counts, KEPT)
    from tokenizers import Tokenizer, models

    out = tmp_path / "small"
    older = models.BPE.from_file(str(out / "vocab.json"), str(out / "merges.txt"))
    newer = Tokenizer.from_file(str(out / "tokenizer.json"))
    word = "Ġ" + "repeat"
    assert [t.id for t in older.tokenize(word)] == [t.id for t in newer.model.tokenize(word)]


def test_what_a_template_writes_stays_whatever_its_count(made, tmp_path):
    numbers = falling(6, SIZE)
    numbers[600] = 0
    counts = write_counts(tmp_path / "counts.json", LIBRARY, numbers, always=[600])
    prune(made, tmp_path / "small", counts, KEPT)
    assert 600 in kept(tmp_path / "small")


def test_the_same_source_gives_the_same_bytes(made, counts, tmp_path):
    for name in ("a", "b"):
        prune(made, tmp_path / name, counts, KEPT)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def refused(error, said, folder, counts, size=KEPT):
    out = folder.parent / "small"
    with pytest.raises(error, match=said):
        prune(folder, out, counts, size)
    assert not out.exists()
    assert not list(out.parent.glob(".small*.part"))


def test_a_pruned_folder_is_not_pruned_again(made, counts, tmp_path):
    prune(made, tmp_path / "once", counts, KEPT)
    refused(Unsupported, "is pruned already", tmp_path / "once", counts, 320)


def test_quantized_weights_are_refused(counts, tmp_path):
    config = {"quantization_config": {"quant_method": "compressed-tensors"}}
    folder = checkpoint(tmp_path / "model", LIBRARY, **config)
    refused(Unsupported, "is quantized \\(compressed-tensors\\)", folder, counts)


@pytest.mark.parametrize("name", ["tokenizer.model", "qwen.tiktoken", "tekken.json"])
def test_other_forms_of_a_vocabulary_are_refused(name, made, counts):
    (made / name).write_text("x")
    refused(Unsupported, name, made, counts)


def test_without_a_tokenizer_nothing_is_pruned(made, counts):
    (made / "tokenizer.json").unlink()
    refused(Unsupported, "no tokenizer.json", made, counts)


def test_tables_of_different_rows_are_refused(counts, tmp_path):
    some = tables(SIZE) | {"lm_head.weight": np.zeros((SIZE - 1, 8), np.float32)}
    refused(BakeError, "rows", checkpoint(tmp_path / "model", LIBRARY, some), counts)


def test_a_tensor_that_could_be_a_table_and_is_not_known_is_refused(counts, tmp_path):
    some = tables(SIZE) | {"model.per_token.weight": np.zeros((SIZE, 2), np.float32)}
    folder = checkpoint(tmp_path / "model", LIBRARY, some)
    refused(Unsupported, "model.per_token.weight", folder, counts)


def test_a_head_that_is_not_there_is_missed(counts, tmp_path):
    folder = checkpoint(tmp_path / "model", LIBRARY, tie_word_embeddings=False)
    refused(BakeError, "no lm_head.weight", folder, counts)


def test_another_size_in_the_config_is_refused(counts, tmp_path):
    folder = checkpoint(tmp_path / "model", LIBRARY, vocab_size=SIZE + 1)
    refused(BakeError, "vocab_size is 701, and the embedding has 700 rows", folder, counts)


def test_an_id_that_no_token_has_is_refused(counts, tmp_path):
    folder = checkpoint(tmp_path / "model", LIBRARY, boi_token_id=SIZE + 7)
    refused(BakeError, "names the id 707", folder, counts)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"5": "x"}}),
        ("config.json", {"sequence_bias": [5]}),
    ],
)
def test_ids_in_a_form_that_is_not_known_are_refused(name, told, made, counts):
    write(made / name, read(made, name) | told)
    refused(Malformed, "ids stand in a config in a form that is not known", made, counts)


def test_more_tokens_than_rows_are_refused(counts, tmp_path):
    folder = checkpoint(tmp_path / "model", LIBRARY, tables(SIZE - 4), vocab_size=SIZE - 4)
    refused(BakeError, "700 tokens, and an embedding of 696 rows", folder, counts)


def test_files_that_call_tokens_otherwise_are_refused(made, counts):
    write(made / "added_tokens.json", {"<|im_end|>": 5})
    refused(Malformed, "added_tokens.json", made, counts)


def test_counts_of_another_vocabulary_are_refused(made, tmp_path):
    other = library(SIZE - 1)
    counts = write_counts(tmp_path / "other.json", other, falling(5, SIZE - 1))
    refused(BakeError, "counted with another vocabulary", made, counts)


def test_counts_are_good_where_another_token_was_added(made, tmp_path):
    fewer = json.loads(LIBRARY.to_str())
    del fewer["added_tokens"][-1]
    without = Tokenizer.from_str(json.dumps(fewer))
    counts = write_counts(tmp_path / "fewer.json", without, falling(5, SIZE - 1))
    assert prune(made, tmp_path / "small", counts, KEPT).size == KEPT


@pytest.mark.parametrize("told", ["[]", "{}", '{"schema": 1, "levels_per_octave": 10}'])
def test_counts_that_are_none_are_refused(told, made, tmp_path):
    (tmp_path / "bad.json").write_text(told)
    refused(Malformed, "bad.json", made, tmp_path / "bad.json")


def test_a_shard_that_is_missing_is_told(counts, tmp_path):
    folder = checkpoint(tmp_path / "model", LIBRARY, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    refused(BakeError, "missing", folder, counts)


def test_weights_that_are_cut_off_are_told(made, counts):
    path = made / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    refused(BakeError, "bytes", made, counts)


def test_nothing_that_stands_there_is_overwritten(made, counts, tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "mine").write_text("x")
    with pytest.raises(BakeError, match="exists already"):
        prune(made, tmp_path / "small", counts, KEPT)
    assert [path.name for path in (tmp_path / "small").iterdir()] == ["mine"]


def test_what_a_killed_maker_left_aside_comes_back_and_is_not_replaced(made, counts, tmp_path):
    old = tree.beside(tmp_path / "small", ".old")
    old.mkdir()
    (old / "mine").write_text("x")
    tree.beside(tmp_path / "small", ".lock").write_text("")
    with pytest.raises(BakeError, match=r"exists already; .*small is back"):
        prune(made, tmp_path / "small", counts, KEPT)
    assert [path.name for path in (tmp_path / "small").iterdir()] == ["mine"]


def test_how_the_source_came_to_be_does_not_go_along(made, counts, tmp_path):
    for name in ("conversion.json", "derived.json", "training.json", "data.jsonl", "kept.json"):
        (made / name).write_text("{}")
    prune(made, tmp_path / "small", counts, KEPT)
    names = {path.name for path in (tmp_path / "small").iterdir()}
    assert "kept.json" in names
    assert not names & {"conversion.json", "derived.json", "training.json", "data.jsonl"}


def test_the_texts_word_on_the_head_goes_first(made, counts, tmp_path):
    config = json.loads((made / "config.json").read_text())
    config |= {"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": False}}
    (made / "config.json").write_text(json.dumps(config))
    refused(BakeError, "the head is its own", made, counts)


def test_a_folder_within_the_source_is_refused(made, counts):
    with pytest.raises(BakeError, match="is in the source"):
        prune(made, made / "small", counts, KEPT)


def test_bfloat16_goes_through_as_its_bits(made, counts, tmp_path):
    bits = np.random.default_rng(2).integers(0, 2**16, (SIZE, 8), np.uint16)
    told = {"dtype": "BF16", "shape": bits.shape, "data_offsets": [0, bits.nbytes]}
    header = json.dumps({"model.embed_tokens.weight": told}).encode()
    size = len(header).to_bytes(8, "little")
    (made / "model.safetensors").write_bytes(size + header + bits.tobytes())
    prune(made, tmp_path / "small", counts, KEPT)
    raw = (tmp_path / "small" / "model.safetensors").read_bytes()
    assert b'"BF16"' in raw
    assert raw.endswith(bits[kept(tmp_path / "small")].tobytes())


def command(*words):
    done = [sys.executable, "-m", "bake", "prune-vocab", *map(str, words)]
    return subprocess.run(done, capture_output=True, text=True, check=False)


def test_the_verb_tells_what_it_made(made, counts, tmp_path):
    done = command(made, tmp_path / "small", "--size", KEPT, "--counts", counts, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["size"], told["original_size"], told["unreachable"]) == (KEPT, SIZE, 0)


def test_the_verb_says_in_a_line_what_is_wrong(made, counts, tmp_path):
    done = command(made, tmp_path / "small", "--size", 256, "--counts", counts)
    assert done.returncode == 1
    assert "must stay" in done.stderr
    assert "hint: say --size 320 or more" in done.stderr
    assert "Traceback" not in done.stderr
    assert command(made, tmp_path / "small").returncode == 2
    done = command(made, tmp_path / "small", "--size", "8k", "--counts", counts)
    assert done.returncode == 2
    assert "expected a whole number above 0, got '8k'" in done.stderr
