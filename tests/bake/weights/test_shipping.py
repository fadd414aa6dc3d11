"""A blob on its way to another machine: the same bytes, proven when it arrives, or not there."""

import os
import tempfile
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bake.archive import Limits
from bake.errors import BakeError
from bake.shipping import Terms
from bake.weights.shipping import export, receive
from blob.errors import BlobError
from blob.manifest import read
from blob.store import Store
from blob.verify import verify
from tests.bake.archives import archive, member, unpacked
from tests.blob import blobs
from tests.blob.blobs import content

FORCE = Terms(force=True)
FILES = {"config.json": blobs.CONFIG, "tokenizer.json": b"{}" * 100}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("here") / "tiny-int5"
    blobs.packed(folder, files=FILES)
    return folder


@pytest.fixture
def there(tmp_path):
    """PREHEAT_BLOB_ROOT of another machine, empty."""
    return tmp_path / "there"


def shipped(here, tmp_path):
    return export(here, tmp_path / "blob.tar.zst").file


def received(file, there, terms=None):
    return receive(file, there, Store(there / "store"), terms or Terms())


def names(folder):
    """What lies where blobs do, less the store and locks, which stay."""
    return [n for n in blobs.names(folder) if n != "store" and not n.endswith(".lock")]


def sound(folder):
    assert verify(folder, lambda *_: None) == []
    return True


def members(folder, name="tiny-int5"):
    listed = sorted(content(folder))
    return [member(f"{name}/{path}", (folder / path).read_bytes()) for path in listed]


def test_a_blob_arrives_as_it_was_and_is_proven(here, there, tmp_path):
    arrived = received(shipped(here, tmp_path), there)
    (root,) = arrived.roots
    assert root == there / "tiny-int5"
    assert content(root) == content(here)
    assert sound(root)
    assert all(path.stat().st_mode & 0o777 == 0o444 for path in root.iterdir())
    assert names(there) == ["tiny-int5"]


def test_equal_blobs_make_equal_archives_on_any_machine(here, there, tmp_path):
    first = export(here, tmp_path / "a")
    received(first.file, there)
    again = export(there / "tiny-int5", tmp_path / "b")
    assert first.sha256 == again.sha256
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert unpacked((tmp_path / "a").read_bytes()) == {
        f"tiny-int5/{name}": raw for name, raw in content(here).items()
    }


def test_what_arrives_shares_its_files_with_what_is_there(here, there, tmp_path):
    blobs.packed(there / "other", there / "store", files=FILES)
    received(shipped(here, tmp_path), there)
    for listed in read(here).everything:
        one, other = (there / name / listed.path for name in ("other", "tiny-int5"))
        assert one.stat().st_ino == other.stat().st_ino


def test_what_is_damaged_in_the_store_is_not_what_arrives(here, there, tmp_path):
    blobs.packed(there / "other", there / "store", files=FILES)
    for path in (there / "other").glob("*.safetensors"):
        raw = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    received(shipped(here, tmp_path), there)
    assert sound(there / "tiny-int5")
    assert verify(there / "other", lambda *_: None)


def test_a_damaged_blob_is_not_exported_and_an_archive_there_stays(tmp_path):
    folder = tmp_path / "blob"
    blobs.packed(folder)
    shard = folder / read(folder).shards[0].path
    raw = shard.read_bytes()
    blobs.place(folder, raw[:-1] + bytes([raw[-1] ^ 1]), shard.name)
    (tmp_path / "out").write_bytes(b"before")
    with pytest.raises(BlobError, match="look at all: preheat bake verify"):
        export(folder, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"before"
    blobs.place(folder, raw, shard.name)
    (folder / "more").write_bytes(b"")
    with pytest.raises(BlobError, match="more: is not in the manifest"):
        export(folder, tmp_path / "out")


def test_what_is_no_blob_is_not_exported(there, tmp_path):
    with pytest.raises(BlobError, match="cannot be read"):
        export(there, tmp_path / "out")
    assert names(tmp_path) == []


def test_a_blob_that_stands_there_is_replaced_only_by_force(here, there, tmp_path):
    file = shipped(here, tmp_path)
    blobs.packed(there / "tiny-int5", there / "store", seed=9)
    before = content(there / "tiny-int5")
    with pytest.raises(BakeError, match=r"there is a blob already\nhint: say --force"):
        received(file, there)
    assert content(there / "tiny-int5") == before
    received(file, there, FORCE)
    assert content(there / "tiny-int5") == content(here)
    assert names(there) == ["tiny-int5"]


@pytest.mark.parametrize("force", [Terms(), FORCE])
def test_what_is_somebody_elses_is_never_replaced(here, there, tmp_path, force):
    file = shipped(here, tmp_path)
    (there / "tiny-int5").mkdir(parents=True)
    (there / "tiny-int5" / "thesis").write_bytes(b"years")
    with pytest.raises(BakeError, match="tiny-int5: exists and is no blob"):
        received(file, there, force)
    assert content(there / "tiny-int5") == {"thesis": b"years"}
    (there / "tiny-int5").rename(there / "real")
    (there / "tiny-int5").symlink_to("real")
    with pytest.raises(BakeError, match="tiny-int5: exists and is no blob"):
        received(file, there, force)
    assert content(there / "real") == {"thesis": b"years"}


@pytest.mark.parametrize(
    "at",
    [
        "tiny-int5",
        "tiny-int5/store",
        ".",
        ".tiny-int5.preheat.part",
        ".tiny-int5.preheat.old",
    ],
)
def test_a_blob_goes_neither_into_a_store_nor_around_it_nor_in_its_place(here, there, tmp_path, at):
    """Nor where the maker of a blob clears things away, when one worked there before."""
    file, store = shipped(here, tmp_path), Store(there / at)
    store.put(b"abc")
    (there / ".tiny-int5.preheat.lock").touch()
    before = content(there)
    with pytest.raises(BakeError, match="tiny-int5: is not apart from the store"):
        receive(file, there, store, FORCE)
    assert content(there) == before


def test_an_archive_holds_a_blob_by_its_own_name_whatever_leads_to_it(here, tmp_path, monkeypatch):
    wanted = shipped(here, tmp_path).read_bytes()
    (tmp_path / "latest").symlink_to(here)
    (here.parent / "beside").mkdir(exist_ok=True)
    for cwd, path in (
        (here, "."),
        (here.parent / "beside", "../tiny-int5/"),
        (here.parent / "beside", "../tiny-int5/../tiny-int5"),
        (tmp_path, "latest"),
    ):
        monkeypatch.chdir(cwd)
        assert export(Path(path), tmp_path / "out").file.read_bytes() == wanted


def test_an_archive_does_not_become_a_part_of_the_blob(here, tmp_path, monkeypatch):
    monkeypatch.chdir(here)
    for folder, out in ((Path(), Path("out")), (here, here / "out"), (here, here / "deep" / "o")):
        with pytest.raises(BakeError, match=r"out|o: lies in the blob itself"):
            export(folder, out)
    assert sound(here)


@pytest.mark.parametrize("number", range(8))
def test_an_archive_with_a_changed_file_is_refused_and_nothing_is_left(
    here, there, tmp_path, number
):
    changed = members(here)
    info, raw = changed[number]
    at = len(raw) // 2
    changed[number] = member(info.name, raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
    file = archive(tmp_path / "a", *changed)
    with pytest.raises((BakeError, BlobError)) as caught:
        received(file, there)
    what = info.name.split("/", 1)[1]
    tensors = [tensor.name for tensor in read(here).tensors if f"{tensor.shard}.safe" in what]
    assert any(name in str(caught.value) for name in (what, *tensors))
    assert names(there) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda all_: all_[1:],
        lambda all_: all_[:-1],
        lambda all_: [*all_, member("tiny-int5/zzz")],
        lambda all_: [one for one in all_ if "manifest" not in one[0].name],
        lambda all_: [],
        lambda all_: [*all_, member("zzz/x")],
        lambda all_: [member("../x"), *all_],
        lambda all_: [member("/x"), *all_],
        lambda all_: [member("tiny-int5/../../x"), *all_],
        lambda all_: [*all_, all_[-1]],
        lambda all_: list(reversed(all_)),
        lambda all_: [*all_, member("tiny-int5/zz", b"", b"2", linkname="/etc/passwd")],
        lambda all_: [member(".hidden/x"), *all_],
        lambda all_: [member("a.part/x"), *all_],
        lambda all_: [member("flat"), *all_],
    ],
)
def test_an_archive_that_is_not_whole_or_more_leaves_nothing(here, there, tmp_path, change):
    file = archive(tmp_path / "a", *change(members(here)))
    with pytest.raises((BakeError, BlobError)):
        received(file, there)
    assert names(there) == []
    assert names(tmp_path) in (["a"], ["a", "there"])


def test_a_truncated_archive_and_one_with_more_behind_are_refused(here, there, tmp_path):
    raw = shipped(here, tmp_path).read_bytes()
    for bad in (raw[:-1], raw[: len(raw) // 2], b"", raw + b"x", raw + raw):
        (tmp_path / "bad").write_bytes(bad)
        with pytest.raises(BakeError):
            received(tmp_path / "bad", there)
        assert names(there) == []


def test_more_than_was_agreed_on_is_refused_before_it_is_written(here, there, tmp_path):
    file = shipped(here, tmp_path)
    with pytest.raises(BakeError, match=r"unpacks to more than 5000 bytes"):
        received(file, there, Terms(limits=Limits(total_bytes=5000)))
    bomb = archive(tmp_path / "bomb", member("x/manifest.json", bytes(200 * 2**20)))
    with pytest.raises(BakeError, match="times its size"):
        received(bomb, there)
    assert names(there) == []


def test_a_blob_goes_where_the_store_is_not(here, there, tmp_path):
    receive(shipped(here, tmp_path), there, Store(tmp_path / "far" / "store"), Terms())
    assert sound(there / "tiny-int5")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_a_mutated_archive_is_refused_cleanly_or_brings_a_sound_blob(here, data):
    with tempfile.TemporaryDirectory() as place:
        file, there = Path(place) / "a", Path(place) / "there"
        raw = bytearray(zstd.decompress(export(here, file).file.read_bytes()))
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(raw) - 1))
            cut = data.draw(st.integers(0, 4))
            raw[at : at + cut] = data.draw(st.binary(max_size=4))
        file.write_bytes(zstd.compress(bytes(raw)))
        try:
            received(file, there, Terms(limits=Limits(total_bytes=2**20)))
        except (BakeError, BlobError):
            assert names(there) == []
        else:
            assert sound(next(there / name for name in names(there)))
        assert not os.path.lexists(Path(place) / "x")
