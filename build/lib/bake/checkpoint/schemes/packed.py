"""compressed-tensors' ``pack-quantized``: integers of one to eight bits in int32 words.

Of a layer of ``out`` × ``in`` weights: ``weight_packed`` [out, words] holds rows of integers plus
half of their range; ``weight_scale`` is of each group of inputs ([out, groups]), of each output
([out, 1]) or of the tensor; ``weight_zero_point``, if there is one, is packed likewise along its
first dimension ([words, groups]), or I8 and whole where it is the tensor's; ``weight_shape`` says
[out, in]; ``weight_g_idx`` [in] the group of each input.

Bits that do not divide 32 are packed in two ways, which nothing in a checkpoint names: with whole
numbers in each word (package 0.17.0), or dense, across words (0.20.0, and vLLM). The number of
words tells them apart; where it does not, the two may still be the same bytes, or are refused.

The package multiplies in the scale's type: its numbers are ours, rounded to that
(:mod:`bake.checkpoint.dequant.groups`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bake.checkpoint.contents import Tensor
from bake.checkpoint.dequant import groups
from bake.checkpoint.dequant.plain import aligned, float32
from bake.checkpoint.output import Output
from bake.checkpoint.schemes import integers, parts
from bake.checkpoint.schemes.gptq import columns
from bake.checkpoint.schemes.parts import SCALES, Checkpoint
from bake.errors import Unsupported

WORD = groups.WORD_BITS
UNORDERED = -1


@dataclass(frozen=True)
class Packing:
    """So many bits, across words or not."""

    bits: int
    dense: bool

    def words(self, count: int) -> int:
        """How many words ``count`` integers take."""
        if self.dense:
            return -(-count * self.bits // WORD)
        return -(-count // (WORD // self.bits))

    def same(self, count: int) -> bool:
        """Whether so many integers are packed into the same bytes either way."""
        return WORD % self.bits == 0 or count <= WORD // self.bits


@dataclass(frozen=True)
class Layer:
    """How one layer is stored. ``zeros``: packed, whole or not there."""

    name: str
    rows: int
    cols: int
    packing: Packing
    group: int
    tensorwide: bool
    scale: str
    zeros: str
    indexed: bool

    def fill(self, inputs: Sequence[NDArray[Any]], out: NDArray[Any], threads: int) -> None:
        """:raises Malformed: a group's number is not one of a group, or the shape is another."""
        words, scales, shape = inputs[:3]
        if [int(size) for size in shape] != [self.rows, self.cols]:
            raise parts.unfit(self.name, f"weight_shape: {shape}, planned {[self.rows, self.cols]}")
        many = parts.groups_of(self.cols, self.group)
        scales = np.broadcast_to(
            scales.reshape((1, 1) if self.tensorwide else (-1, many)), (self.rows, many)
        )
        points = self.points(inputs[3], many) if self.zeros else None
        index = ordered(self, inputs[-1], many) if self.indexed else None

        def some(rows: slice) -> None:
            codes = groups.unpacked(
                aligned(words[rows]), self.packing.bits, self.cols, self.packing.dense
            )
            scale = float32(scales[rows], self.scale)
            half = np.float32(1 << self.packing.bits - 1)
            zero = np.full_like(scale, half) if points is None else aligned(points[rows])
            groups.multiply(codes, scale, zero.astype(np.float32), self.group, index, out[rows])

        groups.each_rows(some, (self.rows, self.cols), threads)

    def points(self, stored: NDArray[Any], many: int) -> NDArray[np.uint8]:
        """Zero points as the codes have them, half of the range more; rows × groups."""
        if self.zeros == "whole":
            half = np.int16(1 << self.packing.bits - 1)
            shifted = (stored.astype(np.int16) + half).reshape(1, 1)
            return np.broadcast_to(shifted, (self.rows, many))
        packing = self.packing
        return groups.unpacked(columns(stored), packing.bits, self.rows, packing.dense).T


def ordered(layer: Layer, stored: NDArray[Any], many: int) -> NDArray[np.int32] | None:
    """The group of each column; none where the package would not ask.

    :raises Malformed: one is not a group's number.
    """
    index: NDArray[np.int32] = aligned(stored)
    if (index == UNORDERED).any():
        return None
    if index.min() < 0 or index.max() >= many:
        raise parts.unfit(
            f"{layer.name}_g_idx", f"groups are 0 to {many - 1}, got {index.min()} to {index.max()}"
        )
    return index


def outputs(checkpoint: Checkpoint) -> list[Output]:
    """The weights of every layer that has a ``weight_packed``.

    :raises Malformed: a part is missing, or does not fit.
    :raises Unsupported: a format, or a number of bits, that is not known here or not told apart.
    """
    return [_output(checkpoint, stem) for stem in checkpoint.stems(".weight_packed")]


def _output(checkpoint: Checkpoint, stem: str) -> Output:
    name = f"{stem}.weight"
    weight = checkpoint.matrix(f"{name}_packed", ("I32",))
    shape, (rows, cols) = _shape(checkpoint, weight, f"{name}_shape")
    packing = packing_of(checkpoint, weight, cols)
    scale = checkpoint.need(f"{name}_scale", SCALES)
    high, group = integers.spread(checkpoint, (rows, cols), scale)
    if high not in (1, rows):
        raise Unsupported(f"{scale.name}: blocks of packed weights are not known here")
    tensorwide = scale.count == 1
    zeros, point = _points(checkpoint, name, packing, (rows, parts.groups_of(cols, group)), scale)
    index = _index(checkpoint, name, cols)
    layer = Layer(name, rows, cols, packing, group, tensorwide, scale.dtype, zeros, bool(index))
    return parts.output(name, (rows, cols), [weight, scale, shape, *point, *index], layer.fill)


def _shape(checkpoint: Checkpoint, weight: Tensor, name: str) -> tuple[Tensor, tuple[int, int]]:
    """``weight_shape``, and what it says: it alone knows where a row ends.

    :raises Malformed: it does not fit the packed rows.
    """
    shape = checkpoint.need(name, ("I64", "I32"), (2,))
    rows, cols = (int(size) for size in checkpoint.small(name, 16))
    if rows != weight.shape[0] or not 0 < cols <= weight.shape[1] * WORD:
        raise parts.unfit(name, f"{[rows, cols]} is not what {list(weight.shape)} words hold")
    return shape, (rows, cols)


def packing_of(checkpoint: Checkpoint, weight: Tensor, cols: int) -> Packing:
    """How this weight is packed: as one of the config's groups, in one of two ways.

    :raises Malformed: no number of bits that the config names fits.
    :raises Unsupported: more than one way fits, and they differ.
    """
    bits = {
        parts.whole(weights, "num_bits", 8)
        for weights in checkpoint.weights
        if weights.get("type", "int") == "int"
    }
    if not bits or not all(1 <= each <= 8 for each in bits):
        raise Unsupported(f"{weight.name}: integers of {sorted(bits)} bits are not known here")
    ways = [Packing(each, dense) for each in sorted(bits) for dense in (True, False)]
    fitting = [way for way in ways if way.words(cols) == weight.shape[1]]
    # Both ways of one number of bits may be the same bytes.
    if len(fitting) == 2 and fitting[0].bits == fitting[1].bits and fitting[0].same(cols):
        fitting.pop()
    if not fitting:
        raise parts.unfit(
            weight.name, f"{weight.shape[1]} words are no {cols} integers of {sorted(bits)} bits"
        )
    if len(fitting) > 1:
        raise Unsupported(f"{weight.name}: packed in one of {len(fitting)} ways, and none is named")
    return fitting[0]


def _points(
    checkpoint: Checkpoint, name: str, packing: Packing, many: tuple[int, int], scale: Tensor
) -> tuple[str, list[Tensor]]:
    """How zero points are stored, and where; nothing where there are none."""
    found = checkpoint.tensors.get(f"{name}_zero_point")
    if found is None:
        if _asymmetric(checkpoint, packing.bits):
            raise parts.unfit(
                f"{name}_zero_point", "is missing: config.json says 'symmetric': false"
            )
        return "", []
    if found.dtype == "I8" and scale.count == 1:
        return "whole", [checkpoint.need(found.name, ("I8",), scale.shape)]
    expected = (packing.words(many[0]), many[1])
    return "packed", [checkpoint.need(found.name, ("I32",), expected)]


def _asymmetric(checkpoint: Checkpoint, bits: int) -> bool:
    """Whether every group of so many bits has zero points."""
    own = [weights for weights in checkpoint.weights if weights.get("num_bits") == bits]
    return bool(own) and all(weights.get("symmetric") is False for weights in own)


def _index(checkpoint: Checkpoint, name: str, cols: int) -> list[Tensor]:
    if f"{name}_g_idx" not in checkpoint.tensors:
        return []
    return [checkpoint.need(f"{name}_g_idx", ("I32",), (cols,))]
