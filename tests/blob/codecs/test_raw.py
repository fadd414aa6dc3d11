"""Raw: bytes as they are, in chunks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blob.codecs.raw import CHUNK, Raw


def read(parts, size):
    out = bytearray(size)
    for index in range(-(-size // CHUNK)):
        Raw().decode(parts, index, memoryview(out)[index * CHUNK : (index + 1) * CHUNK])
    return bytes(out)


@given(st.binary(max_size=300))
def test_bytes_come_back(raw):
    assert read(Raw().encode(memoryview(raw)), len(raw)) == raw


@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_bytes_of_several_chunks_come_back(size):
    raw = np.random.default_rng(0).bytes(size)
    assert read(Raw().encode(memoryview(raw)), size) == raw


def test_a_tensor_of_any_type_is_stored_without_a_copy_and_read_as_bytes():
    weights = np.arange(6, dtype=np.float64).reshape(2, 3)
    assert np.shares_memory(Raw().encode(weights.data.cast("B"))[""], weights)
    assert read({"": weights}, weights.nbytes) == weights.tobytes()


@pytest.mark.parametrize(("index", "size"), [(0, 9), (0, 11), (1, 10), (-1, 10)])
def test_a_chunk_that_is_not_there_is_refused(index, size):
    parts = Raw().encode(memoryview(bytes(10)))
    with pytest.raises(ValueError, match=rf"chunk {index} has \d+ bytes, expected {size}"):
        Raw().decode(parts, index, memoryview(bytearray(size)))
