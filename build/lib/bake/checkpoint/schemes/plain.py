"""Tensors that nobody quantized: floats are cast, whole numbers and truth values are kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from bake.checkpoint.contents import Tensor
from bake.checkpoint.dequant.plain import FLOATS, cast
from bake.checkpoint.output import Output
from bake.checkpoint.schemes.parts import output
from bake.errors import Unsupported

KEPT = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")


def of(tensor: Tensor) -> Output:
    """The tensor under its own name.

    :raises Unsupported: its type is neither.
    """
    if tensor.dtype in KEPT:
        return output(tensor.name, tensor.shape, [tensor], keep, tensor.dtype)
    if tensor.dtype not in FLOATS:
        raise Unsupported(f"{tensor.name}: numbers of type {tensor.dtype} are not known here")

    return output(tensor.name, tensor.shape, [tensor], Plain(tensor.dtype).fill)


@dataclass(frozen=True)
class Plain:
    """Numbers of one type."""

    dtype: str

    def fill(self, inputs: Sequence[NDArray[Any]], out: NDArray[Any], threads: int) -> None:
        """The one input, cast."""
        cast(inputs[0], self.dtype, out, threads)


def keep(inputs: Sequence[NDArray[Any]], out: NDArray[Any], threads: int) -> None:
    """The one input, as it is."""
    del threads
    out[...] = inputs[0]
