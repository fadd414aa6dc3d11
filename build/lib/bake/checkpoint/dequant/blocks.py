"""One block type of ggml: how many numbers a block holds, in how many bytes, and who reads it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.float32] | NDArray[np.uint16]  # float32, or BF16 as its bits

# ``rows(blocks, stride, rows, out)``: flat bytes in which rows begin ``stride`` apart, how many
# rows there are, and flat numbers to fill, float32 or BF16 bits (``byte_lanes.store_numbers``).
# It trusts no byte, stays inside both arrays, and releases the GIL.
Kernel = Callable[[Bytes, int, int, Numbers], None]


@dataclass(frozen=True)
class Blocks:
    """``name`` as in GGUF (``Q4_K``); ``values`` numbers of a row lie in ``size`` bytes."""

    name: str
    values: int
    size: int
    rows: Kernel
