"""The store: equal files once, whole or not at all, and never what is no longer what it was."""

import fcntl
import hashlib
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blob.errors import BlobError
from blob.store import Kept, Store
from tests.blob.blobs import content, names


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def held(root):
    """All that a store keeps: what its lock holds is no file of a blob."""
    return {name: raw for name, raw in content(root).items() if name != "lock"}


def path_of(store, kept):
    return store.root / kept.sha256[:2] / kept.sha256[2:]


def test_a_file_is_named_by_what_it_holds_and_can_be_read_only(store):
    kept = store.put(b"abc")
    assert kept.sha256 == hashlib.sha256(b"abc").hexdigest()
    assert held(store.root) == {f"{kept.sha256[:2]}/{kept.sha256[2:]}": b"abc"}
    assert path_of(store, kept).stat().st_mode & 0o777 == 0o444


def test_equal_files_are_one_whoever_brings_them(store, tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert store.put(b"abc") == store.put_file(tmp_path / "x") == store.put(memoryview(b"abc"))
    assert len(held(store.root)) == 1


def test_a_file_in_pieces_is_kept_once_and_then_none_is_asked_for(store, tmp_path):
    kept = Kept(hashlib.sha256(b"onetwo").hexdigest(), 6)
    assert store.take(kept, iter([b"one", b"two"]))

    def none():
        raise AssertionError("asked for")
        yield b""

    assert not store.take(kept, none())
    store.link(kept, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"onetwo"


@pytest.mark.parametrize("pieces", [[b"one", b"too"], [b"one"], [b"one", b"two", b"three"], []])
def test_of_pieces_that_make_another_file_nothing_is_kept(store, tmp_path, pieces):
    kept = Kept(hashlib.sha256(b"onetwo").hexdigest(), 6)
    with pytest.raises(BlobError):
        store.take(kept, iter(pieces))
    assert [path.name for path in store.root.rglob("*") if path.is_file()] == ["lock"]


def test_nothing_and_much_can_be_kept(store):
    assert store.put(b"").size == 0
    raw = os.urandom(3 * 2**20 + 1)
    kept = store.put(raw)
    assert path_of(store, kept).read_bytes() == raw


def test_blobs_get_links_and_no_bytes(store, tmp_path):
    kept = store.put(b"abc")
    store.link(kept, tmp_path / "blob" / "deep" / "a")
    store.link(kept, tmp_path / "blob" / "b")
    inodes = {path.stat().st_ino for path in (tmp_path / "blob").rglob("*") if path.is_file()}
    assert inodes == {path_of(store, kept).stat().st_ino}


def test_what_stands_there_is_not_replaced_by_a_link(store, tmp_path):
    (tmp_path / "a").write_bytes(b"before")
    with pytest.raises(BlobError, match="a: cannot be written: File exists"):
        store.link(store.put(b"abc"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"before"


@pytest.mark.parametrize("damage", [b"abd", b"ab", b"", b"abcd"])
def test_a_file_that_was_damaged_is_written_again_and_not_shared(store, tmp_path, damage):
    kept = store.put(b"abc")
    path = path_of(store, kept)
    path.chmod(0o644)
    path.write_bytes(damage)
    store.put(b"abc")
    store.link(kept, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"abc"


@pytest.mark.timeout(20)
def test_what_took_the_name_of_a_file_is_replaced_and_not_waited_for(store, tmp_path):
    kept = store.put(b"abc")
    path = path_of(store, kept)
    (tmp_path / "other").write_bytes(b"abc")
    for make in (lambda: os.mkfifo(path), lambda: path.symlink_to(tmp_path / "other")):
        path.unlink()
        make()
        store.put(b"abc")
        assert path.is_file()
        assert not path.is_symlink()
        assert path.read_bytes() == b"abc"


def test_what_arrives_is_shared_with_what_is_there(store, tmp_path):
    kept = store.put(b"abc")
    (tmp_path / "a").write_bytes(b"abc")
    store.adopt(kept, tmp_path / "a")
    assert (tmp_path / "a").stat().st_ino == path_of(store, kept).stat().st_ino
    other = Store(tmp_path / "other")
    other.adopt(kept, tmp_path / "a")
    assert path_of(other, kept).stat().st_ino == (tmp_path / "a").stat().st_ino


def test_what_arrives_takes_the_place_of_what_was_damaged(store, tmp_path):
    kept = store.put(b"abc")
    path_of(store, kept).chmod(0o644)
    path_of(store, kept).write_bytes(b"abd")
    (tmp_path / "a").write_bytes(b"abc")
    store.adopt(kept, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == path_of(store, kept).read_bytes() == b"abc"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/etc/passwd")])
def test_only_plain_files_are_kept(store, tmp_path, make):
    make(tmp_path / "x")
    with pytest.raises(BlobError, match=r"x: cannot be read: "):
        store.put_file(tmp_path / "x")
    assert names(store.root) == []


def test_many_at_once_end_with_one_file_each_that_all_share(store, tmp_path):
    raws = [bytes([number]) * 10**5 for number in range(8)] * 8

    def put(number):
        kept = store.put(raws[number])
        store.link(kept, tmp_path / str(number))
        return kept, (tmp_path / str(number)).stat().st_ino

    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(put, range(len(raws))))
    assert len(set(kept)) == 8
    assert sorted(held(store.root).values()) == sorted(set(raws))


def test_a_sweep_takes_what_no_blob_links_to_and_what_killed_writers_left(store, tmp_path):
    used, unused = store.put(b"used"), store.put(b"unused")
    store.link(used, tmp_path / "a")
    left = path_of(store, used).with_name(".arriving-x")
    left.write_bytes(b"half")
    assert store.sweep() == len(b"unused") + len(b"half")
    assert set(held(store.root).values()) == {b"used"}
    assert not path_of(store, unused).exists()
    assert store.sweep() == 0


def test_nothing_is_swept_while_a_blob_is_written(store):
    script = (
        "import sys; from pathlib import Path; from blob.store import Store\n"
        "print(Store(Path(sys.argv[1])).sweep(), flush=True)"
    )
    with store.in_use():
        store.put(b"abc")
        sweeping = subprocess.Popen(
            [sys.executable, "-c", script, store.root], stdout=subprocess.PIPE, text=True
        )
        with pytest.raises(subprocess.TimeoutExpired):
            sweeping.communicate(timeout=1.5)
        assert b"abc" in content(store.root).values()
    assert sweeping.communicate()[0] == "3\n"


def test_writers_do_not_wait_for_each_other(store):
    with store.in_use(), store.in_use(), open(store.root / "lock") as file:  # noqa: PTH123
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_a_link_for_a_lock_is_not_followed(store, tmp_path):
    store.root.mkdir()
    (store.root / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BlobError, match="no store: "), store.in_use():
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_for_a_store_is_told(tmp_path):
    (tmp_path / "store").write_bytes(b"")
    store = Store(tmp_path / "store")
    with pytest.raises(BlobError, match="no store: "), store.in_use():
        pass
    with pytest.raises(BlobError, match="no store: File exists"):
        store.put(b"abc")


def repository(folder):
    """What a store's files could be taken for: loose objects of git, and one of 62 digits."""
    made = ("ab/" + "1" * 38, "ab/" + "2" * 62, "pack/x.pack", "cd/.arriving-1", "xy/" + "3" * 62)
    for name in made:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"somebody's")
    return folder


@pytest.mark.parametrize("lock", [None, b"", b"1234\n"])
def test_a_folder_of_somebody_elses_is_no_store_and_nothing_in_it_changes(tmp_path, lock):
    folder = repository(tmp_path / "objects")
    if lock is not None:
        (folder / "lock").write_bytes(lock)
    (tmp_path / "x").write_bytes(b"abc")
    store, before = Store(folder), content(tmp_path)
    for use in (
        store.sweep,
        lambda: store.put(b"abc"),
        lambda: store.adopt(Kept(hashlib.sha256(b"abc").hexdigest(), 3), tmp_path / "x"),
        lambda: store.in_use().__enter__(),
    ):
        with pytest.raises(BlobError, match=r"objects: no store: .*\nhint: choose another"):
            use()
        assert content(tmp_path) == before


def test_a_sweep_takes_only_what_writers_of_a_store_make(store):
    unused = store.put(b"unused")
    repository(store.root)
    (store.root / "ab" / ("4" * 62)).mkdir()
    (store.root / "ef").symlink_to("xy")
    store.sweep()
    assert not path_of(store, unused).exists()
    stay = ["ab/" + "1" * 38, "lock", "pack/x.pack", "xy/" + "3" * 62]
    assert sorted(content(store.root)) == stay


def test_a_folder_that_is_no_store_is_not_made_one_by_a_sweep(tmp_path):
    for folder in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(BlobError, match="no store: "):
            Store(folder).sweep()
        (tmp_path / "empty").mkdir(exist_ok=True)
    assert names(tmp_path) == ["empty"]


def test_an_empty_folder_becomes_a_store_though_a_writer_was_killed_there(store):
    store.root.mkdir()
    for part in (b"", b"preheat b"):
        (store.root / "lock").write_bytes(part)
        with store.in_use():
            assert (store.root / "lock").read_bytes() == b"preheat blob store 1\n"


def test_a_store_that_cannot_be_locked_is_told(store, monkeypatch):
    store.put(b"abc")

    def refused(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    for use in (store.sweep, lambda: store.in_use().__enter__()):
        with pytest.raises(BlobError, match="cannot be locked: No locks available"):
            use()


def test_who_first_uses_a_store_at_once_with_others_finds_it_theirs(tmp_path):
    for number in range(30):
        root = tmp_path / str(number)
        with ThreadPoolExecutor(8) as pool:
            kept = list(pool.map(lambda _, root=root: Store(root).put(b"abc"), range(8)))
        assert len(set(kept)) == len(held(root)) == 1


def test_what_cannot_be_swept_is_told(store, monkeypatch):
    store.put(b"abc")

    def refused(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(BlobError, match="cannot be swept: Permission denied"):
        store.sweep()


@pytest.mark.parametrize("damage", [None, b"abd"])
def test_what_is_adopted_is_at_no_time_missing(store, tmp_path, damage):
    """Neither in the blob nor in the store, whoever links to it meanwhile."""
    kept = store.put(b"abc")
    ends, missed = threading.Event(), []

    def look():
        while not ends.is_set():
            missed.extend(p for p in (path_of(store, kept), tmp_path / "a") if not p.exists())

    (tmp_path / "a").write_bytes(b"abc")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(look)
        for _ in range(200):
            if damage:
                replaced(path_of(store, kept), damage)
            else:
                replaced(tmp_path / "a", b"abc")
            store.adopt(kept, tmp_path / "a")
            store.adopt(kept, tmp_path / "a")
        ends.set()
    assert missed == []
    assert held(store.root) == {f"{kept.sha256[:2]}/{kept.sha256[2:]}": b"abc"}
    assert names(tmp_path) == ["a", "store"]


def replaced(path, raw):
    beside = path.with_name("beside")
    beside.write_bytes(raw)
    beside.replace(path)


@pytest.fixture
def other_disk(tmp_path):
    """A real file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_blob_on_another_disk_gets_copies_and_those_are_whole_or_not_there(store, other_disk):
    small, large = store.put(b"abc"), store.put(os.urandom(2 * 2**20))
    store.link(small, other_disk / "a")
    assert (other_disk / "a").read_bytes() == b"abc"
    assert (other_disk / "a").stat().st_mode & 0o777 == 0o444
    with pytest.raises(BlobError, match="b: cannot be written: No space left on device"):
        store.link(large, other_disk / "b")
    with pytest.raises(BlobError, match="a: cannot be written: File exists"):
        store.link(large, other_disk / "a")
    assert content(other_disk) == {"a": b"abc"}
    # No link says that the store's file is in use, and none is: the blob has its own.
    store.sweep()
    assert content(other_disk) == {"a": b"abc"}


def test_what_arrives_on_another_disk_stays_there(store, other_disk):
    (other_disk / "a").write_bytes(b"abc")
    kept = Store(other_disk / "s").put(b"abc")
    store.adopt(kept, other_disk / "a")
    assert (other_disk / "a").read_bytes() == b"abc"


@pytest.mark.parametrize("size", [2**20 - 1, 2**20, 3 * 2**20])
def test_a_full_disk_is_told_and_nothing_half_written_stays(tmp_path, other_disk, size):
    store = Store(other_disk)
    kept = store.put(b"abc")
    (tmp_path / "x").write_bytes(os.urandom(size))
    for put in (
        lambda: store.put((tmp_path / "x").read_bytes()),
        lambda: store.put_file(tmp_path / "x"),
    ):
        with pytest.raises(BlobError, match=r"No space left on device\nhint: make room"):
            put()
        assert held(other_disk) == {f"{kept.sha256[:2]}/{kept.sha256[2:]}": b"abc"}


def test_a_read_only_disk_is_told(other_disk):
    subprocess.run(["mount", "-o", "remount,ro", other_disk], check=True)
    with pytest.raises(BlobError, match="Read-only file system"):
        Store(other_disk).put(b"abc")
    with pytest.raises(BlobError, match="Read-only file system"), Store(other_disk / "x").in_use():
        pass
