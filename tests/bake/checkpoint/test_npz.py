"""NumPy's files: what numpy wrote is what we say, and headers are never evaluated."""

import contextlib
import io
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bake.checkpoint.arrays import array
from bake.checkpoint.limits import ParseLimits
from bake.checkpoint.npz import parse
from bake.checkpoint.source import Bytes, Seekable
from bake.errors import Malformed, Unsupported

BAD = (Malformed, Unsupported)
arrays = hnp.arrays(
    st.sampled_from(["?", "<f2", ">f4", "<f8", ">i2", "<i4", ">u8", "u1", "i1"]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)


def saved(save, *args, **named):
    made = io.BytesIO()
    save(made, *args, **named)
    return made.getvalue()


def npy(descr="'<f4'", shape="(2, 3)", fortran="False", data=bytes(24), version=1, text=None):
    """A header as it is given."""
    if text is None:
        text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"
    raw = text.encode("latin-1")
    length = struct.pack("<H" if version == 1 else "<I", len(raw))
    return b"\x93NUMPY" + bytes([version, 0]) + length + raw + data


def zipped(name="a.npy", method=zipfile.ZIP_STORED, **header):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as file:
        file.writestr(name, npy(**header))
    return made.getvalue()


def same(ours, theirs):
    np.testing.assert_array_equal(ours, theirs)
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype.newbyteorder("=")


@given(
    st.dictionaries(st.sampled_from(["a", "b/c", "ä", "x:0"]), arrays, min_size=1),
    st.booleans(),
    st.booleans(),
)
def test_archives_are_what_numpy_reads(values, packed, columns):
    if columns:
        values = {name: np.asfortranarray(value) for name, value in values.items()}
    raw = saved(np.savez_compressed if packed else np.savez, **values)
    source = Bytes(raw)
    tensors = parse(source).tensors
    assert parse(Seekable(io.BytesIO(raw))).tensors == tensors
    with np.load(io.BytesIO(raw)) as loaded:
        assert [tensor.name for tensor in tensors] == list(loaded)
        for tensor in tensors:
            same(array(source, tensor), loaded[tensor.name])


@given(arrays, st.sampled_from([(1, 0), (2, 0), (3, 0)]))
def test_a_lone_array_is_what_numpy_reads(value, version):
    made = io.BytesIO()
    np.lib.format.write_array(made, value, version)
    source = Bytes(made.getvalue())
    (tensor,) = parse(source).tensors
    assert tensor.name == "array"
    same(array(source, tensor), value)


def test_two_bytes_without_a_type_are_bf16():
    for descr in ("'<V2'", "'|V2'"):
        source = Bytes(npy(descr, "(3,)", data=b"\x80\x3f\x00\x40\x40\x40"))
        (tensor,) = parse(source).tensors
        assert tensor.dtype == "BF16"
        assert array(source, tensor).tolist() == [0x3F80, 0x4000, 0x4040]


def test_zeros_that_deflate_to_nearly_nothing_are_read():
    source = Bytes(saved(np.savez_compressed, a=np.zeros(2**20, np.float32)))
    (tensor,) = parse(source).tensors
    assert tensor.deflated < 2**22 / 500
    assert not array(source, tensor).any()
    with pytest.raises(Malformed, match="more than is allowed"):
        array(source, tensor, ParseLimits(allocation_bytes=2**20))


def test_texts_are_told_and_left_out():
    contents = parse(Bytes(saved(np.savez, a=np.ones(2), b=np.array("name"), c=np.array([b"x"]))))
    assert [tensor.name for tensor in contents.tensors] == ["a"]
    assert contents.metadata == {"npz.left_out": ["b", "c"]}


@pytest.mark.parametrize(
    ("descr", "word"),
    [
        ("'|O'", "objects are pickles"),
        ("'|V1'", "V1"),
        ("'<f16'", "f16"),
        ("'<M8[s]'", "M8"),
        ("[('a', '<f4')]", "records"),
        ("'<q9'", "q9"),
        ("'<i16'", "i16"),
    ],
)
def test_what_is_no_number_is_told(descr, word):
    with pytest.raises(Unsupported, match=word):
        parse(Bytes(npy(descr)))


def test_objects_that_numpy_wrote_are_refused():
    raw = saved(np.savez, a=np.array([{}], dtype=object))
    with pytest.raises(Unsupported, match="objects are pickles"):
        parse(Bytes(raw))


@pytest.mark.parametrize(
    "header",
    [
        {"shape": "(2, 2)"},
        {"shape": "(2, 3"},
        {"shape": "(2,, 3)"},
        {"shape": "(2 3)"},
        {"shape": "(-2, -3)"},
        {"shape": "[2, 3]"},
        {"shape": "2"},
        {"shape": "(L,)"},
        {"shape": f"({'9' * 5000},)"},
        {"shape": f"({2**62}, 0)"},
        {"shape": f"({2**62}, {2**62})"},
        {"shape": "(1, 1, 1, 1, 1, 1, 1, 2, 3)"},
        {"fortran": "0"},
        {"fortran": "'True'"},
        {"descr": "f4"},
        {"descr": "__import__('os').system('true')"},
        {"descr": "'<f\\x34'"},
        {"text": ""},
        {"text": "{}"},
        {"text": "{'descr': '<f4'}"},
        {"text": "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)"},
        {"text": "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}, 1"},
        {"text": "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}"},
        {"text": "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), 'more': True}"},
        {"text": "{'descr': '<f4' 'fortran_order': False 'shape': (2, 3)}"},
        {"text": "(" * 9000},
        {"text": " " * 10_001},
        {"version": 4},
        {"data": bytes(23)},
        {"data": bytes(25)},
    ],
)
def test_headers_that_lie_are_refused(header):
    for raw in (npy(**header), zipped(**header), zipped(method=zipfile.ZIP_DEFLATED, **header)):
        with pytest.raises(BAD):
            parse(Bytes(raw))


def test_other_orders_of_keys_and_old_numbers_are_read():
    text = '{"shape": (2L, 3L), "fortran_order": True, "descr": "<f4"}'
    (tensor,) = parse(Bytes(npy(text=text))).tensors
    assert (tensor.shape, tensor.strides) == ((2, 3), (1, 2))


def test_eight_tebibytes_in_244_bytes_take_no_memory():
    huge = f"({2**41},)"
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raw = zipped(shape=huge, method=method, data=b"")
        assert len(raw) < 400
        with pytest.raises(Malformed):
            parse(Bytes(raw))
    # The directory lying as well.
    raw = zipped(shape="(1000000,)", method=zipfile.ZIP_DEFLATED, data=b"")
    size = len(npy(shape="(1000000,)", data=b""))
    lie = raw.replace(size.to_bytes(4, "little"), (size + 4_000_000).to_bytes(4, "little"))
    source = Bytes(lie)
    (tensor,) = parse(source).tensors
    with pytest.raises(Malformed, match="does not inflate to"):
        array(source, tensor)


def test_a_deflated_array_that_goes_on_is_refused():
    raw = zipped(method=zipfile.ZIP_DEFLATED, data=bytes(4000))
    size = len(npy(data=bytes(4000)))
    lie = raw.replace(size.to_bytes(4, "little"), len(npy()).to_bytes(4, "little"))
    source = Bytes(lie)
    (tensor,) = parse(source).tensors
    with pytest.raises(Malformed, match="does not inflate to"):
        array(source, tensor)


def test_what_is_no_array_is_told():
    with pytest.raises(Unsupported, match=r"'a\.txt' is no array"):
        parse(Bytes(zipped("a.txt")))


def test_limits_are_asked():
    raw = saved(np.savez, a=np.ones((2, 3)), b=np.ones(3))
    for limits in (
        ParseLimits(tensors=1),
        ParseLimits(tensor_bytes=40),
        ParseLimits(dimension=2),
        ParseLimits(rank=1),
        ParseLimits(name_bytes=0),
    ):
        with pytest.raises(Malformed):
            parse(Bytes(raw), limits)


SMALL = [
    saved(np.savez, a=np.arange(6, dtype=">f4").reshape(2, 3), b=np.float64(1)),
    saved(np.savez_compressed, a=np.asfortranarray(np.ones((4, 5))), b=np.array("x")),
    saved(np.save, np.arange(5)),
]


@pytest.mark.parametrize("raw", SMALL)
def test_a_file_cut_anywhere_is_refused(raw):
    for end in range(len(raw)):
        with pytest.raises(BAD):
            parse(Bytes(raw[:end]))


@pytest.mark.parametrize("raw", SMALL)
def test_a_changed_byte_does_nothing_else_than_fail(raw):
    for at in range(len(raw)):
        for mask in (0x01, 0x80, 0xFF):
            source = Bytes(raw[:at] + bytes([raw[at] ^ mask]) + raw[at + 1 :])
            with contextlib.suppress(*BAD):
                for tensor in parse(source).tensors:
                    array(source, tensor)


@given(st.text(st.sampled_from("{}()[]'\",: 0123456789LTrueFalsdcfotnhp_<f4\\"), max_size=80))
def test_no_header_does_anything_else_than_fail(text):
    with contextlib.suppress(*BAD):
        parse(Bytes(npy(text="{" + text)))
