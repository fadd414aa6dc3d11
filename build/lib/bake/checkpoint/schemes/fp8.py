"""Eight-bit floats with scales: of a tensor, of each output, or of each block.

``X.weight`` is F8_E4M3 or F8_E5M2, and its numbers are multiplied by ``X.weight_scale_inv``
(DeepSeek, Qwen; an inverse in name only) or ``X.weight_scale`` (compressed-tensors, FBGEMM,
ModelOpt): one number, ``[out]`` or ``[out, 1]``, or ``[⌈out/m⌉, ⌈in/n⌉]`` for blocks of m × n,
smaller at the edges. Experts that are stacked have one dimension more, in both. F8_E8M0 scales are
powers of two; transformers takes bytes (U8) for the same.

One float32 product, as transformers' ``Fp8Dequantize`` has it, which then rounds to the type it is
asked for. compressed-tensors multiplies in the scale's type: ours, rounded to that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bake.checkpoint.contents import Tensor
from bake.checkpoint.dequant import groups
from bake.checkpoint.dequant.plain import TABLES, aligned, float32
from bake.checkpoint.output import Output
from bake.checkpoint.schemes import parts
from bake.checkpoint.schemes.parts import SCALES, Block, Checkpoint
from bake.errors import BakeError, Unsupported

CODES = ("F8_E4M3", "F8_E5M2")
SUFFIXES = ("_scale_inv", "_scale")


@dataclass(frozen=True)
class Layer:
    """How one weight is stored: ``stack`` matrices of ``rows`` × ``cols``, each of which has
    scales of its own: those of ``block`` rows and columns.
    """

    dtype: str
    scale: str
    stack: int
    rows: int
    cols: int
    block: Block

    def fill(self, inputs: Sequence[NDArray[Any]], out: NDArray[Any], threads: int) -> None:
        """Every number."""
        codes = inputs[0].reshape(-1, self.cols)
        grid = groups_of(self)
        scales = inputs[1].reshape(self.stack * grid[0], grid[1])
        target = out.reshape(codes.shape)

        def some(rows: slice) -> None:
            place = np.arange(rows.start, rows.stop)
            own = place // self.rows * grid[0] + place % self.rows // self.block[0]
            scale = float32(scales[own], self.scale)
            groups.multiply_table(
                aligned(codes[rows]), TABLES[self.dtype], scale, self.block[1], target[rows]
            )

        groups.each_rows(some, target.shape, threads)


def groups_of(layer: Layer) -> Block:
    """How many scales a matrix has, down and across."""
    return (
        parts.groups_of(layer.rows, layer.block[0]),
        parts.groups_of(layer.cols, layer.block[1]),
    )


def outputs(checkpoint: Checkpoint) -> list[Output]:
    """The weights of eight-bit floats that have a scale.

    :raises Malformed: a scale is missing that the config promises, or does not fit.
    :raises Unsupported: how the scale is to be taken is not known here.
    """
    return [
        of(checkpoint, tensor, name)
        for tensor in checkpoint.tensors.values()
        if tensor.dtype in CODES and (name := scale_name(checkpoint, tensor))
    ]


def scale_name(checkpoint: Checkpoint, tensor: Tensor) -> str:
    """The name of a tensor's scales; nothing for an eight-bit scale or table of no scheme.

    :raises Malformed: it should have one.
    :raises Unsupported: it has two.
    """
    found = [tensor.name + end for end in SUFFIXES if tensor.name + end in checkpoint.tensors]
    if len(found) > 1:
        raise Unsupported(f"{tensor.name}: both {found[0]} and {found[1]} are there")
    if not found and checkpoint.settings and tensor.name.endswith(".weight"):
        raise parts.unfit(f"{tensor.name}_scale", f"is missing: {tensor.name} is {tensor.dtype}")
    return found[0] if found else ""


def of(checkpoint: Checkpoint, tensor: Tensor, name: str) -> Output:
    """One weight, with the scales of this name."""
    if not 1 < len(tensor.shape) <= 3 or not tensor.count:
        raise parts.unfit(tensor.name, f"expected a matrix or a stack, got {list(tensor.shape)}")
    if f"{tensor.name}_scale_2" in checkpoint.tensors or point(tensor) in checkpoint.tensors:
        raise Unsupported(f"{tensor.name}: more than one scale, or a zero point, is not known here")
    scale = checkpoint.need(name, (*SCALES, "F8_E8M0", "U8"))
    stack = tensor.shape[0] if len(tensor.shape) == 3 else 1
    rows, cols = tensor.shape[-2:]
    block = block_of(checkpoint, tensor, scale)
    kind = "F8_E8M0" if scale.dtype == "U8" else scale.dtype
    layer = Layer(tensor.dtype, kind, stack, rows, cols, block)
    if scale.count != stack * groups_of(layer)[0] * groups_of(layer)[1]:
        raise parts.wrong_shape(scale, (*tensor.shape[:-2], *groups_of(layer)))
    return parts.output(tensor.name, tensor.shape, [tensor, scale], layer.fill)


def point(tensor: Tensor) -> str:
    """The name that a zero point would have."""
    return f"{tensor.name}_zero_point"


def block_of(checkpoint: Checkpoint, tensor: Tensor, scale: Tensor) -> Block:
    """Rows and columns that share a scale, by the scales' shape and what the config says.

    :raises Malformed: no size that is known has scales of this shape.
    """
    *stack, rows, cols = tensor.shape
    tensorwide = [(*stack,), (*stack, 1), (*stack, 1, 1)] if stack else [(), (1,), (1, 1)]
    if scale.shape in tensorwide:
        return rows, cols
    for block in checkpoint.blocks:
        grid = (parts.groups_of(rows, block[0]), parts.groups_of(cols, block[1]))
        if scale.shape == (*stack, *grid):
            return block
    if scale.shape in [(*stack, rows), (*stack, rows, 1)]:
        return 1, cols
    if not checkpoint.blocks:
        raise parts.unfit(
            scale.name,
            f"{list(scale.shape)} scales for {list(tensor.shape)}, and config.json has no"
            " weight_block_size",
        )
    block = checkpoint.blocks[0]
    expected = (*stack, parts.groups_of(rows, block[0]), parts.groups_of(cols, block[1]))
    raise parts.wrong_shape(scale, expected)


def check(checkpoint: Checkpoint) -> None:
    """Whether what the config says of all layers is known here.

    :raises Unsupported: it is not.
    """
    settings = checkpoint.settings
    algorithm = settings.get("quant_algo", "FP8")
    if settings.get("quant_method") == "modelopt" and algorithm != "FP8":
        raise Unsupported(f"modelopt: {parts.shown(algorithm)} is not known here (FP8 is)")


def described(checkpoint: Checkpoint) -> str:
    """``block 128×128``, or what scales are of."""
    try:
        named = checkpoint.blocks
    except BakeError:
        named = []
    return f"block {named[0][0]}×{named[0][1]}" if named else ""
