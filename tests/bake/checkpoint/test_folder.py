"""Which files a checkpoint is made of."""

import json
import os

import pytest

from bake.checkpoint.folder import INDEXES, KINDS, check_index, files_of, find, read_object
from bake.errors import BakeError, Malformed

SAFE, TORCH = INDEXES


def filled(folder, *names, **index):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")
    for name, listed in index.items():
        (folder / name).write_text(json.dumps({"weight_map": listed}))
    return folder


def names(found):
    return [path.name for path in found.weights]


def test_a_file_is_a_checkpoint_and_takes_only_what_belongs_to_a_model(tmp_path):
    filled(tmp_path, "m.gguf", "tokenizer.json", "secrets.txt", "notes.json", "merges.txt")
    found = find(tmp_path / "m.gguf")
    assert names(found) == ["m.gguf"]
    assert sorted(found.files) == ["merges.txt", "tokenizer.json"]


@pytest.mark.parametrize("first", range(len(KINDS)))
def test_of_several_kinds_the_first_is_the_checkpoint(tmp_path, first):
    every = [f"w{kind.suffixes[0]}" for kind in KINDS]
    found = find(filled(tmp_path, *every[first:]))
    assert names(found) == [every[first]]
    assert sorted(found.beside) == sorted(every[first + 1 :])


def test_the_index_says_which_files_count(tmp_path):
    filled(tmp_path, "a.safetensors", "b.safetensors", "consolidated.safetensors")
    (tmp_path / SAFE).write_text(json.dumps({"weight_map": {"x": "a.safetensors"}}))
    found = find(tmp_path)
    assert names(found) == ["a.safetensors"]
    assert found.beside == ("b.safetensors", "consolidated.safetensors")
    assert not found.missing


def test_what_the_index_lists_and_nobody_has_is_missing(tmp_path):
    (tmp_path / TORCH).write_text(json.dumps({"weight_map": {"x": "a.bin", "y": "b.bin"}}))
    found = find(filled(tmp_path, "a.bin"))
    assert found.missing == ("b.bin",)
    with pytest.raises(BakeError, match=r"1 tensors of the index are in no shard, first y"):
        check_index(found, {"x": 1})


def test_an_index_without_any_of_its_files_is_still_the_checkpoint(tmp_path):
    (tmp_path / SAFE).write_text(json.dumps({"weight_map": {"x": "a.safetensors"}}))
    assert find(filled(tmp_path, "m.gguf")).missing == ("a.safetensors",)


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "", "..", "a/b.safetensors"])
def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    (tmp_path / SAFE).write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(Malformed, match="no file of the folder"):
        find(filled(tmp_path, "a.safetensors"))


@pytest.mark.parametrize("told", ["[]", '{"weight_map": 1}', '{"weight_map": {"x": 1}}', "{", ""])
def test_an_index_that_is_none_is_refused(tmp_path, told):
    (tmp_path / SAFE).write_text(told)
    with pytest.raises(Malformed, match=SAFE):
        find(filled(tmp_path, "a.safetensors"))


def test_optimizers_are_no_weights(tmp_path):
    filled(tmp_path, "pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth")
    assert names(find(tmp_path)) == ["pytorch_model.bin"]


def test_nothing_there_is_told(tmp_path):
    with pytest.raises(BakeError, match="no such file"):
        find(tmp_path / "nowhere")
    with pytest.raises(BakeError, match="no weights"):
        find(filled(tmp_path, "config.txt"))


def test_a_config_of_a_hundred_brackets_ends_in_words(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("[" * 100_000)
    with pytest.raises(Malformed, match="not JSON"):
        read_object(path)
    path.write_text("{}" + " " * 100)
    with pytest.raises(Malformed, match="larger than 50 bytes"):
        read_object(path, 50)


def test_links_are_followed_and_hidden_files_left(tmp_path):
    real = filled(tmp_path / "real", "tokenizer.json")
    folder = filled(tmp_path / "f", ".hidden", "a.safetensors")
    (folder / "tokenizer.json").symlink_to(real / "tokenizer.json")
    (folder / "gone.json").symlink_to(real / "gone.json")
    assert files_of(folder) == {"tokenizer.json": real / "tokenizer.json"}


def test_a_pipe_blocks_nobody(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    filled(tmp_path, "a.safetensors")
    assert find(tmp_path).config == {}
