"""Int4 against compressed-tensors, byte for byte both ways, and against its own plain reference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blob.codecs import bfloat16
from blob.codecs.int4 import Int4
from tests.blob.codecs import compressed, rows

SHAPES = [(1, 1), (1, 8), (2, 1), (3, 5), (7, 3), (64, 16), (257, 2), (33, 24)]


def with_constants(codec, values):
    return rows.encoded(codec, values) | codec.constants(*values.shape)


@pytest.mark.torch
@pytest.mark.timeout(600)
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("shape", SHAPES)
def test_bytes_are_those_of_compressed_tensors(group, shape):
    values = rows.as_bfloat16(rows.of_all_sizes(shape[0], shape[1] * group, seed=group))
    ours = with_constants(Int4(group), values)
    theirs = compressed.compressed(bfloat16.from_float32(values), group)
    for key, part in theirs.items():
        assert ours[key].dtype == part.dtype
        assert ours[key].tobytes() == part.tobytes(), key
    read = rows.decoded(Int4(group), ours, values.shape)
    assert read.tobytes() == compressed.decompressed(ours, group).tobytes()


@pytest.mark.torch
@pytest.mark.timeout(600)
def test_any_finite_bits_of_bfloat16_make_the_library_s_bytes():
    bits = np.random.default_rng(1).integers(0, 2**16, (512, 1024)).astype(np.uint16)
    bits[(bits & 0x7F80) == 0x7F80] &= 0xBFFF
    ours = with_constants(Int4(), bfloat16.to_float32(bits))
    theirs = compressed.compressed(bits, 32)
    assert all(ours[key].tobytes() == part.tobytes() for key, part in theirs.items())
    read = rows.decoded(Int4(), ours, bits.shape)
    assert read.tobytes() == compressed.decompressed(ours, 32).tobytes()


@pytest.mark.torch
@pytest.mark.timeout(600)
def test_edges_make_the_library_s_bytes():
    subnormal = np.arange(1, 33, dtype=np.uint16)
    bits = np.zeros((8, 32), np.uint16)
    bits[1, 7] = 0x42C8  # 100: one outlier among zeros
    bits[2] = 0x8000  # zeros below zero
    bits[3] = subnormal
    bits[4] = subnormal | 0x8000
    bits[5, 0] = 1  # the least number there is: its scale would be zero
    bits[6] = 0x7F7F  # the largest
    bits[7] = bfloat16.from_float32(np.arange(-16, 16, dtype=np.float32) / 2)  # ties
    ours = with_constants(Int4(), bfloat16.to_float32(bits))
    theirs = compressed.compressed(bits, 32)
    assert all(ours[key].tobytes() == part.tobytes() for key, part in theirs.items())
    read = rows.decoded(Int4(), ours, bits.shape)
    assert read.tobytes() == compressed.decompressed(ours, 32).tobytes()


@given(st.integers(1, 9), st.integers(1, 5), st.sampled_from([32, 64, 96]), st.integers(0, 2**32))
def test_fast_and_plain_are_the_same(height, width, group, seed):
    values = rows.of_all_sizes(height, width * group, seed)
    rows.same_as_the_references(Int4(group), values)


@given(st.integers(0, 2**32))
def test_whatever_is_stored_is_read_as_the_reference_reads_it(seed):
    random = np.random.default_rng(seed)
    parts = {
        "packed": random.integers(-(2**31), 2**31, (3, 8)).astype(np.int32),
        "scale": random.integers(0, 2**16, (3, 2)).astype(np.uint16),
    }
    with np.errstate(all="ignore"):  # infinities, and an infinite scale times 0
        expected = bfloat16.from_float32_reference(Int4().decode_reference(parts))
    assert rows.decoded(Int4(), parts, (3, 64)).tobytes() == expected.tobytes()


def test_what_is_no_bfloat16_is_rounded_to_it_first():
    values = rows.of_all_sizes(16, 256, seed=2)
    ours, rounded = (rows.encoded(Int4(), each) for each in (values, rows.as_bfloat16(values)))
    assert all(ours[key].tobytes() == rounded[key].tobytes() for key in ours)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_rows_can_be_split_over_threads(threads):
    rows.same_however_rows_are_split(Int4(), rows.of_all_sizes(50, 320, seed=3), threads)


@pytest.mark.parametrize("group", [0, -32, 8, 33])
def test_a_group_that_fills_no_words_is_refused(group):
    with pytest.raises(ValueError, match=f"multiple of 32, got {group}"):
        Int4(group)


def test_arrays_that_do_not_belong_together_are_refused_before_memory_is_touched():
    values = rows.of_all_sizes(4, 64, seed=4)
    good = rows.encoded(Int4(), values)
    short = good | {"packed": good["packed"][:, :7]}
    gaps = good | {"scale": np.repeat(good["scale"], 2, axis=1)[:, ::2]}
    for parts in (short, gaps, good | {"scale": good["scale"].astype(np.int16)}):
        with pytest.raises(ValueError, match="must be contiguous"):
            rows.decoded(Int4(), parts, values.shape)
        with pytest.raises(ValueError, match="must be contiguous"):
            Int4().encode(values, parts)
    with pytest.raises(ValueError, match="multiple of 32, got 40"):
        Int4().decode(good, np.empty((4, 40), np.uint16))


def test_no_rows_are_no_work():
    values = np.empty((0, 64), np.float32)
    assert rows.decoded(Int4(), rows.encoded(Int4(), values), (0, 64)).shape == (0, 64)
