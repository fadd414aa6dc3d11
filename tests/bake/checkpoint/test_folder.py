"""Which files a checkpoint is made of."""

import errno
import json
import os
from pathlib import Path

import pytest

from bake.checkpoint.folder import (
    INDEXES,
    KINDS,
    MAX_CONFIG_BYTES,
    check_index,
    check_numbers,
    files_of,
    find,
    read_object,
    strays,
)
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


def test_links_of_a_download_cache_are_followed_and_hidden_files_left(tmp_path):
    real = filled(tmp_path / "blobs", "0123")
    (tmp_path / "snapshots").mkdir()
    folder = filled(tmp_path / "snapshots" / "main", ".hidden", "a.safetensors", "vocab.json")
    (folder / "tokenizer.json").symlink_to("../../blobs/0123")
    (folder / "gone.json").symlink_to("../../blobs/gone")
    (folder / "merges.txt").symlink_to("vocab.json")
    own = folder / "vocab.json"
    assert files_of(folder) == {
        "tokenizer.json": real / "0123",
        "vocab.json": own,
        "merges.txt": own,
    }
    assert strays(folder) == []


@pytest.mark.parametrize("above", ["f", "snapshots/f", "blobs/f"])
def test_a_link_that_leads_elsewhere_is_not_followed(tmp_path, above):
    (tmp_path / "secret").write_text("x")
    (folder := tmp_path / above).mkdir(parents=True)
    for name in ("notes.txt", "tokenizer.json"):
        (folder / name).symlink_to(tmp_path / "secret")
    (folder / "self.txt").symlink_to("self.txt")
    assert files_of(folder) == {}
    assert strays(folder) == ["tokenizer.json"]


@pytest.mark.parametrize("raw", ['{"a": 1, "a": 2}', '{"a": {"b": 1, "b": 1}}'])
def test_a_config_that_two_readers_take_for_two_is_refused(tmp_path, raw):
    filled(tmp_path, "a.safetensors")
    (tmp_path / "config.json").write_text(raw)
    with pytest.raises(Malformed, match=r"config.json: not JSON: a key stands twice"):
        find(tmp_path)


def test_an_index_that_says_a_thing_twice_is_refused(tmp_path):
    filled(tmp_path, "a.safetensors")
    raw = '{"weight_map": {"x": "a.safetensors", "x": "b.safetensors"}}'
    (tmp_path / SAFE).write_text(raw)
    with pytest.raises(Malformed, match="a key stands twice"):
        find(tmp_path)


def test_a_config_of_many_megabytes_is_refused_before_it_is_read(tmp_path):
    filled(tmp_path, "a.safetensors")
    (tmp_path / "config.json").write_text("{}" + " " * MAX_CONFIG_BYTES)
    with pytest.raises(Malformed, match="is larger than"):
        find(tmp_path)


@pytest.mark.parametrize(
    ("names", "whole"),
    [
        (["model-00001-of-00002"], False),
        (["model-00002-of-00002"], False),
        (["model-00001-of-00002", "model-00002-of-00002"], True),
        (["model-00000-of-00002", "model-00001-of-00002"], True),
        (["model-00001-of-000002", "other-00002-of-000002"], False),
        (["model-00001-of-00001", "adapter"], True),
    ],
)
def test_a_numbered_file_without_the_others_is_told(tmp_path, names, whole):
    found = find(filled(tmp_path, *(f"{name}.safetensors" for name in names)))
    if whole:
        check_numbers(found)
    else:
        with pytest.raises(BakeError, match=r"1 of 2 shards"):
            check_numbers(found)


def itself(folder):
    (folder / "m").symlink_to("m")
    return folder / "m"


def long(folder):
    return folder / ("m" * 300)


def pipe(folder):
    os.mkfifo(folder / "m")
    return folder / "m"


def address(_folder):
    return Path("HTTP://127.0.0.1:1/m.gguf")


@pytest.mark.parametrize(
    ("made", "told"),
    [(itself, "a link"), (long, "too long"), (pipe, "neither a plain"), (address, "is an address")],
)
def test_what_can_be_no_checkpoint_is_told_in_words(tmp_path, made, told):
    with pytest.raises(BakeError, match=told):
        find(made(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_told(tmp_path):
    folder = filled(tmp_path / "f", "a.safetensors", "config.json")
    folder.chmod(0o400)
    try:
        with pytest.raises(BakeError, match="Permission denied"):
            find(folder)
    finally:
        folder.chmod(0o700)


def test_what_the_system_refuses_is_told_in_words(tmp_path, monkeypatch):
    def refused(_path):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "config.json"))

    filled(tmp_path, "a.safetensors")
    monkeypatch.setattr(Path, "is_file", refused)
    with pytest.raises(BakeError, match=r"config.json: cannot be read: Permission denied"):
        find(tmp_path)


def test_a_pipe_blocks_nobody(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    filled(tmp_path, "a.safetensors")
    assert find(tmp_path).config == {}


def test_infinity_stands_in_configs_of_models(tmp_path):
    (tmp_path / "config.json").write_text('{"time_step_limit": [0.0, Infinity]}')
    assert read_object(tmp_path / "config.json") == {"time_step_limit": [0.0, float("inf")]}
