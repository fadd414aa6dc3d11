import os
import stat
from pathlib import Path

import pytest

from bake import tree
from bake.errors import BakeError, Busy
from tests.serve.roots import fill


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "target" / "model" / "v"


def put(root: Path, suffix: str, content: bytes) -> None:
    fill(tree.beside(root, suffix) if suffix else root, {"a/b": content})


def found(root: Path) -> dict[str, bytes]:
    """What stands there, by the names of the folders."""
    return {
        path.name: (path / "a/b").read_bytes() for path in root.parent.iterdir() if path.is_dir()
    }


def test_one_maker_at_a_time_and_the_other_is_named(root: Path) -> None:
    with tree.locked(root):
        with pytest.raises(Busy, match=f"process {os.getpid()} is making it"), tree.locked(root):
            pass
        with tree.locked(root.with_name("w")):
            pass
    with tree.locked(root):
        assert tree.beside(root, ".lock").read_text() == f"{os.getpid()}\n"


def test_a_lock_that_is_a_link_is_not_written_through(root: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    root.parent.mkdir(parents=True)
    tree.beside(root, ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic link"), tree.locked(root):
        pass
    assert (tmp_path / "precious").read_text() == "x"


@pytest.mark.parametrize("said", [b"precious", b"12", b"1\n2\n", b"12\nmore", b"\xff" * 99])
def test_a_file_that_is_no_lock_is_not_written_to(root: Path, said: bytes) -> None:
    lock = tree.beside(root, ".lock")
    fill(root.parent, {lock.name: said})
    with pytest.raises(BakeError, match="is no lock of ours"), tree.locked(root):
        pass
    assert lock.read_bytes() == said


def test_what_takes_the_name_of_a_lock_blocks_nobody(root: Path) -> None:
    root.parent.mkdir(parents=True)
    os.mkfifo(tree.beside(root, ".lock"))
    with pytest.raises(BakeError, match="is no lock of ours"), tree.locked(root):
        pass


def test_the_names_of_others_are_never_a_makers(root: Path) -> None:
    for end in (".lock", ".part", ".old"):
        fill(root.parent, {f"{root.name}{end}": b"precious"})
    for _ in range(2):
        with tree.locked(root):
            assert tree.recover(root) == []
            put(root, ".part", b"new")
            tree.put_in_place(root)
    for end in (".lock", ".part", ".old"):
        assert root.with_name(f"{root.name}{end}").read_bytes() == b"precious"


def test_what_lies_in_a_makers_folder_is_known(root: Path) -> None:
    put(root, ".old", b"x")
    for path in (tree.beside(root, ".old"), tree.beside(root, ".part") / "a" / "b"):
        assert tree.is_in_work_of(path, root)
    for path in (root, root.parent, root.with_name("v.old")):
        assert not tree.is_in_work_of(path, root)


@pytest.mark.parametrize(
    ("stood", "stands", "told"),
    [
        ({"": b"r"}, {"v": b"r"}, []),
        ({"": b"r", ".part": b"p"}, {"v": b"r"}, ["removed .part"]),
        ({".part": b"p"}, {}, ["removed .part"]),
        ({".old": b"o"}, {"v": b"o"}, ["is back"]),
        ({".old": b"o", ".part": b"p"}, {"v": b"o"}, ["is back", "removed .part"]),
        ({"": b"r", ".old": b"o"}, {"v": b"r"}, ["removed .old"]),
    ],
)
def test_what_a_killed_maker_left_is_undone_and_told(
    root: Path, stood: dict[str, bytes], stands: dict[str, bytes], told: list[str]
) -> None:
    root.parent.mkdir(parents=True)
    for suffix, content in stood.items():
        put(root, suffix, content)
        tree.seal(tree.beside(root, suffix))
    said = [line.replace(f"{root.parent}/.v.preheat", "") for line in tree.recover(root)]
    assert found(root) == stands
    assert len(said) == len(told)
    assert all(words in line for words, line in zip(told, said, strict=True))


@pytest.mark.parametrize("before", [{}, {"": b"old"}])
def test_what_was_made_takes_its_place(root: Path, before: dict[str, bytes]) -> None:
    for suffix, content in {**before, ".part": b"new"}.items():
        put(root, suffix, content)
        tree.seal(tree.beside(root, suffix))
    tree.put_in_place(root)
    assert found(root) == {"v": b"new"}


def test_a_sealed_root_can_be_read_and_no_more(root: Path) -> None:
    put(root, "", b"x")
    tree.seal(root)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (root, *root.rglob("*"))}
    assert modes == {"v": 0o555, "a": 0o555, "b": 0o444}
    with tree.unsealed(root):
        (root / "manifest.sig").write_bytes(b"")
    assert stat.S_IMODE(root.stat().st_mode) == 0o555
    tree.remove(root)
    assert not root.exists()


def test_a_link_is_not_removed_nor_followed(root: Path, tmp_path: Path) -> None:
    fill(tmp_path / "outside", {"a": b"precious"})
    root.parent.mkdir(parents=True)
    root.symlink_to(tmp_path / "outside")
    with pytest.raises(BakeError, match="is a link: not removed"):
        tree.remove(root)
    assert (tmp_path / "outside" / "a").read_bytes() == b"precious"
    root.unlink()
    fill(root, {"b": b""})
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "file").symlink_to(tmp_path / "outside" / "a")
    mode = (tmp_path / "outside" / "a").stat().st_mode
    tree.seal(root)
    assert (tmp_path / "outside" / "a").stat().st_mode == mode
    tree.remove(root)
    assert (tmp_path / "outside" / "a").read_bytes() == b"precious"


def test_what_is_not_there_is_removed_without_a_word(root: Path) -> None:
    tree.remove(root)
