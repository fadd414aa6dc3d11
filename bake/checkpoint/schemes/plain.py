"""Tensors that nobody quantized: floats are cast, whole numbers and truth values are kept."""

from collections.abc import Sequence
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

    def fill(inputs: Sequence[NDArray[Any]], out: NDArray[Any], threads: int) -> None:
        cast(inputs[0], tensor.dtype, out, threads)

    return output(tensor.name, tensor.shape, [tensor], fill)


def keep(inputs: Sequence[NDArray[Any]], out: NDArray[Any], threads: int) -> None:
    """The one input, as it is."""
    del threads
    out[...] = inputs[0]
