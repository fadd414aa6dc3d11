"""Int5: plain and fast, what it reads against compressed-tensors, and how near it stays."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blob.codecs import bfloat16, packed
from blob.codecs.int5 import BITS, Int5
from tests.blob.codecs import compressed, rows


def integers_of(parts):
    """What is stored, unpacked in plain Python."""
    read = []
    for words in parts["packed"].view(np.uint32).tolist():
        row = sum(word << (32 * at) for at, word in enumerate(words))
        read.append([(row >> (5 * i) & 31) - 16 for i in range(len(words) * 32 // 5)])
    return np.array(read, np.int8)


@pytest.mark.torch
@pytest.mark.timeout(600)
@pytest.mark.parametrize("group", [32, 128, 256])
def test_numbers_are_those_that_compressed_tensors_gives_for_the_same_integers(group):
    values = rows.of_all_sizes(65, 5 * group, seed=group)
    parts = rows.encoded(Int5(group), values)
    theirs = compressed.dequantized(integers_of(parts), parts["scale"], group, BITS)
    assert rows.decoded(Int5(group), parts, values.shape).tobytes() == theirs.tobytes()


@pytest.mark.torch
@pytest.mark.timeout(600)
def test_any_integers_and_finite_scales_are_read_as_compressed_tensors_reads_them():
    random = np.random.default_rng(6)
    scale = random.integers(0, 2**16, (64, 8)).astype(np.uint16)
    scale[(scale & 0x7F80) == 0x7F80] &= 0xBFFF
    stored = random.integers(-(2**31), 2**31, (64, 160)).astype(np.int32)
    parts = {"packed": stored, "scale": scale}
    theirs = compressed.dequantized(integers_of(parts), scale, 128, BITS)
    assert rows.decoded(Int5(), parts, (64, 1024)).tobytes() == theirs.tobytes()


def test_value_i_stands_at_bit_5i_and_16_is_added():
    integers = (np.arange(256) * 7 % 32 - 16).reshape(2, 128)
    parts = {"packed": packed.pack_reference(integers, BITS), "scale": np.full((2, 1), 0x3F80)}
    assert parts["packed"].shape == (2, 20)
    assert np.array_equal(integers_of(parts), integers)
    parts["scale"] = parts["scale"].astype(np.uint16)  # 1.0
    read = bfloat16.to_float32(rows.decoded(Int5(), parts, (2, 128)))
    assert np.array_equal(read, integers)


@given(st.integers(1, 9), st.integers(1, 4), st.sampled_from([32, 128, 160]), st.integers(0, 2**32))
@example(height=5, width=3, group=128, seed=3)  # a scale that is the least normal number
def test_fast_and_plain_are_the_same(height, width, group, seed):
    rows.same_as_the_references(Int5(group), rows.of_all_sizes(height, width * group, seed))


@given(st.integers(0, 2**32))
def test_whatever_is_stored_is_read_as_the_reference_reads_it(seed):
    random = np.random.default_rng(seed)
    parts = {
        "packed": random.integers(-(2**31), 2**31, (3, 40)).astype(np.int32),
        "scale": random.integers(0, 2**16, (3, 2)).astype(np.uint16),
    }
    with np.errstate(all="ignore"):  # infinities, and an infinite scale times 0
        expected = bfloat16.from_float32_reference(Int5().decode_reference(parts))
    assert rows.decoded(Int5(), parts, (3, 256)).tobytes() == expected.tobytes()


def test_the_number_farthest_from_zero_is_nearly_kept_on_either_side():
    for sign in (1, -1):
        values = np.full((1, 128), 0.01, np.float32)
        values[0, 77] = sign
        read = bfloat16.to_float32(rows.same_as_the_references(Int5(), values))
        assert abs(read[0, 77] - sign) < 0.02


def test_zeros_stay_zeros():
    values = np.zeros((2, 256), np.float32)
    values[1] = -0.0
    read = rows.same_as_the_references(Int5(), values)
    assert not read.any()


def test_it_is_nearer_than_the_scale_that_compressed_tensors_would_take():
    values = rows.as_bfloat16(
        (np.random.default_rng(7).standard_normal((256, 1024)) * 0.02).astype(np.float32)
    )
    largest = np.abs(values.reshape(-1, 128)).max(axis=1)
    scale = bfloat16.from_float32(largest / np.float32(15.5)).reshape(256, 8)
    factors = np.repeat(bfloat16.to_float32(scale), 128, axis=1)
    integers = np.clip(np.rint(values / factors), -16, 15)
    theirs = rows.decoded(
        Int5(), {"packed": packed.pack_reference(integers, BITS), "scale": scale}, values.shape
    )
    ours = rows.decoded(Int5(), rows.encoded(Int5(), values), values.shape)
    off = [np.square(bfloat16.to_float32(each) - values).sum() for each in (ours, theirs)]
    assert off[0] < 0.88 * off[1]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_rows_can_be_split_over_threads(threads):
    rows.same_however_rows_are_split(Int5(), rows.of_all_sizes(50, 384, seed=3), threads)


@pytest.mark.parametrize("group", [0, -32, 5, 48])
def test_a_group_that_fills_no_words_is_refused(group):
    with pytest.raises(ValueError, match=f"multiple of 32, got {group}"):
        Int5(group)


def test_arrays_that_do_not_belong_together_are_refused_before_memory_is_touched():
    values = rows.of_all_sizes(4, 128, seed=4)
    good = rows.encoded(Int5(), values)
    for parts in (
        good | {"packed": good["packed"][:, :19]},
        good | {"packed": good["packed"].view(np.uint32)},
        good | {"scale": good["scale"][:3]},
    ):
        with pytest.raises(ValueError, match="must be contiguous"):
            rows.decoded(Int5(), parts, values.shape)
        with pytest.raises(ValueError, match="must be contiguous"):
            Int5().encode(values, parts)
    with pytest.raises(ValueError, match="multiple of 128, got 160"):
        Int5().decode(good, np.empty((4, 160), np.uint16))
    with pytest.raises(ValueError, match="out must be contiguous"):
        Int5().decode(good, np.empty((4, 256), np.uint16)[:, ::2])


def test_no_rows_are_no_work():
    values = np.empty((0, 128), np.float32)
    assert rows.decoded(Int5(), rows.encoded(Int5(), values), (0, 128)).shape == (0, 128)


def test_parts_may_be_read_only_and_begin_at_an_odd_address_as_in_a_mapped_file():
    values = rows.of_all_sizes(4, 256, seed=5)
    good = rows.encoded(Int5(), values)
    mapped = {}
    for key, part in good.items():
        memory = np.frombuffer(b"\0" + part.tobytes(), np.uint8)[1:]
        mapped[key] = memory.view(part.dtype).reshape(part.shape)
        assert not mapped[key].flags.writeable
    read = rows.decoded(Int5(), mapped, values.shape)
    assert read.tobytes() == rows.decoded(Int5(), good, values.shape).tobytes()
