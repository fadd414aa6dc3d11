"""Arrays of tensors: the numbers as they are stored, without a copy where none is needed."""

import io

import numpy as np
import pytest

from bake.checkpoint.arrays import BLOCKS, array
from bake.checkpoint.contents import Tensor
from bake.checkpoint.source import Bytes, Seekable
from bake.errors import Malformed, Unsupported
from blob.numpy_types import NUMPY

RAW = bytes(range(256)) * 4
ALIGNED = np.frombuffer(RAW, np.uint8).copy()


def test_what_lies_in_a_row_is_not_copied():
    got = array(Bytes(memoryview(ALIGNED)), Tensor("a", "F32", (4, 8), 64, 128))
    assert np.shares_memory(got, ALIGNED)
    np.testing.assert_array_equal(got, ALIGNED[64:192].view(np.float32).reshape(4, 8))


def test_what_is_mapped_cannot_be_written_to():
    got = array(Bytes(RAW), Tensor("a", "U8", (4,), 0, 4))
    assert not got.flags.writeable


def test_numbers_between_their_places_are_copied_to_such():
    for strides in (None, (1, 4)):
        got = array(Bytes(memoryview(ALIGNED)), Tensor("a", "F32", (4, 3), 3, 48, strides))
        assert got.flags.aligned
        expected = np.frombuffer(RAW[3:51], np.float32)
        expected = expected.reshape(3, 4).T if strides else expected.reshape(4, 3)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("kind", sorted(NUMPY))
def test_every_type_is_read_from_any_source(kind):
    size = NUMPY[kind].itemsize
    tensor = Tensor("a", kind, (3,), 8, 3 * size)
    for source in (Bytes(RAW), Seekable(io.BytesIO(RAW))):
        got = array(source, tensor)
        assert got.tobytes() == RAW[8 : 8 + 3 * size]
    big = array(Bytes(RAW), Tensor("a", kind, (3,), 8, 3 * size, None, True))
    assert big.dtype.isnative
    assert big.tobytes() == b"".join(
        RAW[8 + i * size : 8 + i * size + size][::-1] for i in range(3)
    )


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1)])
def test_shapes_without_much_in_them(shape):
    count = int(np.prod(shape))
    got = array(Bytes(RAW), Tensor("a", "F64", shape, 0, 8 * count))
    assert (got.shape, got.size) == (shape, count)


@pytest.mark.parametrize("kind", sorted(BLOCKS))
def test_blocks_are_rows_of_bytes(kind):
    values, size = BLOCKS[kind]
    raw = bytes(12 * size)
    got = array(Bytes(raw), Tensor("a", kind, (2, 3, 2 * values), 0, 12 * size))
    assert (got.shape, got.dtype) == ((6, 2 * size), np.uint8)
    for wrong in ((2, 3, values), (2, 3, 2 * values - 1), (7, 2 * values), ()):
        with pytest.raises(Malformed):
            array(Bytes(raw), Tensor("a", kind, wrong, 0, 12 * size))


@pytest.mark.parametrize(
    "lie",
    [
        Tensor("a", "F32", (4,), 0, 12),
        Tensor("a", "F32", (4,), 0, 17),
        Tensor("a", "F32", (4,), 1020, 16),
        Tensor("a", "F32", (2**62,), 0, 16),
        Tensor("a", "F32", (2, 2), 0, 16, (2,)),
        Tensor("a", "F32", (2, 2), 0, 16, (-2, 1)),
        Tensor("a", "F32", (2, 2), 0, 12, (2, 1)),
        Tensor("a", "F32", (2, 2), 0, 20, (2, 1)),
        Tensor("a", "F32", (4,), 0, 16, None, False, 100),
        Tensor("a", "F32", (4,), 2**63, 16),
    ],
)
def test_tensors_that_are_not_there_are_refused(lie):
    with pytest.raises(Malformed):
        array(Bytes(RAW), lie)


@pytest.mark.parametrize("kind", ["C64", "C128", "F4", "F6_E2M3", "nonsense"])
def test_types_without_an_array_are_told(kind):
    with pytest.raises(Unsupported, match=kind):
        array(Bytes(RAW), Tensor("a", kind, (1,), 0, 8))
