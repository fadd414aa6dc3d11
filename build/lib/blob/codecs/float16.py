"""IEEE 754 half precision in integer arithmetic: Numba has no float16 on a CPU.

Both ways are exact, subnormal numbers and infinities included, and equal what ggml's
``GGML_FP32_TO_FP16`` and ``GGML_FP16_TO_FP32`` give; ``numpy.float16`` is the reference. They
work on one number and are inlined into kernels.

Numba widens the sum of two 32-bit integers to 64 bits, which halves what a vector holds: every
step is narrowed at once.
"""

from typing import Any

import numpy as np
from numba import njit

SIGN = np.uint32(0x80000000)
SUBNORMAL = np.uint32(0x38800000)  # bits of 2⁻¹⁴: what is smaller is subnormal as a half
INFINITE = np.uint32(0x47800000)  # bits of 2¹⁶: what is not smaller is infinite as a half
REBIAS = np.uint32(0x38000000)  # the exponent's bias is 127 here and 15 there
HALF = np.uint32(0x3F000000)  # bits of 0.5, whose last place is a subnormal half's: 2⁻²⁴


@njit(inline="always")
def to_half(value: Any) -> Any:
    """Bits (uint16) of the half nearest to a float32, ties to even; from 65520 on, infinity."""
    bits = np.float32(value).view(np.uint32)
    sign = np.uint32(np.uint32(bits & SIGN) >> np.uint32(16))
    size = np.uint32(bits & np.uint32(0x7FFFFFFF))
    # Half of the last place that is kept, less one where the kept part is even.
    even = np.uint32(np.uint32(size >> np.uint32(13)) & np.uint32(1))
    carried = np.uint32(np.uint32(size - REBIAS) + np.uint32(even + np.uint32(0xFFF)))
    normal = np.uint32(carried >> np.uint32(13))
    # The processor rounds: the sum has no place for what a subnormal half cannot hold.
    shifted = np.float32(size.view(np.float32) + np.float32(0.5)).view(np.uint32)
    small = np.uint32(shifted - HALF)
    nan = size > np.uint32(0x7F800000)
    large = np.uint32(0x7E00) if nan else np.uint32(0x7C00)
    half = small if size < SUBNORMAL else (normal if size < INFINITE else large)
    return np.uint16(half | sign)


@njit(inline="always")
def from_half(bits: Any) -> Any:
    """The float32 that equals the half with these bits (uint16)."""
    wide = np.uint32(bits)
    sign = np.uint32(np.uint32(wide & np.uint32(0x8000)) << np.uint32(16))
    size = np.uint32(np.uint32(wide & np.uint32(0x7FFF)) << np.uint32(13))
    normal = np.uint32(size + REBIAS)
    # An exponent of all ones stays one: infinities and NaN.
    large = np.uint32(normal + REBIAS)
    fraction = np.uint32(wide & np.uint32(0x3FF))
    tiny = np.float32(np.uint32(HALF | fraction).view(np.float32) - np.float32(0.5))
    small = tiny.view(np.uint32)
    exponent = np.uint32(wide & np.uint32(0x7C00))
    full = exponent == np.uint32(0x7C00)
    value = small if exponent == np.uint32(0) else (large if full else normal)
    return np.uint32(value | sign).view(np.float32)
