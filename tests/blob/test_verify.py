"""All that is wrong with a blob, by tensor and file; and what differs between two."""

import os

import pytest

from blob.blob import Blob
from blob.errors import BlobError
from blob.manifest import read
from blob.verify import Fault, diff, require_sound, verify
from tests.blob import blobs

FILES = {"config.json": blobs.CONFIG, "tokenizer.json": b"{}", "sub/chat.jinja": b"{{ x }}"}


@pytest.fixture
def folder(tmp_path):
    blobs.packed(tmp_path / "blob", files=FILES)
    return tmp_path / "blob"


def faults(folder, threads=2):
    return [str(fault) for fault in verify(folder, lambda *_: None, threads)]


def flip(folder, name, position):
    raw = bytearray((folder / name).read_bytes())
    raw[position] ^= 16
    blobs.place(folder, bytes(raw), name)


@pytest.mark.parametrize("threads", [1, 3, None])
def test_a_sound_blob_has_no_faults_and_progress_ends_at_all_of_it(folder, threads):
    told = []
    assert verify(folder, lambda *both: told.append(both), threads) == []
    assert told[-1][0] == told[-1][1] == read(folder).size


@pytest.mark.parametrize("name", FILES)
def test_every_bit_of_every_file_beside_the_tensors_counts(folder, name):
    for position in range(len(FILES[name])):
        flip(folder, name, position)
        (said,) = faults(folder)
        assert said.startswith(f"{name}: sha256 differs")
        flip(folder, name, position)
    assert faults(folder) == []


def test_opening_a_blob_does_not_read_the_files_beside_the_tensors(folder):
    """A load proves tensors; files are compared by ``preheat bake verify``."""
    flip(folder, "config.json", 3)
    assert Blob.open(folder)


def test_all_faults_are_told_not_only_the_first(folder):
    tensors = {tensor.codec: tensor for tensor in read(folder).tensors}
    for codec in ("int5", "q8_0", "zipnn"):
        flip(folder, f"{tensors[codec].shard}.safetensors", -1 if codec == "q8_0" else -300)
    flip(folder, "tokenizer.json", 0)
    (folder / "more").write_bytes(b"")
    (folder / "sub" / "link").symlink_to("/etc/passwd")
    said = "\n".join(faults(folder))
    assert said.count("sha256 differs (expected") >= 4
    assert said.count(".weight: ") >= 3
    assert "tokenizer.json: sha256 differs" in said
    assert "more: is not in the manifest" in said
    assert "sub/link: is not in the manifest" in said


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "is missing"),
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
        (os.mkfifo, "cannot be read: not a plain file"),
        (lambda path: path.symlink_to("/dev/zero"), "cannot be read: "),
        (lambda path: path.write_bytes(blobs.CONFIG + b" "), "bytes, got"),
    ],
)
def test_a_file_that_is_not_what_was_written_is_told(folder, make, said):
    (folder / "config.json").unlink()
    make(folder / "config.json")
    (fault,) = [one for one in faults(folder) if one.startswith("config.json")]
    assert said in fault


def test_damage_to_the_manifest_or_a_header_is_one_fault(folder):
    flip(folder, "manifest.json", 300)
    (said,) = faults(folder)
    assert said.startswith("manifest.json")
    flip(folder, "manifest.json", 300)
    shard = read(folder).shards[0].path
    flip(folder, shard, 20)
    (said,) = faults(folder)
    assert said.startswith(shard)


def test_names_of_anybody_reach_a_terminal_as_escapes(folder):
    (folder / os.fsdecode(b"\x1b[2J\xff\n")).write_bytes(b"")
    (said,) = faults(folder)
    assert said.encode() == b"\\x1b[2J\\udcff\\n: is not in the manifest"


def test_what_is_no_blob_or_a_newer_one_cannot_be_looked_at(folder, tmp_path):
    with pytest.raises(BlobError, match="cannot be read"):
        verify(tmp_path, lambda *_: None)
    blobs.place(folder, b'{"schema":2}\n')
    with pytest.raises(BlobError, match="use a newer preheat"):
        verify(folder, lambda *_: None)


def test_who_requires_a_sound_blob_is_told_the_first_fault_and_how_many(tmp_path):
    require_sound([], tmp_path)
    with pytest.raises(BlobError, match=r"a: b \(and 1 more\)\nhint: look at all"):
        require_sound([Fault("a", "b"), Fault("c", "d")], tmp_path)


def changes(a, b):
    return [str(change) for change in diff(read(a), read(b))]


def test_equal_blobs_do_not_differ(folder, tmp_path):
    blobs.packed(tmp_path / "again", tmp_path / "other", files=FILES)
    assert changes(folder, tmp_path / "again") == []


def test_what_differs_is_told_by_tensor_and_file(tmp_path):
    x, y = blobs.bfloats(2, 256), blobs.bfloats(2, 256, seed=1)

    def one(name, files, *plains, **about):
        blobs.packed(tmp_path / name, plains=list(plains), files=files)
        return tmp_path / name

    a = one(
        "a",
        {"config.json": b"1", "gone.json": b""},
        blobs.plain("gone.weight", x),
        blobs.plain("other.weight", x, codec="q6_k"),
        blobs.plain("same.weight", x),
        blobs.plain("stored.weight", x),
        blobs.plain("values.weight", x),
    )
    b = one(
        "b",
        {"config.json": b"2", "new.json": b""},
        blobs.plain("new.weight", x, codec="int5"),
        blobs.plain("other.weight", x, codec="q4_k"),
        blobs.plain("same.weight", x),
        blobs.plain("stored.weight", x, codec="zipnn"),
        blobs.plain("values.weight", y),
    )
    told = changes(a, b)
    assert told[:3] == ["config.json: changed", "gone.json: removed", "new.json: added"]
    assert [line.split(": ")[0] for line in told[3:]] == [
        "gone.weight", "new.weight", "other.weight", "stored.weight", "values.weight"
    ]  # fmt: skip
    by_name = {line.split(": ")[0]: line for line in told}
    assert by_name["gone.weight"] == "gone.weight: removed: BF16 [2, 256] as raw"
    assert by_name["new.weight"] == "new.weight: added: BF16 [2, 256] as int5"
    assert "codec q6_k → q4_k" in by_name["other.weight"]
    assert "weights " in by_name["other.weight"]
    assert by_name["stored.weight"].endswith("stored otherwise, the same weights")
    assert changes(b, a)[3] == "gone.weight: added: BF16 [2, 256] as raw"
    assert changes(a, a) == []
