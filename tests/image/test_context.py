"""What a build gets to see is the same tar for the same files, wherever they lie."""

import io
import os
import shutil
import stat
import tarfile
from pathlib import Path

import pytest

from bake.errors import BakeError
from bake.image import context
from tests.image.checkouts import HERE, MODEL


def packed(chosen: dict[str, Path]) -> bytes:
    return b"".join(context.pack(chosen))


def some(folder: Path) -> dict[str, Path]:
    folder.mkdir()
    files = {"b": b"", "a/ünïcode and space": b"x" * 513, "run": b"#!/bin/sh\n", "c" * 150: b"1"}
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return {name: folder / name for name in files}


def test_tarfile_reads_back_what_was_packed(tmp_path):
    chosen = some(tmp_path / "a")
    with tarfile.open(fileobj=io.BytesIO(packed(chosen))) as tar:
        found = {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]
    assert found == {name: path.read_bytes() for name, path in chosen.items()}


def test_the_same_files_are_the_same_bytes_whoever_owns_them_and_when_they_were_made(tmp_path):
    one, other = some(tmp_path / "a"), some(tmp_path / "b")
    for path in other.values():
        os.utime(path, (1, 1))
        path.chmod(0o600)
        if os.geteuid() == 0:
            os.chown(path, 4711, 4711)
    assert packed(one) == packed(other)


def test_of_modes_only_that_it_can_be_run_is_kept(tmp_path):
    chosen = some(tmp_path / "a")
    chosen["run"].chmod(0o4711)
    with tarfile.open(fileobj=io.BytesIO(packed(chosen))) as tar:
        members = {one.name: one for one in tar}
    assert {stat.S_IMODE(members[name].mode) for name in chosen if name != "run"} == {0o644}
    assert members["run"].mode == 0o755
    assert {(one.uid, one.gid, one.mtime) for one in members.values()} == {(0, 0, context.THE_TIME)}


def test_a_folder_that_a_build_copies_is_there_though_nothing_is_in_it(tmp_path):
    raw = b"".join(context.pack(some(tmp_path / "a"), ["weights/derived"]))
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        first = next(iter(tar))
    assert (first.name, first.isdir(), first.mode) == ("weights/derived", True, 0o755)


def test_a_file_that_shrinks_while_it_is_read_stops_the_build(tmp_path):
    path = tmp_path / "shrinks"
    path.write_bytes(b"x" * 3 * context.CHUNK_BYTES)
    pieces = context.pack({"shrinks": path})
    next(pieces), next(pieces)
    os.truncate(path, context.CHUNK_BYTES)
    with pytest.raises(BakeError, match="became shorter while it was read"):
        list(pieces)


def test_a_file_that_grows_while_it_is_read_is_as_long_as_it_was(tmp_path):
    path = tmp_path / "grows"
    path.write_bytes(b"x" * 10)
    pieces = context.pack({"grows": path})
    first = next(pieces)
    path.write_bytes(b"x" * 100_000)
    with tarfile.open(fileobj=io.BytesIO(first + b"".join(pieces))) as tar:
        assert [one.size for one in tar] == [10]


class TestFiles:
    def test_of_models_and_roots_only_what_was_asked_for(self, tmp_path):
        for name in ("weights/tiny/a", "weights/other/a", "serve/x.py", ".cache/image/baked/k/x"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        (tmp_path / ".dockerignore").write_text("# words\n*\n!weights/other\n!serve\n!.cache\n")
        (tmp_path / "root/sub").mkdir(parents=True)
        (tmp_path / "root/sub/file").touch()
        chosen = context.files(tmp_path, ["tiny"], {"cpu/tiny/v": tmp_path / "root"})
        assert list(chosen) == [
            ".cache/image/baked/cpu/tiny/v/sub/file",
            "serve/x.py",
            "weights/tiny/a",
        ]

    def test_of_derived_weights_those_that_were_asked_for_less_what_never_goes_in(self, tmp_path):
        out = "*\n!weights/tiny\nweights/**/heldout.jsonl\n"
        (tmp_path / ".dockerignore").write_text(out)
        one = tmp_path / "weights/derived/tiny/one/deep"
        one.mkdir(parents=True)
        shutil.copytree(
            tmp_path / "weights/derived/tiny/one", tmp_path / "weights/derived/tiny/two"
        )
        for name in ("deep/a", "heldout.jsonl", "config.json"):
            (one.parent / name).touch()
        (tmp_path / "weights/derived/tiny/two/a").touch()
        assert list(context.files(tmp_path, ["derived/tiny/one"], {})) == [
            "weights/derived/tiny/one/config.json",
            "weights/derived/tiny/one/deep/a",
        ]

    def test_the_docker_command_alone_sends_the_model_of_every_checkout_and_no_other(self):
        lines = (HERE.path / ".dockerignore").read_text().splitlines()
        assert [line for line in lines if line.startswith("!weights")] == [
            f"!weights/{MODEL}",
            f"!weights/derived/{MODEL}",
        ]

    def test_nothing_of_git_tests_or_a_person_is_among_them(self):
        chosen = context.files(HERE.path, [MODEL], {})
        tops = {name.split("/")[0] for name in chosen}
        assert tops.isdisjoint({".git", ".venv", ".work", "tests", ".env", ".ci"})
        assert not [name for name in chosen if "__pycache__" in name]

    def test_a_blob_is_refused_as_an_image_cannot_decode_it(self, tmp_path):
        (tmp_path / ".dockerignore").write_text("")
        model = tmp_path / "weights" / "packed"
        model.mkdir(parents=True)
        (model / "manifest.json").write_text("{}")
        with pytest.raises(BakeError, match="weights/packed is a blob"):
            context.files(tmp_path, ["packed"], {})

    def test_a_folder_that_is_no_checkout_and_a_model_that_is_not_there(self, tmp_path):
        with pytest.raises(BakeError, match=r"\.dockerignore: No such file"):
            context.files(tmp_path, ["tiny"], {})
        with pytest.raises(BakeError, match=r"no model in .*weights/huge"):
            context.files(HERE.path, ["huge"], {})
