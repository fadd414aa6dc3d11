"""Halves in integer arithmetic against NumPy's. (All 2³² float32 were tried once: equal.)"""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from blob.codecs.float16 import from_half, to_half

EVERY = np.arange(2**16, dtype=np.uint32).astype(np.uint16)


@njit
def to_halves(values):
    out = np.empty(values.size, np.uint16)
    for i in range(values.size):
        out[i] = to_half(values[i])
    return out


@njit
def from_halves(halves):
    out = np.empty(halves.size, np.float32)
    for i in range(halves.size):
        out[i] = from_half(halves[i])
    return out


def check(values):
    with np.errstate(all="ignore"):
        theirs = values.astype(np.float16).view(np.uint16)
    ours, nan = to_halves(values), np.isnan(values)
    assert np.array_equal(ours[~nan], theirs[~nan])
    assert np.isnan(ours[nan].view(np.float16)).all()


def test_every_half_is_read_as_numpy_reads_it():
    ours, theirs = from_halves(EVERY), EVERY.view(np.float16).astype(np.float32)
    nan = np.isnan(theirs)
    assert np.array_equal(ours[~nan].view(np.uint32), theirs[~nan].view(np.uint32))
    assert np.isnan(ours[nan]).all()


def test_the_middle_between_every_two_halves_and_what_is_beside_it_is_rounded_as_numpy_rounds_it():
    halves = from_halves(EVERY)
    finite = np.sort(halves[np.isfinite(halves)]).astype(np.float64)
    middle = ((finite[:-1] + finite[1:]) / 2).astype(np.float32)
    for values in (halves, middle, np.nextafter(middle, 1e9), np.nextafter(middle, -1e9)):
        check(values.astype(np.float32))
    check(np.float32([65519.99, 65520, -65520, 1e38, np.inf, -np.inf, 1e-45, -0.0]))


def test_random_bits_are_rounded_as_numpy_rounds_them():
    check(np.random.default_rng(2).integers(0, 2**32, 2**20, np.uint32).view(np.float32))


@given(st.floats(width=32))
def test_any_float_is_rounded_as_numpy_rounds_it(number):
    check(np.float32([number]))
