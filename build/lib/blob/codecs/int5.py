"""Five bits and a BF16 scale for each group, dense: near-lossless, and quick to have back.

The scale has a sign: the number of a group that is farthest from zero gets the end of the range
that is one longer, -16. Of a few scales that put it there or a little beyond, the one with the
least squared error is taken. Against compressed-tensors' own rule (``max |w| / 15.5``) that makes
the error a fourteenth smaller; what it is, is measured: ``scripts/measure_codecs.py`` keeps it.

Nothing else writes this format, and its numbers are those that compressed-tensors' ``dequantize``
gives for the same integers and scales. Its package 0.17.0 packs five bits otherwise
(:mod:`blob.codecs.packed`), so that no other reader is promised.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from blob.codecs import Bfloats, Floats, Part, Parts, bfloat16, lanes, packed
from blob.codecs.kernel import kernel

BITS = 5
LEAST, MOST = np.float32(-16), np.float32(15)
# What the farthest number is divided by to make a scale. Chosen one by one, each as the one that
# lowers the error most, from steps of 1/8: the eight come within 0.2 % of the error of all steps
# from 14 to 21, on normal weights and on weights/tiny.
DIVISORS = np.array([-15.25, -15.75, -16, -16.25, -16.5, -16.75, -17, -17.375], np.float32)
# A scale below the least normal number has no finite reciprocal; the group becomes zeros.
LEAST_SCALE = np.float32(2.0**-126)
# 1.5 × 2²³: added to a small float32, it leaves the nearest integer (ties to even) in the bits.
ROUNDER = np.float32(12582912)
STORED = np.uint32(0x4B400000 - 16)


@dataclass(frozen=True)
class Int5:
    """Int5 of ``group`` columns to a scale."""

    group: int = 128

    def __post_init__(self) -> None:
        packed.check_group(self.group)

    @property
    def name(self) -> str:
        """As the manifest says it."""
        return "int5"

    @property
    def block(self) -> int:
        """The columns of a matrix must be a multiple of this."""
        return self.group

    def parts(self, rows: int, cols: int) -> dict[str, Part]:
        """Five words for 32 values, and a scale for each group."""
        return {
            "packed": Part("I32", (rows, cols * BITS // packed.WORD_BITS)),
            "scale": Part("BF16", (rows, cols // self.group)),
        }

    def constants(self, rows: int, cols: int) -> dict[str, NDArray[Any]]:
        """None: the shape follows from those of the parts."""
        del rows, cols
        return {}

    def encode(self, values: Floats, out: Parts) -> None:
        """Quantize ``values`` (rows × cols, finite) into ``out``; one thread, no GIL.

        :raises ValueError: the shapes do not belong together.
        """
        packed.check(out, values.shape, self.group, BITS)
        source = np.ascontiguousarray(values, np.float32)
        quantize(source, out["packed"].reshape(-1), out["scale"].reshape(-1), self.group)

    def decode(self, parts: Parts, out: Bfloats) -> None:
        """Rows of ``parts`` as BF16 bits into ``out`` (rows × cols); one thread, no GIL.

        :raises ValueError: the shapes do not belong together.
        """
        packed.decode(parts, out, self.group, BITS)

    def encode_reference(self, values: Floats) -> dict[str, NDArray[Any]]:
        """The same as ``encode``, plainly."""
        rows, cols = values.shape
        groups = values.reshape(-1, self.group)
        at = np.abs(groups).argmax(axis=1)[:, np.newaxis]
        farthest = np.take_along_axis(groups, at, axis=1)
        scale = np.zeros((len(groups), 1), np.float32)
        least = np.full((len(groups), 1), np.inf, np.float32)
        for divisor in DIVISORS:
            tried = farthest / divisor
            tried = bfloat16.to_float32(bfloat16.from_float32_reference(tried))
            tried[np.abs(tried) < LEAST_SCALE] = 0
            # A scale that is zero is nobody's choice: it is what is left where there is no other.
            own = np.where(tried == 0, np.inf, error_reference(groups, tried, farthest))
            scale, least = np.where(own < least, tried, scale), np.minimum(own, least)
        integers = near_reference(groups * reciprocal_reference(scale)).reshape(rows, cols)
        return {
            "packed": packed.pack_reference(integers, BITS),
            "scale": bfloat16.from_float32_reference(scale).reshape(rows, -1),
        }

    def decode_reference(self, parts: Parts) -> Floats:
        """What ``decode`` gives, before it is rounded to BF16."""
        return packed.decode_reference(parts, BITS)


def reciprocal_reference(scale: Floats) -> Floats:
    """One over each; zero for a scale that is zero."""
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)


def near_reference(ratio: Floats) -> Floats:
    """The integers, as float32."""
    near: Floats = np.rint(np.clip(ratio, LEAST, MOST))
    return near


def error_reference(groups: Floats, scale: Floats, farthest: Floats) -> Floats:
    """Of each group, the squared error over the square of ``farthest``: no float32 is too small.

    It is added up in as many running sums as there are lanes, and these by halves: a sum of
    float32 has one order.
    """
    ratio = groups * reciprocal_reference(scale)
    off = near_reference(ratio) - ratio
    squares = (off * off).reshape(len(groups), -1, lanes.COUNT)
    sums = np.zeros((len(groups), lanes.COUNT), np.float32)
    for turn in range(squares.shape[1]):
        sums += squares[:, turn]
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        sums = sums[:, :half] + sums[:, half:]
    step = np.divide(scale, farthest, out=np.zeros_like(scale), where=farthest != 0)
    error: Floats = sums * (step * step)
    return error


@kernel
def quantize(values: Floats, words: NDArray[np.int32], scale: Bfloats, group: int) -> None:
    """One group after the other; ``words`` and ``scale`` are flat. Nothing is checked."""
    source = values.reshape(-1)
    stored = np.empty(group, np.uint32)
    sums = np.empty(lanes.COUNT, np.float32)
    for g in range(scale.size):
        farthest = farthest_of(source, g * group, group)
        least = np.float32(np.inf)
        chosen = reciprocal = np.float32(0)
        # Where the farthest is zero, or next to it, all become zeros.
        for divisor in DIVISORS:
            tried = bfloat16.nearest(np.float32(farthest / divisor))
            if abs(tried) < LEAST_SCALE:
                continue
            inverse = np.float32(np.float32(1) / tried)
            step = np.float32(tried / farthest)
            total = squared_error(source, g * group, group, inverse, sums)
            own = np.float32(total * np.float32(step * step))
            if own < least:
                least, chosen, reciprocal = own, tried, inverse
        scale[g] = bfloat16.rounded(np.float32(chosen).view(np.uint32))
        for i in range(group):
            ratio = np.float32(source[g * group + i] * reciprocal)
            ratio = min(max(ratio, LEAST), MOST)
            stored[i] = np.uint32(np.float32(ratio + ROUNDER).view(np.uint32) - STORED)
        for i in range(0, group, packed.AT_ONCE):
            packed.pack_5(stored, i, words, (g * group + i) // packed.AT_ONCE * BITS)


@njit(inline="always")
def magnitude(value: Any) -> Any:
    """Bits of a float32 without its sign: of two such, the larger number has the larger bits."""
    return np.uint32(np.float32(value).view(np.uint32) & np.uint32(0x7FFFFFFF))


@njit(inline="always")
def farthest_of(source: Any, at: Any, group: Any) -> Any:
    """The first of the numbers that are farthest from zero."""
    largest = np.uint32(0)
    for i in range(group):
        largest = max(largest, magnitude(source[at + i]))
    for i in range(group):
        if magnitude(source[at + i]) == largest:
            return source[at + i]
    return np.float32(0)


@njit(inline="always")
def squared_error(source: Any, at: Any, group: Any, reciprocal: Any, sums: Any) -> Any:
    """Of one group, in units of the scale's square; added up as the reference has it."""
    reciprocals = lanes.splat(reciprocal)
    least, most = lanes.splat(LEAST), lanes.splat(MOST)
    running = lanes.splat(np.float32(0))
    for i in range(at, at + group, lanes.COUNT):
        ratio = lanes.load(source, i) * reciprocals
        off = lanes.nearest(lanes.smaller(lanes.larger(ratio, least), most)) - ratio
        running = running + off * off
    lanes.store(sums, 0, running)
    half = lanes.COUNT // 2
    while half:
        for lane in range(half):
            sums[lane] += sums[lane + half]
        half //= 2
    return sums[0]
