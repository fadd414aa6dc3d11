"""Another MTP head in a copy of a checkpoint: only it changes, and only one that fits."""

import hashlib
import json
import os
import struct
from pathlib import Path

import pytest

from bake import tree
from bake.errors import BakeError
from bake.heads import swap


def write(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    header, body = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        offsets = [len(body), len(body) + len(raw)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        body += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two shards, the head in the second, a tokenizer beside them."""
    folder = tmp_path / "source"
    folder.mkdir()
    write(folder / "model-1.safetensors", {"model.norm.weight": ("BF16", [4], b"aaaaaaaa")})
    second = {
        "mtp.fc.weight": ("BF16", [2, 2], b"bbbbbbbb"),
        "model.embed.weight": ("BF16", [2], b"cccc"),
        "mtp.norm.weight": ("BF16", [2], b"dddd"),
    }
    write(folder / "model-2.safetensors", second)
    names = {"model.norm.weight": "model-1.safetensors"}
    names |= dict.fromkeys(second, "model-2.safetensors")
    index = json.dumps({"weight_map": names})
    (folder / "model.safetensors.index.json").write_text(index)
    (folder / "config.json").write_text('{"model_type": "qwen3_5_text"}')
    (folder / "tokenizer.json").write_text("{}")
    return folder


NEW = {
    "mtp.norm.weight": ("BF16", [2], b"DDDD"),
    "mtp.fc.weight": ("BF16", [2, 2], b"BBBBBBBB"),
}


def head(folder: Path, source: Path, tensors=NEW, /, **about: object) -> Path:
    path = folder / "tiny.safetensors"
    write(path, tensors)
    digests = {one.name: sha256(one) for one in source.glob("*.safetensors")}
    told = {"schema": 1, "source": digests, "head": sha256(path), **about}
    path.with_suffix(".json").write_text(json.dumps(told))
    return path


def test_only_the_heads_bytes_change(tmp_path, source):
    made = swap(source, tmp_path / "made", head(tmp_path, source))
    assert (made.tensors, made.bytes) == (2, 12)
    names = {path.name for path in (tmp_path / "made").iterdir()}
    assert names == {path.name for path in source.iterdir()}
    for name in names - {"model-2.safetensors"}:
        assert (tmp_path / "made" / name).read_bytes() == (source / name).read_bytes()
    old, new = ((one / "model-2.safetensors").read_bytes() for one in (source, tmp_path / "made"))
    assert new == old.replace(b"bbbbbbbb", b"BBBBBBBB").replace(b"dddd", b"DDDD")


def refused(tmp_path: Path, source: Path, path: Path) -> str:
    with pytest.raises(BakeError) as told:
        swap(source, tmp_path / "made", path)
    assert not (tmp_path / "made").exists()
    assert not list(tmp_path.glob(".made*"))
    return str(told.value)


def test_a_head_of_another_checkpoint_is_refused(tmp_path, source):
    path = head(tmp_path, source)
    shard = source / "model-1.safetensors"
    shard.write_bytes(shard.read_bytes().replace(b"aaaaaaaa", b"aaaaaaab"))
    assert "made for another checkpoint" in refused(tmp_path, source, path)


def test_a_head_for_other_shards_is_refused(tmp_path, source):
    path = head(tmp_path, source, source={"model.safetensors": "0" * 64})
    assert "made for model.safetensors, and the checkpoint has model-1" in refused(
        tmp_path, source, path
    )


def test_a_head_that_is_not_the_one_told_of_is_refused(tmp_path, source):
    path = head(tmp_path, source, head="0" * 64)
    assert "not the one that its .json tells of" in refused(tmp_path, source, path)


def test_a_head_without_its_json_is_refused(tmp_path, source):
    path = head(tmp_path, source)
    path.with_suffix(".json").unlink()
    assert "tiny.json" in refused(tmp_path, source, path)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"mtp.fc.weight": NEW["mtp.fc.weight"]}, "mtp.norm.weight: is not in"),
        ({**NEW, "mtp.more.weight": ("BF16", [1], b"xx")}, "mtp.more.weight: is not in"),
        ({**NEW, "mtp.norm.weight": ("BF16", [1], b"xx")}, "mtp.norm.weight is BF16 [1]"),
        ({**NEW, "mtp.norm.weight": ("F32", [1], b"xxxx")}, "mtp.norm.weight is F32 [1]"),
    ],
)
def test_a_head_of_another_shape_is_refused(tmp_path, source, tensors, said):
    assert said in refused(tmp_path, source, head(tmp_path, source, tensors))


def test_nothing_of_the_users_is_overwritten(tmp_path, source):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "mine").write_text("mine")
    with pytest.raises(BakeError, match="exists already"):
        swap(source, tmp_path / "made", head(tmp_path, source))
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["mine"]


def test_a_folder_that_a_killed_maker_left_aside_comes_back_and_is_not_replaced(tmp_path, source):
    old = tree.beside(tmp_path / "made", ".old")
    old.mkdir()
    (old / "mine").write_text("mine")
    tree.beside(tmp_path / "made", ".lock").write_text("")
    with pytest.raises(BakeError, match=r"exists already; .*made is back"):
        swap(source, tmp_path / "made", head(tmp_path, source))
    assert (tmp_path / "made" / "mine").read_text() == "mine"


def test_every_file_is_on_the_disk_before_the_folder_has_its_name(tmp_path, source, monkeypatch):
    (source / "conversion.json").write_text("{}")
    synced, fsync, put = set(), os.fsync, tree.put_in_place

    def noted(descriptor):
        synced.add(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def placed(folder):
        part = tree.beside(folder, ".part")
        assert synced == {str(part), *map(str, part.iterdir())}
        put(folder)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(tree, "put_in_place", placed)
    swap(source, tmp_path / "made", head(tmp_path, source))
    # Who has it was converted, and may be replaced by a conversion.
    assert not (tmp_path / "made" / "conversion.json").exists()
