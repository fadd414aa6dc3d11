"""Eight-bit integers, one in a byte: compressed-tensors' ``int-quantized`` and
``naive-quantized``, and bitsandbytes' LLM.int8.

compressed-tensors: ``X.weight`` I8 times ``X.weight_scale``, of the tensor, of each output
(``[out, 1]``), or of each group of inputs (``[out, groups]``), once ``X.weight_zero_point`` of the
same shape is taken from it, if there is one. It multiplies in the scale's type: its numbers are
ours, rounded to that.

bitsandbytes: ``X.weight`` I8 times ``X.SCB`` F32 of each output, times float32's 1/127: two
products, each rounded, as its ``int8_vectorwise_dequant`` has them. ``weight_format`` other than 0
(rows) are layouts of old graphics cards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bake.checkpoint.contents import Tensor
from bake.checkpoint.dequant import groups
from bake.checkpoint.dequant.plain import aligned, float32
from bake.checkpoint.output import Output
from bake.checkpoint.schemes import parts
from bake.checkpoint.schemes.parts import SCALES, Checkpoint
from bake.errors import Unsupported

# bitsandbytes/_ops.py: this constant, to the last digit, as a float32.
PER_127 = np.float32(7.874015718698502e-3)


@dataclass(frozen=True)
class Layer:
    """How one weight of compressed-tensors is stored; ``high`` rows share their scales."""

    rows: int
    cols: int
    high: int
    group: int
    scale: str
    pointed: bool

    def fill(self, inputs: Sequence[NDArray[Any]], out: NDArray[Any], threads: int) -> None:
        """Every weight."""
        many = (parts.groups_of(self.rows, self.high), parts.groups_of(self.cols, self.group))
        scales = inputs[1].reshape(many)
        points = inputs[2].reshape(many) if self.pointed else None

        def some(rows: slice) -> None:
            own = np.arange(rows.start, rows.stop) // self.high
            scale = float32(scales[own], self.scale)
            zero = np.zeros_like(scale) if points is None else points[own].astype(np.float32)
            groups.multiply(aligned(inputs[0][rows]), scale, zero, self.group, None, out[rows])

        groups.each_rows(some, (self.rows, self.cols), threads)


def outputs(checkpoint: Checkpoint) -> list[Output]:
    """The I8 weights that have a scale.

    :raises Malformed: a scale does not fit.
    :raises Unsupported: how it is to be taken is not known here.
    """
    found = []
    for tensor in checkpoint.tensors.values():
        if tensor.dtype == "I8" and f"{tensor.name}_scale" in checkpoint.tensors:
            found.append(_scaled(checkpoint, tensor))
        elif f"{tensor.name.removesuffix('.weight')}.SCB" in checkpoint.tensors:
            found.append(_vectorwise(checkpoint, tensor))
    return found


def _scaled(checkpoint: Checkpoint, tensor: Tensor) -> Output:
    weight = checkpoint.matrix(tensor.name, ("I8",))
    if f"{weight.name}_g_idx" in checkpoint.tensors:
        raise Unsupported(f"{weight.name}_g_idx: act-order of unpacked integers is not known here")
    scale = checkpoint.need(f"{weight.name}_scale", SCALES)
    high, group = spread(checkpoint, weight.shape, scale)
    name = f"{weight.name}_zero_point"
    point = [checkpoint.need(name, ("I8",), scale.shape)] if name in checkpoint.tensors else []
    rows, cols = weight.shape
    layer = Layer(rows, cols, high, group, scale.dtype, bool(point))
    return parts.output(weight.name, weight.shape, [weight, scale, *point], layer.fill)


def spread(checkpoint: Checkpoint, shape: tuple[int, ...], scale: Tensor) -> tuple[int, int]:
    """Rows and columns that share a scale of a matrix of ``shape``.

    :raises Malformed: no strategy that the config names has scales of this shape.
    """
    rows, cols = shape
    if scale.shape in ((), (1,), (1, 1)):
        return rows, cols
    if scale.shape in ((rows,), (rows, 1)):
        return 1, cols
    sizes = list(dict.fromkeys(parts.group_size(each, cols) for each in grouped(checkpoint)))
    for group in sizes:
        if scale.shape == (rows, parts.groups_of(cols, group)):
            return 1, group
    for high, wide in checkpoint.blocks:
        if scale.shape == (parts.groups_of(rows, high), parts.groups_of(cols, wide)):
            return high, wide
    raise parts.unfit(
        scale.name, f"{list(scale.shape)} scales for {list(shape)}, in groups of {sizes or 'none'}"
    )


def grouped(checkpoint: Checkpoint) -> list[Mapping[str, Any]]:
    """The groups of the config that say a size of their groups."""
    return [each for each in checkpoint.weights if each.get("group_size") is not None]


def _vectorwise(checkpoint: Checkpoint, tensor: Tensor) -> Output:
    weight = checkpoint.matrix(tensor.name, ("I8",))
    stem = weight.name.removesuffix(".weight")
    scale = checkpoint.need(f"{stem}.SCB", ("F32",), (weight.shape[0],))
    form = f"{stem}.weight_format"
    # One byte, of any shape of one.
    told = [checkpoint.need(form, ("U8", "I8", "I32", "I64"))] if form in checkpoint.tensors else []
    if told and told[0].count != 1:
        raise parts.wrong_shape(told[0], ())

    fill = Vectorwise(form, bool(told)).fill
    return parts.output(weight.name, weight.shape, [weight, scale, *told], fill)


@dataclass(frozen=True)
class Vectorwise:
    """A weight of LLM.int8, whose layout may be told."""

    form: str
    told: bool

    def fill(self, inputs: Sequence[NDArray[Any]], out: NDArray[Any], threads: int) -> None:
        """:raises Unsupported: its layout is one of old graphics cards."""
        if self.told and int(inputs[2].reshape(())) != 0:
            raise Unsupported(f"{self.form}: only rows (0) are known here, got {inputs[2]}")

        def some(rows: slice) -> None:
            own = aligned(inputs[1][rows])
            groups.multiply_twice(aligned(inputs[0][rows]), own, PER_127, out[rows])

        groups.each_rows(some, as_pair(out), threads)


def as_pair(matrix: NDArray[Any]) -> tuple[int, int]:
    """Its rows and columns."""
    return matrix.shape[0], matrix.shape[1]
