"""Manifests: one spelling, every bit of it covered, and whatever else comes is refused in words."""

import json
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blob import manifest
from blob.errors import BlobError, Damaged
from blob.files import check_name
from tests.blob import blobs


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("manifest") / "blob"
    blobs.packed(folder)
    return (folder / "manifest.json").read_bytes()


def resigned(raw, change):
    tree = json.loads(raw)
    change(tree)
    return blobs.signed(tree)


def refusal(raw):
    with pytest.raises(BlobError) as caught:
        manifest.parse(raw)
    return caught.value.what


def test_what_is_written_is_read_again_and_spelled_the_same(raw):
    read = manifest.parse(raw)
    assert manifest.dump(read) == raw
    assert [tensor.name for tensor in read.tensors] == sorted(t.name for t in blobs.tensors())
    assert read.size == sum(plain.array.nbytes for plain in blobs.tensors())
    assert resigned(raw, lambda tree: None) == raw


def test_the_fingerprint_is_over_names_and_weights_and_nothing_else(raw):
    read = manifest.parse(raw)
    pairs = [(tensor.name, tensor.sha256) for tensor in read.tensors]
    assert manifest.fingerprint(reversed(pairs)) == read.fingerprint
    assert manifest.fingerprint([(pairs[0][0], "0" * 64), *pairs[1:]]) != read.fingerprint


def owner(raw, position):
    """Which tensor's entry in the spelling holds ``position``; none outside of them."""
    tensors = raw.index(b'"tensors":[')
    begin = raw.rfind(b'{"codec"', tensors, position + 8)
    return json.loads(re.search(rb'"name":("[^"]*")', raw[begin:])[1]) if begin > 0 else None


def test_every_flipped_bit_is_refused_and_named(raw):
    names = [tensor.name for tensor in manifest.parse(raw).tensors]
    unnamed = wrong = 0
    for position in range(len(raw)):
        flipped = bytearray(raw)
        flipped[position] ^= 1 << position * 7 % 8
        said = refusal(bytes(flipped))
        assert said.startswith("manifest.json")
        name = owner(raw, position)
        unnamed += name is not None and name not in said
        wrong += any(f" {other}:" in said for other in names if other != name)
    # A bit of the name, or of what begins it; a quote or a bracket that lets one run into the next.
    assert unnamed < 45 * len(names)
    assert wrong < 10 * len(names)


def test_a_flip_outside_of_tensors_names_the_field_or_says_that_it_is_none_of_a_tensor(raw):
    place = raw.index(b'"recipe"') + len('"recipe":{"codec":"')
    flipped = bytearray(raw)
    flipped[place] ^= 1
    assert "something but a tensor changed" in refusal(bytes(flipped))
    flipped = raw.replace(b'"fingerprint":"', b'"fingerprint":"z', 1)
    assert refusal(flipped).startswith("manifest.json: fingerprint: ")


@pytest.mark.parametrize("cut", [0, 1, 2, 100, -1, -2, -3])
def test_a_manifest_that_was_cut_or_grew_is_refused(raw, cut):
    refusal(raw[:cut])
    refusal(raw + b" ")
    refusal(raw + b"\n")


HOSTILE = {
    "nothing": (b"", "not JSON"),
    "a list": (b"[]", "expected an object, got list"),
    "a number": (b"1", "expected an object"),
    "not UTF-8": (b'{"schema":1,"\xff":1}', "not UTF-8"),
    "UTF-16": ('{"schema":1}'.encode("utf-16"), "not UTF-8"),
    "a byte order mark": (b'\xef\xbb\xbf{"schema":1}', "BOM"),
    "a key twice": (b'{"schema":1,"schema":1}', "a key stands twice"),
    "a key twice, deep": (b'{"schema":1,"tensors":[{"a":1,"a":2}]}', "a key stands twice"),
    "NaN": (b'{"schema":1,"x":NaN}', "NaN is no number"),
    "infinity": (b'{"schema":1,"x":-Infinity}', "-Infinity is no number"),
    "a number beyond floats": (b'{"schema":1,"tensors":[{"x":1e999}]}', "beyond what a number"),
    "a million digits": (b'{"schema":' + b"1" * 10**6 + b"}", "limit"),
    "a million digits of a fraction": (b'{"schema":1.' + b"1" * 10**6 + b"}", "schema"),
    "deep lists": (b'{"schema":1,"x":' + b"[" * 10**6, "nested too deep"),
    "deep objects": (b'{"schema":1,"x":' + b'{"a":' * 10**5, "nested too deep"),
    "a newer form": (b'{"schema":2}', "form 2, this preheat reads up to 1"),
    "a far newer form": (b'{"schema":' + b"9" * 4000 + b"}", "form 9"),
    "another kind of form": (b'{"schema":"1"}', "schema"),
    "true for a form": (b'{"schema":true}', "Field required"),
    "no form": (b"{}", "recipe: Field required"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_manifest_is_refused_in_words(name):
    raw, said = HOSTILE[name]
    assert said in refusal(raw)


def test_nesting_that_can_be_read_but_not_be_spelled_again_is_refused(raw):
    # Reading and spelling have different limits: every depth between them is tried.
    for depth in [*range(100, 1100, 10), 5000]:
        nested = b"[" * depth + b"]" * depth
        refusal(b'{"schema":1,"tensors":[{"x":' + nested + b"}]}")
        refusal(b'{"schema":1,"x":' + nested + b"}")
        refusal(raw.replace(b'"params":{}', b'"params":' + nested, 1))


def set_at(*path, value):
    def change(tree):
        for key in path[:-1]:
            tree = tree[key]
        tree[path[-1]] = value

    return change


def drop(*path):
    def change(tree):
        for key in path[:-1]:
            tree = tree[key]
        del tree[path[-1]]

    return change


INT5 = "model.layers.1.int5.weight"
# Signed again, so that only what is said can be wrong.
FORGED = {
    "an unknown key": (set_at("more", value=1), "more"),
    "an unknown key of a tensor": (set_at("tensors", 4, "more", value=1), INT5),
    "a key missing": (drop("recipe"), "recipe"),
    "a tensor's key missing": (drop("tensors", 4, "shape"), f"{INT5}.shape"),
    "tensors that are none": (set_at("tensors", value={}), "tensors"),
    "a tensor that is none": (set_at("tensors", 4, value=7), "tensors.4"),
    "a path for a name": (set_at("tensors", 4, "name", value="../../etc/x"), "like a path"),
    "a hidden name": (set_at("tensors", 4, "name", value=".x"), "like a path"),
    "a control character": (set_at("tensors", 4, "name", value="a\x1b[2Jb"), "like a path"),
    "half a character": (set_at("tensors", 4, "digest", value="\ud800"), "digest"),
    "a long name": (set_at("tensors", 4, "name", value="n" * 513), "longer than 512"),
    "a number for a name": (set_at("tensors", 4, "name", value=5), "name"),
    "a negative shape": (set_at("tensors", 4, "shape", value=[-1, 256]), f"{INT5}.shape"),
    "a fraction": (set_at("tensors", 4, "shape", value=[2.0, 256]), f"{INT5}.shape"),
    "true for a number": (set_at("tensors", 4, "shape", value=[True, 256]), f"{INT5}.shape"),
    "a huge shape": (set_at("tensors", 4, "shape", value=[0, 2**62]), f"{INT5}.shape"),
    "a shape beyond 64 bits": (set_at("tensors", 4, "shape", value=[2**70]), f"{INT5}.shape"),
    "many dimensions": (set_at("tensors", 4, "shape", value=[1] * 9), f"{INT5}.shape"),
    "an unknown type": (set_at("tensors", 4, "dtype", value="F4"), "unknown dtype 'F4'"),
    "a parameter that is no number": (
        set_at("tensors", 4, "params", value={"group": "128"}),
        "params.group",
    ),
    "a digest that is none": (set_at("tensors", 4, "sha256", value="0" * 63), "sha256"),
    "a huge offset": (
        set_at("tensors", 4, "parts", "packed", "end", value=2**63),
        f"{INT5}.parts.packed.end",
    ),
    "a shard that is not listed": (
        set_at("tensors", 4, "shard", value="0" * 64),
        f"{INT5}: its shard 000000000000… is not listed",
    ),
    "a shard that nothing lies in": (
        lambda tree: tree["shards"].insert(0, {"sha256": "0" * 64, "size": 1}),
        "no tensor lies in 000000000000…",
    ),
    "a shard twice": (lambda tree: tree["shards"].insert(0, tree["shards"][0]), "stands twice"),
    "a tensor twice": (lambda tree: tree["tensors"].insert(1, tree["tensors"][1]), "stands twice"),
    "tensors out of order": (lambda tree: tree["tensors"].reverse(), "out of order"),
    "a file outside": (set_at("files", 0, "path", value="../x"), "not a plain path"),
    "an absolute file": (set_at("files", 0, "path", value="/etc/x"), "not a plain path"),
    "the manifest for a file": (set_at("files", 0, "path", value="manifest.json"), "cannot stand"),
    "a shard for a file": (set_at("files", 0, "path", value="x.safetensors"), "cannot stand"),
    "a rank below 0": (
        set_at("rank", value={"rank": -1, "world": 1, "topology": "", "model": "0" * 64}),
        "rank.rank",
    ),
    "no world": (
        set_at("rank", value={"rank": 0, "world": 0, "topology": "", "model": "0" * 64}),
        "rank.world",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_manifest_that_was_signed_again_is_judged_by_what_it_says(raw, name):
    change, said = FORGED[name]
    assert said in refusal(resigned(raw, change))


def test_a_wrong_fingerprint_is_told(raw):
    tree = json.loads(raw)
    forged = blobs.signed(tree).replace(tree["fingerprint"].encode(), b"0" * 64)
    assert "its digest is not that of its contents" in refusal(forged)


def test_other_spellings_of_the_same_are_refused(raw):
    tree = json.loads(raw)
    for other in (
        json.dumps(tree).encode(),
        json.dumps(tree, indent=1).encode(),
        raw.replace(b"scale", b"sc\\u0061le"),
        raw.rstrip(b"\n"),
    ):
        refusal(other)


def test_names_of_anybody_reach_a_terminal_as_escapes(raw):
    tree = json.loads(raw)
    tree["tensors"][4]["name"] = "a\x1b[2J\ud800é"
    said = refusal(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    assert "a\\x1b[2J\\ud800é" in said
    said.encode()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a..b", "a\\b", "a\0", "a\n", "\x9b"])
def test_names_like_paths_or_of_control_characters_are_none(name):
    with pytest.raises(ValueError, match="is no name of a tensor"):
        check_name(name)


def test_a_name_that_cannot_be_written_is_none():
    with pytest.raises(ValueError, match="not UTF-8"):
        check_name("a\ud800")
    assert check_name("model.layers.0.mlp.gate_proj.weight")
    assert check_name("blöck.0") == "blöck.0"


@given(st.data())
def test_whatever_bytes_come_only_words_come_out(raw, data):
    changed = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed)))
        cut = data.draw(st.integers(0, 40))
        changed[at : at + cut] = data.draw(
            st.binary(max_size=8) | st.sampled_from([b"1e999", b"{}", b"[]", b'"\\ud800"', b"null"])
        )
    if bytes(changed) != raw:
        refusal(bytes(changed))


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.data())
def test_whatever_stands_in_a_field_only_words_come_out(raw, data):
    tree = json.loads(raw)
    where = tree
    while isinstance(where, (dict, list)) and where:
        keys = sorted(where) if isinstance(where, dict) else range(len(where))
        key = data.draw(st.sampled_from(keys))
        if data.draw(st.booleans()) or not isinstance(where[key], (dict, list)):
            where[key] = data.draw(ANY)
            break
        where = where[key]
    try:
        forged = blobs.signed(tree)
    except (ValueError, TypeError):  # what cannot be signed at all
        forged = json.dumps(tree, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    try:
        manifest.dump(manifest.parse(forged))
    except BlobError as error:
        str(error).encode()


@pytest.mark.timeout(20)
def test_what_is_no_plain_file_is_refused_and_nothing_waits(tmp_path, raw):
    (tmp_path / "plain").write_bytes(raw)
    path = tmp_path / "manifest.json"
    for make in (
        lambda: path.symlink_to("plain"),
        lambda: os.mkfifo(path),
        path.mkdir,
        lambda: path.symlink_to("/dev/zero"),
    ):
        make()
        with pytest.raises(BlobError, match=r"manifest\.json: cannot be read: .*\nhint: is this"):
            manifest.read(tmp_path)
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    with pytest.raises(BlobError, match="No such file or directory"):
        manifest.read(tmp_path)
    with pytest.raises(BlobError, match="cannot be read"):
        manifest.read(tmp_path / "nowhere")


def test_a_manifest_too_large_to_be_one_is_not_read(tmp_path, monkeypatch, raw):
    monkeypatch.setattr(manifest, "MAX_BYTES", 100)
    (tmp_path / "manifest.json").write_bytes(raw)
    with pytest.raises(BlobError, match="larger than 100 bytes"):
        manifest.read(tmp_path)


def test_damage_tells_where_and_what_to_do():
    with pytest.raises(Damaged, match=r"nothing\nhint: copy or pack the blob again"):
        raise Damaged("x", "nothing")
