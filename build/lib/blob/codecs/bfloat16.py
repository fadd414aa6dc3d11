"""BF16 as its bits: the upper half of a float32, in uint16, since NumPy has no such type.

Rounding is to nearest, ties to even, as IEEE 754 and torch do it; what is too large becomes an
infinity, and NaN stays NaN (one pattern, 0x7FC0, whatever its payload was; torch has two, by the
place of the number in the array). Nothing is flushed to zero: the processor's own conversion
(``vcvtneps2bf16``) would flush what is subnormal, so it is not used.

``rounded``, ``widened`` and ``nearest`` work on one number and are inlined into kernels.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from blob.codecs import Bfloats, Floats
from blob.codecs.kernel import kernel

NAN = 0x7FC0


@njit(inline="always")
def rounded(bits: Any) -> Any:
    """BF16 bits (uint16) of the float32 whose bits (uint32) these are."""
    bits = np.uint32(bits)
    # Half of the last place that is kept, less one where the kept part is even: ties to even.
    bias = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    nearest = (bits + bias) >> np.uint32(16)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.uint16(np.uint32(NAN) if nan else nearest)


@njit(inline="always")
def widened(bits: Any) -> Any:
    """Bits (uint32) of the float32 that equals the BF16 with these bits; nothing is lost."""
    return np.uint32(bits) << np.uint32(16)


@njit(inline="always")
def nearest(value: Any) -> Any:
    """The BF16 number nearest to a float32, as a float32."""
    return np.uint32(widened(rounded(np.float32(value).view(np.uint32)))).view(np.float32)


def from_float32(values: Floats) -> Bfloats:
    """BF16 bits of float32 numbers of any shape, rounded; a new array of that shape."""
    source = np.asarray(values, np.float32, order="C")
    out = np.empty(source.shape, np.uint16)
    round_into(source.reshape(-1).view(np.uint32), out.reshape(-1))
    return out


def to_float32(bits: Bfloats) -> Floats:
    """The numbers that BF16 bits of any shape stand for; a new array of that shape."""
    source = np.asarray(bits, np.uint16)
    return (source.astype(np.uint32) << np.uint32(16)).view(np.float32)


def from_float32_reference(values: Floats) -> Bfloats:
    """What ``from_float32`` gives, plainly: the nearer of the two neighbours, or the even one."""
    bits = np.asarray(values, np.float32, order="C").view(np.uint32).astype(np.int64)
    kept, rest = bits >> 16, bits & 0xFFFF
    up = (rest > 0x8000) | ((rest == 0x8000) & (kept & 1 == 1))
    return np.where(np.isnan(values), NAN, kept + up).astype(np.uint16)


@kernel
def round_into(bits: NDArray[np.uint32], out: Bfloats) -> None:
    """``rounded`` of every element of a contiguous vector; releases the GIL."""
    for i in range(bits.size):
        out[i] = rounded(bits[i])
