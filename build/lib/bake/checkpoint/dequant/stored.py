"""How a kernel's float32 becomes what an array holds: float32, or the bits of BF16 in uint16."""

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

from blob.codecs.bfloat16 import NAN


def stored(out: Any, value: Any) -> Any:
    """``value`` (float32) as an element of ``out``; for kernels only, which compile it."""
    raise NotImplementedError


@overload(stored, inline="always", strict=False)
def _stored(out: Any, value: Any) -> Any:
    if out.dtype == types.uint16:
        return lambda out, value: narrow(value)
    return lambda out, value: np.float32(value)


@njit(inline="always")
def narrow(value: Any) -> Any:
    """``bfloat16.rounded``, each step cut to 32 bits at once: Numba widens a sum of two such to
    64, and a vector would hold half as many.
    """
    bits = np.float32(value).view(np.uint32)
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    near = np.uint32(bits + np.uint32(odd + np.uint32(0x7FFF)))
    nan = np.uint32(bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.uint16(np.uint32(NAN) if nan else np.uint32(near >> np.uint32(16)))
