"""One tensor as an array: the numbers as they are stored.

Nothing is copied where the source gives views, and the numbers lie in a row, little-endian and at
a multiple of their size; such arrays cannot be written to. BF16 and the 8-bit floats come as their
bits, ggml's blocks as rows of bytes.
"""

import sys
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bake.checkpoint import ggml_types, npz
from bake.checkpoint.contents import Tensor
from bake.checkpoint.limits import DEFAULT, ParseLimits
from bake.checkpoint.members import inflate
from bake.checkpoint.source import Source
from bake.errors import Malformed, Unsupported
from blob.numpy_types import NUMPY

# Values and bytes of a block.
BLOCKS = {
    kind.name: (kind.values, kind.size)
    for kind in ggml_types.TYPES.values()
    if kind.name not in NUMPY
}

# Numbers of at most 16 bytes in an array of NumPy's, if they were there.
MOST = sys.maxsize // 16


def array(source: Source, tensor: Tensor, limits: ParseLimits = DEFAULT) -> NDArray[Any]:
    """The tensor's numbers, in its shape; ggml's blocks as uint8 (rows × bytes of a row), with a
    row for each but the last dimension.

    A view with strides comes with these strides, and may have more elements than bytes behind it.
    It is whoever copies that takes memory: the parser has bounded it.

    :raises Malformed: the bytes are not there, or not as many as the shape says.
    :raises Unsupported: a type that has no array here (complex, 4-bit and 6-bit floats).
    """
    # NumPy multiplies the lengths of an empty array too, all but those that are 0.
    if not tensor.count and prod(filter(None, tensor.shape)) > MOST:
        raise _wrong(source, tensor)
    if tensor.dtype in BLOCKS:
        return _blocks(source, tensor, limits)
    kind = NUMPY.get(tensor.dtype)
    if kind is None:
        raise Unsupported(f"{source.name}: {tensor.name} has numbers of the type {tensor.dtype}")
    raw = _bytes(source, tensor, limits)
    flat = np.frombuffer(raw, kind, len(raw) // kind.itemsize)
    if flat.nbytes != len(raw) or _span(tensor) != flat.size:
        raise _wrong(source, tensor)
    if tensor.big_endian != (sys.byteorder == "big") and kind.itemsize > 1:
        flat = flat.byteswap()
    elif not flat.flags.aligned:
        # Kernels are compiled for numbers at multiples of their size.
        flat = flat.copy()
    if tensor.strides is None:
        return flat.reshape(tensor.shape)
    # Within its buffer by NumPy's own check, beside ours.
    strides = tuple(stride * kind.itemsize for stride in tensor.strides)
    return np.ndarray(tensor.shape, kind, flat, strides=strides)


def _span(tensor: Tensor) -> int:
    """Elements from the first that a tensor touches to the last."""
    if tensor.strides is None or not tensor.count:
        return tensor.count
    if len(tensor.strides) != len(tensor.shape) or min(tensor.strides, default=0) < 0:
        return -1
    pairs = zip(tensor.shape, tensor.strides, strict=True)
    return sum((length - 1) * stride for length, stride in pairs) + 1


def _bytes(source: Source, tensor: Tensor, limits: ParseLimits) -> memoryview:
    if not tensor.deflated:
        return source.read(tensor.offset, tensor.offset + tensor.nbytes)
    # Only NPZ has such, and what is deflated there is a whole .npy.
    raw = source.read(tensor.offset, tensor.offset + tensor.deflated)
    return _after_header(source, tensor, raw, limits)


def _after_header(
    source: Source, tensor: Tensor, raw: memoryview, limits: ParseLimits
) -> memoryview:
    begin = npz.deflated_header(source, tensor.offset, tensor.deflated)
    if begin + tensor.nbytes > limits.allocation_bytes:
        raise Malformed(
            source.name,
            f"{tensor.name} inflates to {tensor.nbytes} bytes: more than is allowed",
            tensor.offset,
        )
    return memoryview(inflate(source, raw, begin + tensor.nbytes, tensor.offset))[begin:]


def _blocks(source: Source, tensor: Tensor, _limits: ParseLimits) -> NDArray[np.uint8]:
    values, size = BLOCKS[tensor.dtype]
    cols = tensor.shape[-1] if tensor.shape else 0
    rows = prod(tensor.shape[:-1])
    if cols % values or tensor.nbytes != rows * (cols // values) * size or tensor.deflated:
        raise _wrong(source, tensor)
    if tensor.big_endian:
        raise Unsupported(f"{source.name}: {tensor.name} has {tensor.dtype} of big-endian scales")
    raw = source.read(tensor.offset, tensor.offset + tensor.nbytes)
    return np.frombuffer(raw, np.uint8).reshape(rows, cols // values * size)


def _wrong(source: Source, tensor: Tensor) -> Malformed:
    return Malformed(
        source.name,
        f"{tensor.name}: {tensor.nbytes} bytes for {tensor.dtype} {list(tensor.shape)}",
        tensor.offset,
    )
