"""Opening a blob: what is damaged, missing or not what it seems is refused before it is read."""

import json
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest

from blob.blob import Blob
from blob.errors import BlobError
from blob.manifest import is_blob
from blob.reconstruct import stream
from blob.verify import verify
from tests.blob import blobs


@pytest.fixture
def folder(tmp_path):
    blobs.packed(tmp_path / "blob")
    return tmp_path / "blob"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "blob"
    blobs.packed(folder)
    return folder


def refusal(folder):
    """What is said when all of a blob is asked for; nothing may be given that is not sound."""
    with pytest.raises(BlobError) as caught:
        list(stream(Blob.open(folder), threads=1))
    str(caught.value).encode()
    return caught.value.what


def shard_with(folder, name):
    """The digest of the shard that holds the tensor."""
    return blobs.entry_of(blobs.tree_of(folder), name)["shard"]


INT5 = "model.layers.1.int5.weight"


def test_a_blob_opens_with_the_parts_that_were_written(sound):
    blob = Blob.open(sound)
    assert is_blob(sound)
    for tensor in blob.manifest.tensors:
        for key, part in blob.parts(tensor).items():
            stored = tensor.parts[key]
            assert part.shape == tuple(stored.shape)
            assert part.nbytes == stored.size == len(blob.raw(tensor, stored))


def test_what_a_consumer_writes_into_a_mapped_part_reaches_no_file(folder):
    before = blobs.content(folder)
    blob = Blob.open(folder)
    (scale,) = [tensor for tensor in blob.manifest.tensors if tensor.name == "scale"]
    blob.part(scale, "")[...] = 7
    assert blobs.content(folder) == before
    assert verify(folder, lambda *_: None) == []


def test_what_is_no_blob_is_told(tmp_path):
    with pytest.raises(BlobError, match=r"cannot be read: No such file"):
        Blob.open(tmp_path)
    assert not is_blob(tmp_path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path, _: None, "is missing"),
        (lambda path, raw: path.write_bytes(raw[:-1]), "bytes, got"),
        (lambda path, raw: path.write_bytes(raw[:7]), "bytes, got 7"),
        (lambda path, raw: path.write_bytes(b""), "bytes, got 0"),
        (lambda path, raw: path.write_bytes(raw + b"x"), "bytes, got"),
        (lambda path, raw: path.mkdir(), "cannot be read: Is a directory"),
        (lambda path, raw: os.mkfifo(path), "cannot be read: not a plain file"),
        (lambda path, raw: path.symlink_to("/dev/zero"), "cannot be read: "),
        (lambda path, raw: path.symlink_to("/etc/passwd"), "cannot be read: "),
        (lambda path, raw: path.symlink_to(path), "cannot be read: "),
    ],
)
def test_a_shard_that_is_not_the_file_that_was_written_is_refused_with_a_tensor_of_it(
    folder, make, said
):
    digest = shard_with(folder, INT5)
    path = folder / f"{digest}.safetensors"
    raw = path.read_bytes()
    path.unlink()
    make(path, raw)
    what = refusal(folder)
    assert f"{digest}.safetensors" in what
    assert said in what
    assert f"it holds {INT5} and " in what


def test_a_shard_of_nothing_is_refused(folder):
    new = blobs.reshard(folder, shard_with(folder, INT5), b"")
    assert f"{new}.safetensors: is empty" in refusal(folder)


def test_a_shard_in_the_place_of_another_is_refused(folder):
    one, other = shard_with(folder, INT5), shard_with(folder, "scale")
    raws = [(folder / f"{digest}.safetensors").read_bytes() for digest in (other, one)]
    for digest, raw in zip((one, other), raws, strict=True):
        blobs.place(folder, raw, f"{digest}.safetensors")
    assert "bytes, got" in refusal(folder)


def test_a_manifest_that_is_a_link_or_a_pipe_is_refused(folder):
    raw = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").rename(folder / "other.json")
    (folder / "manifest.json").symlink_to("other.json")
    assert "cannot be read" in refusal(folder)
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")
    assert "cannot be read: not a plain file" in refusal(folder)
    assert raw


def header_change(change, data=lambda raw: raw):
    """A forgery: the header of the int5 tensor's shard is another, its digests fit."""

    def forge(folder):
        digest = shard_with(folder, INT5)
        header, raw = blobs.header_of((folder / f"{digest}.safetensors").read_bytes())
        change(header)
        blobs.reshard(folder, digest, blobs.shard_of(header, data(raw)))

    return forge


def manifest_change(change):
    return lambda folder: blobs.changed(folder, lambda tree: change(blobs.entry_of(tree, INT5)))


def rename(header):
    header["y"] = header.pop(f"{INT5}_packed")


def swap(header):
    packed, scale = header[f"{INT5}_packed"], header[f"{INT5}_scale"]
    packed["dtype"], packed["shape"] = "U8", [packed["shape"][0], packed["shape"][1] * 4]
    assert scale


def long_header(header):
    header["__metadata__"] = {"x": "x" * 10**5}


FORGED = {
    "a part under another name": (header_change(rename), "expected I32"),
    "a part of another type": (header_change(swap), f"{INT5}: {INT5}_packed: expected I32"),
    "an array more": (
        header_change(
            lambda h: h.update(zzz={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]})
        ),
        "holds zzz, which the manifest does not list",
    ),
    "data behind": (header_change(lambda h: None, lambda raw: raw + b"x"), "bytes of data"),
    "data missing": (header_change(lambda h: None, lambda raw: raw[:-1]), "bytes of data"),
    "a long header": (header_change(long_header), "no safetensors file: header of"),
    "an unknown codec": (
        manifest_change(lambda e: e.update(codec="int6")),
        f"{INT5}: unknown codec 'int6'",
    ),
    "a module for a codec": (
        manifest_change(lambda e: e.update(codec="__init__")),
        f"{INT5}: unknown codec",
    ),
    "another codec": (
        manifest_change(lambda e: e.update(codec="q6_k", params={})),
        f"{INT5}: q6_k makes",
    ),
    "another codec of the same parts": (
        manifest_change(lambda e: e.update(codec="int4", params={"group": 128})),
        f"{INT5}: int4 makes",
    ),
    "other parameters": (
        manifest_change(lambda e: e.update(params={"group": 64})),
        f"{INT5}: int5 makes",
    ),
    "unknown parameters": (
        manifest_change(lambda e: e.update(params={"bits": 5})),
        f"{INT5}: codec int5 takes the parameters ['group'], got ['bits']",
    ),
    "a group of nothing": (
        manifest_change(lambda e: e.update(params={"group": 0})),
        f"{INT5}: codec int5:",
    ),
    "another shape": (manifest_change(lambda e: e.update(shape=[256, 2])), "does not hold"),
    "a shape of the same size": (manifest_change(lambda e: e.update(shape=[1, 512])), "makes"),
    "a shape of nothing": (manifest_change(lambda e: e.update(shape=[0, 2**40])), "makes"),
    "another type": (manifest_change(lambda e: e.update(dtype="F16")), "does not hold F16"),
    "offsets elsewhere": (
        manifest_change(lambda e: e["parts"]["scale"].update(begin=0, end=8)),
        f"{INT5}: {INT5}_scale: expected",
    ),
    "other weights": (
        manifest_change(lambda e: e.update(sha256="0" * 64)),
        f"{INT5}: weights: sha256 differs (expected 000000000000…",
    ),
    "other stored bytes": (
        manifest_change(lambda e: e.update(stored_blake3="0" * 64)),
        f"{INT5}: stored bytes: blake3 differs",
    ),
    "another shard": (
        lambda folder: blobs.changed(
            folder,
            lambda tree: blobs.entry_of(tree, INT5).update(
                shard=blobs.entry_of(tree, "scale")["shard"]
            ),
        ),
        INT5,
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_blob_whose_digests_fit_is_refused_in_words(folder, name):
    forge, said = FORGED[name]
    forge(folder)
    assert said in refusal(folder)


@pytest.mark.parametrize("codec", blobs.CODECS)
@pytest.mark.parametrize("kind", ["nothing", "ones", "random"])
def test_any_stored_bytes_with_fitting_digests_give_words_or_numbers_and_never_more(
    folder, codec, kind
):
    """Somebody can pack anything: what a decoder meets then must not lead it out of its arrays."""
    blob = Blob.open(folder)
    (tensor,) = [t for t in blob.manifest.tensors if f".{codec}." in t.name]
    raw = bytearray((folder / f"{tensor.shard}.safetensors").read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    random = np.random.default_rng(len(codec))
    for part in tensor.parts.values():
        some = random.integers(0, 256, part.size).astype(np.uint8).tobytes()
        bad = {"nothing": bytes(part.size), "ones": b"\xff" * part.size, "random": some}[kind]
        raw[start + part.begin : start + part.end] = bad
    blobs.reshard(folder, tensor.shard, bytes(raw))

    def digests(tree):
        from blake3 import blake3

        opened = Blob.open(folder)
        entry = blobs.entry_of(tree, tensor.name)
        (one,) = [t for t in opened.manifest.tensors if t.name == tensor.name]
        parts = sorted(opened.parts(one).items(), key=lambda item: (item[1].nbytes, item[0]))
        entry["stored_blake3"] = blake3(b"".join(p.tobytes() for _, p in parts)).hexdigest()

    blobs.changed(folder, digests)
    said = refusal(folder)
    assert tensor.name in said
    assert "weights: sha256 differs" in said or codec in ("zipnn", "raw")


@pytest.mark.timeout(60)
def test_a_shard_of_a_hundred_megabytes_of_header_takes_no_memory(tmp_path):
    """Measured in a process of its own: half a gigabyte of addresses must do for numpy and all."""
    folder = tmp_path / "blob"
    raw = blobs.plain("x.weight", blobs.bfloats(2, 2))
    blobs.packed(folder, plains=[raw])
    one = b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    header = b"{" + b",".join(one % number for number in range(10**6)) + b"}"
    blobs.reshard(folder, shard_with(folder, "x.weight"), blobs.shard_of(header))
    script = (
        "import resource, sys; from pathlib import Path; from blob.blob import Blob\n"
        "from blob.errors import BlobError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: Blob.open(Path(sys.argv[1]))\n"
        "except BlobError as error: print(error.what)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, folder], capture_output=True, text=True, check=True
    )
    said, grown = done.stdout.strip().split("\n")
    assert "header of " in said
    assert int(grown) < 32 * 1024
    assert resource


def test_a_blob_can_be_moved_and_read_from_anywhere(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy" / "deep")
    assert list(stream(Blob.open(tmp_path / "copy" / "deep"), threads=1))


def test_its_manifest_is_plain_json_that_others_can_read(sound):
    tree = json.loads((sound / "manifest.json").read_text())
    assert tree["schema"] == 1
    assert {entry["codec"] for entry in tree["tensors"]} == set(blobs.CODECS)
