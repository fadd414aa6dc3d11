"""Scales taken into the weights around them, so that the model stays what it was.

A norm's weight is kept in BF16, so dividing it by a number gives another one than was asked for:
where a norm multiplies by 1 + w and the quotient is small, 1 + w next to zero, one that is wrong by
a tenth and more. So the scales that are used are those that the *rounded* norm divides by; what is
left is the rounding of the columns, which goes into the four bits anyway.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blob.codecs import Bfloats, Floats, bfloat16

# What a scale may be, relative to the one asked for, before the element is left alone.
FAR = 2.0
ALL = slice(None)


@dataclass
class Folds:
    """What becomes of tensors, by name: factors of ``columns``, divisors of ``rows`` (of a bias:
    of its elements), and norms that are ``replaced`` by BF16 bits. Filled by the search.
    """

    columns: dict[str, Floats] = field(default_factory=dict)
    rows: dict[str, Floats] = field(default_factory=dict)
    replaced: dict[str, Bfloats] = field(default_factory=dict)

    def of(self, name: str, values: Floats, some: slice = ALL) -> Floats:
        """``values`` (``some`` rows) of the tensor ``name`` with its factors; itself where it has
        none.
        """
        if (columns := self.columns.get(name)) is not None:
            values = values * columns
        if (rows := self.rows.get(name)) is not None:
            values = values / rows[some].reshape(-1, *[1] * (values.ndim - 1))
        return values

    def touches(self, name: str) -> bool:
        """Whether the tensor changes before it is stored."""
        return name in self.columns or name in self.rows or name in self.replaced


def divided_norm(weight: Floats, offset: float, scales: Floats) -> tuple[Bfloats, Floats]:
    """``weight`` so that ``offset + weight`` is divided by ``scales``, as BF16 bits, and by what
    it really is divided then. Vectors of the norm's width.

    An element that BF16 cannot divide, since it is zero or would become so, stays.
    """
    # In double: where nothing is divided, w must come back out of (1 + w) − 1.
    was = offset + weight.astype(np.float64)
    bits = bfloat16.from_float32((was / scales - offset).astype(np.float32))
    now = offset + bfloat16.to_float32(bits).astype(np.float64)
    with np.errstate(all="ignore"):
        real = was / now
        kept = ~((real / scales < FAR) & (scales / real < FAR))
    own = bfloat16.from_float32(weight)
    return np.where(kept, own, bits), np.where(kept, np.float32(1), real).astype(np.float32)


def floats(stored: NDArray[Any], dtype: str) -> Floats:
    """Stored numbers (BF16 as its bits) as float32; a new array."""
    return bfloat16.to_float32(stored) if dtype == "BF16" else stored.astype(np.float32)


def bits_as(values: Floats, dtype: str) -> NDArray[Any]:
    """``values`` as a tensor of ``dtype`` is stored: BF16 as its bits."""
    if dtype == "BF16":
        return bfloat16.from_float32(np.ascontiguousarray(values, np.float32))
    return values.astype(np.float16 if dtype == "F16" else np.float32)
