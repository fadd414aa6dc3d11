"""Shards' headers: only what can be read in one way is read, and only what the manifest says."""

import json
import struct

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from blob.errors import BlobError, Damaged
from blob.header import MAX_HEADER_BYTES
from blob.layout import check_parts, header_limit, read_header
from blob.manifest import Stored, Tensor
from tests.blob.blobs import shard_of


def read(raw, most=MAX_HEADER_BYTES):
    return read_header(memoryview(raw), len(raw), "s.safetensors", most)


def refusal(raw):
    with pytest.raises(Damaged) as caught:
        read(raw)
    assert caught.value.where.startswith("s.safetensors")
    return caught.value.detail


def array(begin, end, dtype="U8", shape=None):
    shape = [end - begin] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_what_the_library_writes_is_read_with_its_places_and_metadata_is_passed_over():
    arrays = {"b": np.arange(6, dtype=np.int16).reshape(2, 3), "a": np.array(1.5, np.float32)}
    raw = safetensors.numpy.save(arrays, metadata={"format": "pt"})
    header = read(raw)
    assert header.arrays.keys() == {"a", "b"}
    for name, one in header.arrays.items():
        stored = raw[header.start + one.begin : header.start + one.end]
        assert stored == arrays[name].tobytes()
        assert one.shape == list(arrays[name].shape)


def test_numbers_empty_arrays_and_no_arrays_at_all_are_read():
    header = {"none": array(0, 0, shape=[0, 7]), "one": array(0, 4, "F32", []), "x": array(4, 5)}
    read_ = read(shard_of(header, b"12345"))
    assert read_.arrays["none"] == Stored(dtype="U8", shape=[0, 7], begin=0, end=0)
    assert read_.arrays["one"].size == 4
    assert read(shard_of({})).arrays == {}


X = array(0, 4)
HOSTILE = {
    "nothing": (b"", "header of 0 bytes in a file of 0"),
    "seven bytes": (b"1234567", "header of 0 bytes"),
    "no header": (struct.pack("<Q", 0), "header of 0 bytes"),
    "a huge header": (struct.pack("<Q", 2**63) + b"{}", f"header of {2**63} bytes"),
    "a header beyond the file": (struct.pack("<Q", 3) + b"{}", "header of 3 bytes"),
    "not JSON": (shard_of(b"{x}"), "header: Expecting"),
    "a list": (shard_of(b"[]"), "header is no object"),
    "not UTF-8": (shard_of(b'{"\xff":1}'), "header: 'utf-8'"),
    "a byte order mark": (shard_of(b"\xef\xbb\xbf{}"), "BOM"),
    "deep": (shard_of(b'{"a":' + b"[" * 10**5), "recursion"),
    "a million digits": (
        shard_of(b'{"a":{"dtype":"U8","shape":[' + b"1" * 10**6 + b'],"data_offsets":[0,0]}}'),
        "limit",
    ),
    "NaN": (shard_of(b'{"a":NaN}'), "NaN is no number"),
    "a name twice": (
        shard_of(b'{"a":%s,"a":%s}' % ((json.dumps(X).encode(),) * 2), b"1234"),
        "a key stands twice",
    ),
    "a key twice": (
        shard_of(b'{"a":{"dtype":"U8","dtype":"I8","shape":[4],"data_offsets":[0,4]}}', b"1234"),
        "a key stands twice",
    ),
    "a path": (shard_of({"../../etc/x": X}, b"1234"), "like a path"),
    "no name": (shard_of({"": X}, b"1234"), "like a path"),
    "half a character": (shard_of(b'{"a\\ud800":1}'), "not UTF-8"),
    "a key missing": (shard_of({"a": {"dtype": "U8", "shape": [4]}}, b"1234"), "a: not dtype"),
    "a key more": (shard_of({"a": {**X, "more": 1}}, b"1234"), "a: not dtype"),
    "no object": (shard_of({"a": [1]}), "a: not dtype"),
    "an unknown type": (shard_of({"a": array(0, 4, "C64")}, b"1234"), "'C64' is not known"),
    "a type that is none": (shard_of({"a": {**X, "dtype": ["U8"]}}, b"1234"), "a"),
    "a negative shape": (shard_of({"a": array(0, 4, shape=[-4])}, b"1234"), "whole numbers"),
    "a fraction": (shard_of({"a": array(0, 4, shape=[4.0])}, b"1234"), "whole numbers"),
    "true": (shard_of({"a": array(0, 4, shape=[4, True])}, b"1234"), "whole numbers"),
    "a shape that is none": (shard_of({"a": array(0, 4, shape="4")}, b"1234"), "whole numbers"),
    "three offsets": (
        shard_of({"a": {**X, "data_offsets": [0, 2, 4]}}, b"1234"),
        "whole numbers",
    ),
    "offsets backwards": (shard_of({"a": {**X, "data_offsets": [4, 0]}}, b"1234"), "-4 bytes"),
    "a shape of another size": (shard_of({"a": array(0, 4, shape=[5])}, b"1234"), "4 bytes for U8"),
    "a shape that wraps": (
        shard_of({"a": array(0, 4, shape=[2**32, 2**32, 2**32])}, b"1234"),
        "4 bytes for U8",
    ),
    "no bytes of a huge shape": (shard_of({"a": array(0, 0, shape=[0, 2**62])}), "beyond what"),
    "many dimensions": (shard_of({"a": array(0, 1, shape=[1] * 9)}, b"1"), "beyond what"),
    "an overlap": (shard_of({"a": X, "b": array(2, 6)}, b"123456"), "b overlaps another"),
    "twice the same": (shard_of({"a": X, "b": X}, b"1234"), "b overlaps another"),
    "a hole": (shard_of({"a": X, "b": array(5, 6)}, b"123456"), "b begins after a hole"),
    "a hole in front": (shard_of({"a": array(1, 4)}, b"1234"), "a begins after a hole"),
    "data that nobody owns": (shard_of({"a": X}, b"12345"), "expected 4 bytes of data"),
    "data cut off": (shard_of({"a": X}, b"123"), "expected 4 bytes of data by its header, got 3"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_shard_or_could_be_read_in_two_ways_is_refused_in_words(name):
    raw, said = HOSTILE[name]
    assert said in refusal(raw)


def test_a_header_longer_than_its_tensors_can_need_is_not_parsed():
    many = {f"t{number}": array(0, 0) for number in range(10**4)}
    with pytest.raises(Damaged, match="no safetensors file: header of "):
        read(shard_of(many), 1000)


SOUND = shard_of(
    {"a.weight": array(0, 8, "BF16", [2, 2]), "b": array(8, 12, "F32", [1]), "c": array(12, 12)},
    bytes(12),
)


@given(st.data())
def test_whatever_bytes_come_only_words_come_out(data):
    raw = bytearray(SOUND)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw)))
        cut = data.draw(st.integers(0, 12))
        raw[at : at + cut] = data.draw(
            st.binary(max_size=8) | st.sampled_from([b"1e999", b"{}", b"[]", b"99999999999", b"-1"])
        )
    try:
        arrays = read(bytes(raw)).arrays
    except Damaged as error:
        str(error).encode()
        return
    assert sum(one.size for one in arrays.values()) <= len(raw)


@given(
    st.dictionaries(
        st.text(max_size=4),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["U8", "F32", "X", None]),
                "shape": st.lists(st.integers(-1, 2**64), max_size=3) | st.none(),
                "data_offsets": st.lists(st.integers(0, 12), max_size=3) | st.text(max_size=2),
            }
        ),
        max_size=3,
    ),
    st.binary(max_size=12),
)
def test_whatever_a_header_says_only_words_come_out(header, data):
    try:
        read(shard_of(header, data))
    except Damaged as error:
        str(error).encode()


def tensor(codec, shape, parts, dtype="BF16", params=None):
    stored = {k: Stored(dtype=d, shape=list(s), begin=0, end=0) for k, (d, s) in parts.items()}
    digests = dict.fromkeys(("shard", "sha256", "stored_sha256", "stored_blake3"), "0" * 64)
    entry = {"shape": shape, "dtype": dtype, "codec": codec, "params": params or {}}
    return Tensor(name="x.weight", parts=stored, seal="0" * 16, **entry, **digests)


G = {"group": 128}
INT5 = {"packed": ("I32", (2, 40)), "scale": ("BF16", (2, 2))}
PARTS = {
    "int5": (tensor("int5", [2, 256], INT5, params=G), ""),
    "three dimensions": (tensor("int5", [2, 1, 256], INT5, params=G), ""),
    "raw": (tensor("raw", [3], {"": ("I64", (3,))}, "I64"), ""),
    "a number": (tensor("raw", [], {"": ("F32", ())}, "F32"), ""),
    "zipnn": (tensor("zipnn", [8], {"zipnn": ("U8", (9,)), "offsets": ("I64", (2,))}), ""),
    "zipnn of nothing": (
        tensor("zipnn", [0], {"zipnn": ("U8", (0,)), "offsets": ("I64", (1,))}),
        "",
    ),
    "an unknown codec": (tensor("int6", [2, 256], INT5), "unknown codec 'int6'"),
    "a codec like a module": (tensor("bfloat16", [2, 256], INT5), "unknown codec 'bfloat16'"),
    "no parameter": (tensor("int5", [2, 256], INT5), "takes the parameters ['group'], got []"),
    "another parameter": (tensor("raw", [2], {"": ("BF16", (2,))}, params=G), "got ['group']"),
    "a group of none": (tensor("int5", [2, 256], INT5, params={"group": 0}), "multiple of 32"),
    "a negative group": (tensor("int5", [2, 256], INT5, params={"group": -32}), "multiple of 32"),
    "a huge group": (tensor("int5", [2, 256], INT5, params={"group": 2**70}), "does not hold"),
    "columns for no block": (
        tensor("int5", [2, 255], INT5, params=G),
        "does not hold BF16 [2, 255]",
    ),
    "another type": (tensor("int5", [2, 256], INT5, "F32", G), "does not hold F32"),
    "no matrix": (tensor("int5", [], INT5, params=G), "does not hold BF16 []"),
    "a part missing": (tensor("int5", [2, 256], {"packed": INT5["packed"]}, params=G), "makes"),
    "a part more": (tensor("int5", [2, 256], INT5 | {"x": ("U8", (1,))}, params=G), "makes"),
    "a part of another type": (
        tensor("int5", [2, 256], INT5 | {"scale": ("F16", (2, 2))}, params=G),
        "makes",
    ),
    "a part of another shape": (tensor("int5", [4, 256], INT5, params=G), "makes"),
    "raw of another type": (tensor("raw", [3], {"": ("I64", (3,))}), "makes"),
    "raw in chunks": (
        tensor("raw", [8], {"raw": ("U8", (16,)), "offsets": ("I64", (2,))}),
        "makes",
    ),
    "raw of nothing": (tensor("raw", [8], {}), "makes"),
    "zipnn as it is": (tensor("zipnn", [8], {"": ("BF16", (8,))}), "makes"),
    "zipnn of two dimensions": (
        tensor("zipnn", [8], {"zipnn": ("U8", (3, 3)), "offsets": ("I64", (2,))}),
        "makes",
    ),
    "chunks missing": (
        tensor("zipnn", [2**20], {"zipnn": ("U8", (9,)), "offsets": ("I64", (2,))}),
        "makes",
    ),
    "more than any machine has": (
        tensor("zipnn", [2**40, 2**40], {"zipnn": ("U8", (9,)), "offsets": ("I64", (2,))}),
        "beyond what a blob may hold",
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_are_those_that_the_codec_makes_of_the_shape(name):
    one, said = PARTS[name]
    if not said:
        return check_parts(one)
    with pytest.raises(BlobError) as caught:
        check_parts(one)
    assert said in str(caught.value)
    assert "x.weight" in str(caught.value)
    return None


def test_no_header_of_tensors_is_longer_than_its_limit():
    names = ["é" * 200, "日" * 150, "\U0001f600" * 100, "x"]
    for name in names:
        one = tensor("raw", [1] * 8, {"": ("F8_E4M3", (2**40,) * 8)}, "F8_E4M3")
        one = one.model_copy(update={"name": name})
        header = {name: array(2**44, 2**44, "F8_E4M3", [2**40] * 8)}
        spelled = json.dumps(header, indent=1).encode()
        assert len(spelled) <= header_limit([one])
