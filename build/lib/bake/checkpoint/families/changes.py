"""What llama.cpp's converter did to a tensor, undone while it is written.

Rows can be put back in order as they are stored, whatever their type: a block never spans two.
Columns and values need the numbers. So one extra copy of a tensor at most is held.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.intp]
Order = Callable[[Mapping[str, int]], Index]


@dataclass(frozen=True)
class Change:
    """``rows`` and ``columns`` give where in the stored tensor each of the folder's is."""

    rows: Order | None = None
    columns: Order | None = None
    values: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None


AS_IS = Change()


@dataclass(frozen=True)
class Filling:
    """An ``Output.fill`` of one stored tensor of type ``dtype``."""

    dtype: str
    change: Change
    dims: Mapping[str, int]

    def __call__(self, inputs: Sequence[NDArray[Any]], out: NDArray[Any], threads: int) -> None:
        """As ``Output`` has it."""
        (stored,) = inputs
        if self.change.rows:
            stored = stored[self.change.rows(self.dims)]
        if self.change.columns:
            numbers = np.empty(out.shape, out.dtype)
            numbers_of(self.dtype, stored, numbers, threads)
            # "clip" spares the copy that the default mode makes; no index is out of range.
            np.take(numbers, self.change.columns(self.dims), axis=1, out=out, mode="clip")
        elif self.change.values:
            numbers = np.empty(out.shape, np.float32)
            numbers_of(self.dtype, stored, numbers, threads)
            numbers_of("F32", self.change.values(numbers), out, threads)
        else:
            numbers_of(self.dtype, stored, out, threads)


def numbers_of(dtype: str, stored: NDArray[Any], out: NDArray[Any], threads: int) -> None:
    """Stored numbers, plain or in blocks, as ``out`` has them (float32, or BF16's bits)."""
    # Kernels are imported where numbers are made: to know shapes none is needed.
    from bake.checkpoint.dequant import ggml, plain

    if dtype in plain.FLOATS:
        plain.cast(stored.reshape(out.shape), dtype, out, threads)
    else:
        ggml.dequantize(dtype, stored, out.reshape(len(stored), -1), threads)


def halves(heads: str, width: str = "width") -> Order:
    """Rows of a query or key matrix, from pairs of neighbours to pairs half a head apart.

    GGUF's llama keeps them for a rotation of neighbours: its row ``2j + s`` of a head is the
    folder's ``j + s·width/2`` (``LlamaModel.permute`` of llama.cpp's converter).
    """

    def order(dims: Mapping[str, int]) -> Index:
        at = np.arange(dims[heads] * dims[width])
        return at.reshape(dims[heads], dims[width] // 2, 2).swapaxes(1, 2).reshape(-1)

    return order


def grouped(width: str, before: str = "") -> Order:
    """Value heads of gated delta nets, from tiled to grouped by their key head.

    GGUF has the first value head of each key head, then the second of each, …; the folder has
    all of the first key head's, then the second's (``_reorder_v_heads``). ``width`` is how many
    rows a head has, ``before`` how many there are that are no value heads' and stay.
    """

    def order(dims: Mapping[str, int]) -> Index:
        skip = dims[before] if before else 0
        keys = dims["key_heads"]
        each = dims["value_heads"] // keys
        at = np.arange(each * keys * dims[width]).reshape(each, keys, dims[width])
        return np.concatenate([np.arange(skip), skip + at.swapaxes(0, 1).reshape(-1)])

    return order


def less_one(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Norms that multiply by 1 + weight: GGUF keeps the sum, the folder the weight."""
    return scale - np.float32(1)


def log_of_minus(decay: NDArray[np.float32]) -> NDArray[np.float32]:
    """A_log of −exp(A_log). In double precision: the nearest float32 comes back."""
    return np.log(-decay.astype(np.float64)).astype(np.float32)


HALVES_OF_QUERIES = Change(rows=halves("heads"))
HALVES_OF_KEYS = Change(rows=halves("groups"))
LESS_ONE = Change(values=less_one)
