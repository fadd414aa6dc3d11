"""safetensors by its header: read as the library reads what it wrote, anything else refused."""

import json
import struct

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from bake.checkpoint.contents import Tensor
from bake.checkpoint.limits import ParseLimits
from bake.checkpoint.safetensors import parse
from bake.checkpoint.source import Bytes
from bake.errors import Malformed, Unsupported


def sample():
    arrays = {
        "b.weight": np.arange(6, dtype=np.int16).reshape(2, 3),
        "a": np.array(1.5, np.float32),
        "empty": np.zeros((0, 4), np.uint8),
    }
    return safetensors.numpy.save(arrays, metadata={"format": "pt", "é": '{"x": "}\\n"}'})


def file_of(header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def entry(begin, end, dtype="U8", shape=None):
    shape = [end - begin] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_what_the_library_writes_is_read_with_places_and_metadata():
    raw = sample()
    contents = parse(Bytes(raw))
    assert contents.metadata == {"format": "pt", "é": '{"x": "}\\n"}'}
    assert contents.header_bytes == 8 + struct.unpack("<Q", raw[:8])[0]
    found = contents.by_name()
    one = found["b.weight"]
    assert (one.dtype, one.shape) == ("I16", (2, 3))
    assert raw[one.offset : one.offset + one.nbytes] == np.arange(6, dtype=np.int16).tobytes()
    assert found["a"].shape == ()
    assert found["empty"].nbytes == 0


DTYPES = {"F32": np.float32, "F16": np.float16, "I64": np.int64, "U8": np.uint8, "BOOL": np.bool_}


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="/\\.", min_codepoint=0xA1))
        .map(lambda name: "n" + name)
        .filter(lambda name: len(name.encode()) < 99),
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=4)),
        max_size=6,
    ),
    # Of metadata that is empty, safetensors 0.8 writes what it cannot read.
    st.dictionaries(st.text(max_size=5), st.text(max_size=9), min_size=1, max_size=3) | st.none(),
)
def test_it_agrees_with_the_library_on_all_that_the_library_writes(tensors, metadata):
    arrays = {name: np.zeros(shape, DTYPES[dtype]) for name, (dtype, shape) in tensors.items()}
    raw = safetensors.numpy.save(arrays, metadata=metadata)
    contents = parse(Bytes(raw))
    assert contents.metadata == (metadata or {})
    start = contents.header_bytes
    assert {(t.name, t.dtype, t.shape, t.offset - start, t.nbytes) for t in contents.tensors} == {
        (name, told["dtype"], tuple(told["shape"]), told["data_offsets"][0], len(told["data"]))
        for name, told in (
            (name, {**told, "data_offsets": header_of(raw)[name]["data_offsets"]})
            for name, told in safetensors.deserialize(raw)
        )
    }


def header_of(raw):
    return json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])


@pytest.mark.parametrize("indent", [None, 1])
def test_a_header_spelled_by_another_writer_is_read_the_same(indent):
    header = {"b": entry(4, 8, "F32", [1]), "__metadata__": {"a": "b"}, "a": entry(0, 4)}
    spelled = json.dumps(header, indent=indent).encode()
    contents = parse(Bytes(file_of(spelled, bytes(8))))
    start = 8 + len(spelled)
    assert contents.tensors == (
        Tensor("b", "F32", (1,), start + 4, 4),
        Tensor("a", "U8", (4,), start, 4),
    )
    assert contents.metadata == {"a": "b"}


def test_types_of_less_than_a_byte_are_read_where_they_fill_bytes():
    raw = file_of({"a": entry(0, 4, "F4", [2, 4]), "b": entry(4, 7, "F6_E2M3", [4])}, bytes(7))
    assert [one.nbytes for one in parse(Bytes(raw)).tensors] == [4, 3]
    with pytest.raises(Malformed, match="1 bytes for F4"):
        parse(Bytes(file_of({"a": entry(0, 1, "F4", [3])}, bytes(1))))


def test_a_type_that_is_not_known_is_unsupported_by_name():
    with pytest.raises(Unsupported, match="a: dtype 'F2' is not known"):
        parse(Bytes(file_of({"a": entry(0, 1, "F2")}, bytes(1))))


X = entry(0, 4)
HOSTILE = {
    "a tensor twice": (b'{"a":%s,"a":%s}' % ((json.dumps(X).encode(),) * 2), b"1234"),
    "a tensor twice, spelled another way": (
        b'{"a":%s,"\\u0061":%s}' % ((json.dumps(X).encode(),) * 2),
        b"1234",
    ),
    "a key twice": (b'{"a":{"dtype":"U8","dtype":"I8","shape":[4],"data_offsets":[0,4]}}', b"1234"),
    "metadata twice": (b'{"__metadata__":{},"__metadata__":{}}', b""),
    "metadata twice, apart": (b'{"__metadata__":{"a":"b"},"__metadata__":{"a":"c"}}', b""),
    "a key of metadata twice": (b'{"__metadata__":{"a":"b","a":"b"}}', b""),
    "metadata that is a tensor": (json.dumps({"__metadata__": X}).encode(), b"1234"),
    "metadata of numbers": (b'{"__metadata__":{"a":1}}', b""),
    "metadata that is none": (b'{"__metadata__":null}', b""),
    "metadata of half characters": (b'{"__metadata__":{"a":"\\ud800"}}', b""),
    "a comma at the end": (b'{"__metadata__":{},}', b""),
    "no comma after metadata": (b'{"__metadata__":{}"a":%s}' % json.dumps(X).encode(), b"1234"),
    "two commas": (b'{"__metadata__":{},,"a":%s}' % json.dumps(X).encode(), b"1234"),
    "an end too many": (b'{"__metadata__":{}}}', b""),
    "a path": (json.dumps({"../../etc/x": X}).encode(), b"1234"),
    "a name of two lines": (json.dumps({"a\nb": X}).encode(), b"1234"),
    "DEL in a name": (json.dumps({"a\x7f": X}).encode(), b"1234"),
    "a huge shape of nothing": (json.dumps({"a": entry(0, 0, shape=[0, 2**62])}).encode(), b""),
    "an overlap": (json.dumps({"a": X, "b": entry(3, 7)}).encode(), b"1234567"),
    "a hole": (json.dumps({"a": X, "b": entry(5, 7)}).encode(), b"1234567"),
    "bytes after it": (json.dumps({"a": X}).encode(), b"12345"),
    "a shape that wraps": (json.dumps({"a": entry(0, 4, shape=[2**32] * 4)}).encode(), b"1234"),
    "a shape of many dimensions": (
        b'{"a":{"dtype":"U8","shape":[%s1],"data_offsets":[0,1]}}' % (b"1," * 10**5),
        b"1",
    ),
    "a shape of many digits": (
        b'{"a":{"dtype":"U8","shape":[%s],"data_offsets":[0,0]}}' % (b"9" * 4000),
        b"",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_readers_could_understand_differently_is_refused(name):
    with pytest.raises(Malformed):
        parse(Bytes(file_of(*HOSTILE[name])))


def test_limits_are_asked_before_anything_is_decoded():
    many = b"{" + b",".join(b'"%d":%s' % (i, json.dumps(entry(0, 0)).encode()) for i in range(99))
    raw = file_of(many + b"}")
    assert len(parse(Bytes(raw)).tensors) == 99
    with pytest.raises(Malformed, match="99 tensors, more than 9"):
        parse(Bytes(raw), ParseLimits(tensors=9))
    # However a key is spelled, it counts.
    other = file_of(raw[8:].replace(b"data_offsets", b"data_offset\\u0073"))
    assert len(parse(Bytes(other)).tensors) == 99
    with pytest.raises(Malformed, match="99 tensors, more than 9"):
        parse(Bytes(other), ParseLimits(tensors=9))
    for limits in (ParseLimits(json_bytes=99), ParseLimits(header_bytes=99)):
        with pytest.raises(Malformed, match="more than 99"):
            parse(Bytes(raw), limits)


def test_nothing_comes_of_a_file_that_was_cut_at_any_byte():
    raw = sample()
    for size in range(len(raw)):
        with pytest.raises(Malformed):
            parse(Bytes(raw[:size]))


def test_a_flipped_bit_of_the_header_is_refused_or_another_sound_file():
    raw = bytearray(sample())
    begin, size = parse(Bytes(raw)).header_bytes, len(raw)
    for bit in range(8 * begin):
        raw[bit // 8] ^= 1 << bit % 8
        try:
            contents = parse(Bytes(bytes(raw)))
        except (Malformed, Unsupported) as error:
            str(error).encode()
        else:
            assert sum(one.nbytes for one in contents.tensors) == size - contents.header_bytes
        raw[bit // 8] ^= 1 << bit % 8


@given(st.data())
def test_whatever_bytes_come_only_words_come_out(data):
    raw = bytearray(sample())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw)))
        cut = data.draw(st.integers(0, 12))
        raw[at : at + cut] = data.draw(
            st.binary(max_size=8) | st.sampled_from([b"1e999", b"{}", b"[]", b'"', b"-1", b"\\"])
        )
    try:
        contents = parse(Bytes(bytes(raw)))
    except (Malformed, Unsupported) as error:
        str(error).encode()
    else:
        assert sum(one.nbytes for one in contents.tensors) == len(raw) - contents.header_bytes
