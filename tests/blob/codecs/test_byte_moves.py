"""Sixteen bytes are moved as NumPy would move them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit
from numba.core.errors import TypingError

from blob.codecs.byte_lanes import load_bytes, save_bytes, store_numbers
from blob.codecs.byte_moves import flags, lower, picked, product, third, upper
from blob.codecs.lanes import splat

SIXTEEN = st.binary(min_size=16, max_size=16).map(lambda raw: np.frombuffer(raw, np.uint8).copy())


@njit
def moved(a, b, word, out):
    first, second = load_bytes(a, 0), load_bytes(b, 0)
    save_bytes(out, 0, picked(first, second))
    save_bytes(out, 16, lower(first, second))
    save_bytes(out, 32, upper(first, second))
    save_bytes(out, 48, product(first, second))
    save_bytes(out, 64, third(first))
    save_bytes(out, 80, flags(word))


@given(SIXTEEN, SIXTEEN, st.integers(0, 2**16 - 1))
def test_bytes_are_moved_as_numpy_would(a, b, word):
    out = np.zeros(96, np.uint8)
    moved(a, b, word, out)
    wanted = [
        a[b & 15],
        np.concatenate([a[:8], b[:8]]),
        np.concatenate([a[8:], b[8:]]),
        a * b,
        (a.astype(np.uint16) * 3 >> 8).astype(np.uint8),
        (word >> np.arange(16) & 1).astype(np.uint8),
    ]
    assert np.array_equal(out.reshape(6, 16), np.stack(wanted))


@njit
def write(out, number):
    store_numbers(out, 0, splat(number))


@pytest.mark.parametrize("number", [1.5, -0.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 3.4e38, 1e-40])
def test_numbers_are_stored_as_what_the_array_holds(number):
    floats, bfloats = np.empty(16, np.float32), np.empty(16, np.uint16)
    write(floats, number)
    write(bfloats, number)
    assert floats.tobytes() == np.full(16, number, np.float32).tobytes()
    bits = int(floats.view(np.uint32)[0])
    half = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16  # to nearest, ties to even
    assert (bfloats == half).all()


def test_numbers_are_stored_as_nothing_else():
    with pytest.raises(TypingError, match="float32 or uint16"):
        write(np.empty(16, np.float64), 1.0)
