"""How a kernel's float32 becomes what an array holds: float32, or the bits of BF16 in uint16."""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from blob.codecs.bfloat16 import rounded


def stored(out: Any, value: Any) -> Any:
    """``value`` (float32) as an element of ``out``; for kernels only, which compile it."""
    raise NotImplementedError


@overload(stored, inline="always", strict=False)
def _stored(out: Any, value: Any) -> Any:
    if out.dtype == types.uint16:
        return lambda out, value: rounded(np.float32(value).view(np.uint32))
    return lambda out, value: np.float32(value)
