"""BF16 bits against torch: every pattern there is, and float32 bits of all kinds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from blob.codecs import bfloat16

EVERY = np.arange(2**16, dtype=np.uint32).astype(np.uint16)


def torch_rounds(values):
    torch = pytest.importorskip("torch")
    return torch.from_numpy(values.copy()).to(torch.bfloat16).view(torch.uint16).numpy()


def torch_widens(bits):
    torch = pytest.importorskip("torch")
    return torch.from_numpy(bits.copy()).view(torch.bfloat16).to(torch.float32).numpy()


@pytest.mark.torch
def test_every_pattern_is_widened_as_torch_widens_it():
    assert bfloat16.to_float32(EVERY).tobytes() == torch_widens(EVERY).tobytes()


def test_every_pattern_survives_the_way_there_and_back_but_a_nan_loses_its_payload():
    there = bfloat16.to_float32(EVERY)
    back = bfloat16.from_float32(there)
    assert np.array_equal(back, np.where(np.isnan(there), bfloat16.NAN, EVERY))


@pytest.mark.torch
def test_random_bits_are_rounded_as_torch_rounds_them():
    values = np.random.default_rng(5).integers(0, 2**32, 2**21, dtype=np.uint32).view(np.float32)
    ours, theirs, nan = bfloat16.from_float32(values), torch_rounds(values), np.isnan(values)
    assert np.array_equal(ours[~nan], theirs[~nan])
    assert nan.any()
    assert np.isnan(bfloat16.to_float32(ours[nan])).all()


@pytest.mark.torch
def test_halfway_and_beside_it_is_rounded_as_torch_rounds_it_behind_every_pattern():
    for rest in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        values = ((EVERY.astype(np.uint32) << 16) | np.uint32(rest)).view(np.float32)
        fine = ~np.isnan(values)
        assert np.array_equal(bfloat16.from_float32(values)[fine], torch_rounds(values)[fine])


@given(arrays.arrays(np.uint32, st.integers(0, 100)))
def test_the_reference_says_the_same(bits):
    values = bits.view(np.float32)
    assert np.array_equal(bfloat16.from_float32(values), bfloat16.from_float32_reference(values))


def test_a_shape_stays_and_an_array_may_have_gaps():
    values = np.arange(24, dtype=np.float32).reshape(4, 6)[:, ::2]
    assert bfloat16.from_float32(values).shape == (4, 3)
    assert np.array_equal(bfloat16.to_float32(bfloat16.from_float32(values)), values)
