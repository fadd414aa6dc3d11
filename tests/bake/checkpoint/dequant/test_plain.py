"""Plain numbers become float32 or BF16 as torch makes them."""

import numpy as np
import pytest

from bake.checkpoint.dequant import plain
from bake.errors import Unsupported
from blob.codecs import bfloat16
from blob.numpy_types import NUMPY

BITS = {1: np.uint8, 2: np.uint16}


def every(dtype):
    """All numbers of a type of up to 16 bits."""
    width = np.dtype(NUMPY[dtype]).itemsize
    return np.arange(256**width).astype(BITS[width]).view(NUMPY[dtype])


def cast(array, dtype, into=np.float32, threads=1):
    out = np.zeros(array.shape, into)
    plain.cast(array, dtype, out, threads)
    return out


def by_torch(array, dtype, into):
    torch = pytest.importorskip("torch")
    kinds = {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "F8_E8M0": torch.float8_e8m0fnu,
    }
    source = torch.from_numpy(array).view(kinds[dtype])
    if into == np.float32:
        return source.to(torch.float32).numpy()
    return source.to(torch.float32).to(torch.bfloat16).view(torch.uint16).numpy()


def assert_same(ours, theirs):
    """Bit for bit, NaN apart: of that torch has several."""
    floats = ours if ours.dtype == np.float32 else bfloat16.to_float32(ours)
    others = theirs if theirs.dtype == np.float32 else bfloat16.to_float32(theirs)
    nan = np.isnan(others)
    np.testing.assert_array_equal(np.isnan(floats), nan)
    kind = np.uint32 if ours.dtype == np.float32 else np.uint16
    np.testing.assert_array_equal(ours.view(kind)[~nan], theirs.view(kind)[~nan])


@pytest.mark.torch
@pytest.mark.parametrize("into", [np.float32, np.uint16])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0"])
def test_every_number_of_a_small_type_is_torchs(dtype, into):
    numbers = every(dtype)
    assert_same(cast(numbers, dtype, into), by_torch(numbers, dtype, into))


@pytest.mark.torch
@pytest.mark.parametrize("into", [np.float32, np.uint16])
@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_random_bits_of_a_large_type_are_torchs(dtype, into):
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 256, 80_000, dtype=np.uint8).view(NUMPY[dtype])
    near = rng.standard_normal(10_000).astype(NUMPY[dtype])
    edges = np.array([0, -0.0, np.inf, -np.inf, np.nan, 3.4e38, 1e-45, 2**-133], NUMPY[dtype])
    together = np.concatenate([numbers, near, edges])
    assert_same(cast(together, dtype, into), by_torch(together, dtype, into))


def test_f64_beyond_float32_is_infinite_and_says_nothing():
    assert cast(np.array([1e300, -1e300]), "F64").tolist() == [np.inf, -np.inf]


def test_bf16_is_copied_whatever_its_bits():
    numbers = every("BF16")
    np.testing.assert_array_equal(cast(numbers, "BF16", np.uint16), numbers)


@pytest.mark.parametrize("into", [np.float32, np.uint16])
def test_bytes_are_the_same_on_any_number_of_threads(into):
    numbers = np.random.default_rng(1).standard_normal((7, 70_001)).astype(np.float16)
    alone = cast(numbers, "F16", into)
    for threads in (2, 3, 7):
        assert cast(numbers, "F16", into, threads).tobytes() == alone.tobytes()


def test_arrays_may_be_read_only_strided_unaligned_or_of_the_other_byte_order():
    numbers = np.arange(24, dtype=np.float32).reshape(4, 6)
    frozen = numbers.copy()
    frozen.flags.writeable = False
    shifted = np.frombuffer(b"\0" + numbers.tobytes(), np.float32, offset=1).reshape(4, 6)
    for array in (frozen, shifted, numbers.astype(">f4"), numbers.T.copy().T):
        np.testing.assert_array_equal(cast(array, "F32"), numbers)


def test_nothing_and_a_scalar_can_be_cast():
    assert cast(np.zeros((0, 3), np.float16), "F16").shape == (0, 3)
    assert cast(np.array(2, np.float16), "F16") == 2


@pytest.mark.parametrize("dtype", ["I32", "BOOL", "Q4_K", "F4"])
def test_what_is_no_float_is_refused(dtype):
    with pytest.raises(Unsupported, match=dtype):
        cast(np.zeros(3, np.int32), dtype)


def test_arrays_of_the_wrong_kind_are_refused():
    with pytest.raises(ValueError, match="held as float16"):
        cast(np.zeros(3, np.float32), "F16")
    with pytest.raises(ValueError, match="contiguous float32"):
        cast(np.zeros(3, np.float32), "F32", np.float64)
    with pytest.raises(ValueError, match="3 elements"):
        plain.cast(np.zeros(3, np.float32), "F32", np.zeros(4, np.float32))
