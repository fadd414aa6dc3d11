"""ggml's Q6_K: 256 numbers as 16 groups of 16, six bits each; 210 bytes a super-block.

The bytes are those of ``quantize_row_q6_K_ref`` and ``make_qx_quants`` in ggml-quants.c, which
``encode_reference`` follows line by line; a super-block is ``block_q6_K`` of ggml-common.h: 128
bytes of low nibbles, 64 of upper bit pairs, 16 signed group scales, the scale of them all as a
half. A group's scale is searched: 19 are tried, and the one kept is that whose numbers, weighted
with their squares, fit best.

The bytes depend on the order of every addition, so a group's sums cannot be split. But the 16
groups are alike: the fast path holds one in each lane (``lanes``).

Nothing here is undefined for finite input, however large or small, in the way ggml's packages are
built (no assertions). Cubes of numbers overflow from about 7e12 on: sums become infinite or NaN,
comparisons with them are false, ``nearest_int`` of them is an integer all the same, and a group
whose scale is NaN gets 0. A scale beyond the range of a half is infinite, and so are the numbers
that come back.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from blob.codecs import Bfloats, Floats, Part, Parts
from blob.codecs.byte_lanes import bits, joined, narrowed, save_bytes, transpose
from blob.codecs.float16 import from_half, to_half
from blob.codecs.k_decode import check, decode_q6_k, decode_q6_k_reference, flat
from blob.codecs.kernel import kernel
from blob.codecs.lanes import (
    COUNT,
    larger,
    load,
    magnitude,
    nearest,
    select,
    smaller,
    splat,
    store,
)

VALUES = 256
BYTES = 210
GROUPS = 16
WIDTH = 16  # numbers of a group
UPPER, SCALES, SCALE = 128, 192, 208  # where the fields after the low nibbles begin

LEAST = np.float32(1e-15)  # GROUP_MAX_EPS: a group of smaller numbers is zeros
MAGIC = np.float32(12582912)  # 1.5 · 2²³: a float32 next to it has no place for a fraction

# nmax + 0.1f * is, for is = -9 … 9 without 0, in float32 throughout; negated, as it is divided.
TRIES = tuple(is_ for is_ in range(-9, 10) if is_)
DIVIDENDS = -(np.float32(32) + np.float32(0.1) * np.array(TRIES, np.float32))

AREA = VALUES
# Numbers, their squares and their cubes, transposed: lanes run fastest. Then what was found.
SQUARES, CUBES, FOUND = AREA, 2 * AREA, 3 * AREA
SCRATCH = FOUND + 2 * GROUPS


@dataclass(frozen=True)
class Q6_K:  # noqa: N801
    """A ``RowCodec``; its one part, ``blocks``, is uint8 of rows × (cols / 256 · 210)."""

    @property
    def name(self) -> str:
        return "q6_k"

    @property
    def block(self) -> int:
        return VALUES

    def parts(self, rows: int, cols: int) -> dict[str, Part]:
        return {"blocks": Part("U8", (rows, cols // VALUES * BYTES))}

    def constants(self, rows: int, cols: int) -> dict[str, NDArray[Any]]:
        return {}

    def encode(self, values: Floats, out: Parts) -> None:
        check(out["blocks"], values, np.float32, VALUES, BYTES)
        if values.size:
            encode_rows(values.reshape(-1), len(values), *flat(out["blocks"]), DIVIDENDS)

    def decode(self, parts: Parts, out: Bfloats) -> None:
        decode_q6_k(parts["blocks"], out)

    def encode_reference(self, values: Floats) -> dict[str, NDArray[Any]]:
        """``quantize_row_q6_K_ref``, a super-block at a time."""
        rows, cols = values.shape
        blocks = np.empty((rows, cols // VALUES, BYTES), np.uint8)
        with np.errstate(all="ignore"):
            for row in range(rows):
                for index in range(cols // VALUES):
                    block = values[row, index * VALUES : (index + 1) * VALUES]
                    blocks[row, index] = encode_super_block(block)
        return {"blocks": blocks.reshape(rows, cols // VALUES * BYTES)}

    def decode_reference(self, parts: Parts) -> Floats:
        return decode_q6_k_reference(parts["blocks"])


@njit(inline="always")
def within(level: Any) -> Any:
    """``MAX(-32, MIN(31, level))``."""
    return larger(splat(-32), smaller(splat(31), level))


@njit(inline="always")
def sums(scratch: Any, step: Any) -> Any:
    """Σw·x·l and Σw·l² of a group's numbers x at this step, with w = x²: a group a lane."""
    shift = splat(MAGIC)
    sum_lx = splat(0)
    sum_l2 = splat(0)
    for i in range(WIDTH):
        at = i * GROUPS
        # nearest_int: no number here is larger than 33, so the sum alone rounds it.
        level = within((step * load(scratch, at) + shift) - shift)
        sum_lx = sum_lx + load(scratch, CUBES + at) * level
        sum_l2 = sum_l2 + load(scratch, SQUARES + at) * level * level
    return sum_lx, sum_l2


@njit(inline="always")
def search(scratch: Any, dividends: Any) -> None:
    """``make_qx_quants(16, 32, x, L, 1, NULL)`` of the 16 groups transposed in ``scratch``.

    Writes the groups' scales and the steps whose levels fit best, 0 for a group of zeros. Levels
    are not kept: they follow from the step, should anyone ask.
    """
    zero = splat(0)
    most = zero
    peak = zero
    for i in range(WIDTH):
        x = load(scratch, i * GROUPS)
        square = x * x
        store(scratch, SQUARES + i * GROUPS, square)
        store(scratch, CUBES + i * GROUPS, square * x)
        size = magnitude(x)
        above = size > most
        most = select(above, size, most)
        peak = select(above, x, peak)
    idle = most < splat(LEAST)
    peak = select(idle, splat(1), peak)

    best_step = splat(-32) / peak
    sum_lx, sum_l2 = sums(scratch, best_step)
    scale = select(sum_l2 == zero, zero, sum_lx / sum_l2)
    best = scale * sum_lx
    for dividend in dividends:
        step = splat(dividend) / peak
        sum_lx, sum_l2 = sums(scratch, step)
        better = (sum_l2 > zero) & (sum_lx * sum_lx > best * sum_l2)
        scale = select(better, sum_lx / sum_l2, scale)
        best = select(better, scale * sum_lx, best)
        best_step = select(better, step, best_step)
    store(scratch, FOUND, select(idle, zero, scale))
    store(scratch, FOUND + GROUPS, select(idle, zero, best_step))


@njit(inline="always")
def nearest_int(number: Any) -> Any:
    """ggml's, what it gives for NaN and for numbers too large included."""
    whole = np.float32(number + MAGIC).view(np.int32)
    return (whole & 0x007FFFFF) - 0x00400000


@njit(inline="always")
def scale_groups(scratch: Any, out: Any, at: Any) -> Any:
    """Write the scales of a super-block at ``out[at]``, and over each group's scale that which
    will be read; whether there is any.
    """
    most = np.float32(0)
    peak = np.float32(0)
    for group in range(GROUPS):
        scale = scratch[FOUND + group]
        if abs(scale) > most:
            most = abs(scale)
            peak = scale
    if most < LEAST:
        return False
    inverse = np.float32(-128) / peak
    half = to_half(np.float32(1) / inverse)
    out[at + SCALE] = half & 255
    out[at + SCALE + 1] = half >> 8
    read = from_half(half)
    for group in range(GROUPS):
        # Kept in a byte: of what is too large or too small only the last eight bits.
        step = np.int8(min(127, nearest_int(inverse * scratch[FOUND + group])))
        out[at + SCALES + group] = step & 255
        scratch[FOUND + group] = read * np.float32(step)
    return True


@njit(inline="always")
def levels(values: Any, first: Any, scratch: Any, group: Any) -> Any:
    """Bytes from 0 to 63 of the group's sixteen numbers."""
    x = load(values, first + group * WIDTH)
    scale = scratch[FOUND + group]
    step = scratch[FOUND + GROUPS + group]
    if scale != np.float32(0):
        level = within(nearest(x / splat(scale))) + splat(32)
    elif step != np.float32(0):
        # The scale is too small to be stored: ggml leaves the levels that the search has found.
        level = within(nearest(splat(step) * x)) + splat(32)
    else:
        level = splat(0)
    return narrowed(level)


@kernel
def encode_rows(
    values: Floats, rows: int, out: NDArray[np.uint8], stride: int, dividends: Floats
) -> None:
    """Flat ``values`` of ``rows`` rows into ``out``, a row's bytes ``stride`` after the last's."""
    cols = values.size // rows
    scratch = np.empty(SCRATCH, np.float32)
    for row in range(rows):
        at = row * stride
        for first in range(row * cols, (row + 1) * cols, VALUES):
            transpose(values, first, scratch)
            search(scratch, dividends)
            if scale_groups(scratch, out, at):
                # Each half of the block: 64 numbers in low nibbles, the next 64 in the high ones.
                for half in range(2):
                    for i in range(2):
                        group = 8 * half + i
                        q1 = levels(values, first, scratch, group)
                        q2 = levels(values, first, scratch, group + 2)
                        q3 = levels(values, first, scratch, group + 4)
                        q4 = levels(values, first, scratch, group + 6)
                        low = at + 64 * half + COUNT * i
                        save_bytes(out, low, joined(bits(q1, 0, 15), q3, 4))
                        save_bytes(out, low + 32, joined(bits(q2, 0, 15), q4, 4))
                        upper = joined(bits(q1, 4, 3), bits(q2, 4, 3), 2)
                        upper = joined(upper, bits(q3, 4, 3), 4)
                        upper = joined(upper, bits(q4, 4, 3), 6)
                        save_bytes(out, at + UPPER + 32 * half + COUNT * i, upper)
            else:
                out[at : at + BYTES] = 0
            at += BYTES


def encode_super_block(x: Floats) -> NDArray[np.uint8]:
    """210 bytes for 256 numbers, as ``quantize_row_q6_K_ref`` makes them."""
    levels = np.empty(VALUES, np.int32)
    scales = np.empty(GROUPS, np.float32)
    max_scale = max_abs_scale = np.float32(0)
    for group in range(GROUPS):
        here = slice(group * WIDTH, (group + 1) * WIDTH)
        scales[group], levels[here] = make_qx_quants(x[here])
        if abs(scales[group]) > max_abs_scale:
            max_abs_scale, max_scale = abs(scales[group]), scales[group]
    if max_abs_scale < LEAST:
        return np.zeros(BYTES, np.uint8)

    inverse = np.float32(-128) / max_scale
    d = np.float16(np.float32(1) / inverse)
    steps = np.minimum(127, nearest_ints(inverse * scales)).astype(np.int8)
    for group in range(GROUPS):
        here = slice(group * WIDTH, (group + 1) * WIDTH)
        scale = np.float32(d) * np.float32(steps[group])
        if scale != 0:
            levels[here] = np.clip(nearest_ints(x[here] / scale), -32, 31) + 32

    # Two halves of four times 32 numbers.
    quarters = levels.astype(np.uint8).reshape(2, 4, 32)
    low, high = quarters & 15, quarters >> 4
    nibbles = np.concatenate([low[:, 0] | low[:, 2] << 4, low[:, 1] | low[:, 3] << 4], axis=1)
    upper = high[:, 0] | high[:, 1] << 2 | high[:, 2] << 4 | high[:, 3] << 6
    fields = (nibbles.ravel(), upper.ravel(), steps.view(np.uint8))
    return np.concatenate([*fields, np.frombuffer(d.tobytes(), np.uint8)])


def make_qx_quants(x: Floats) -> tuple[np.float32, NDArray[np.int32]]:
    """``make_qx_quants(16, 32, x, L, 1, NULL)``: a group's scale and its levels, 0 to 63."""
    peak = x[np.abs(x).argmax()]
    if abs(peak) < LEAST:
        return np.float32(0), np.zeros(len(x), np.int32)

    def tried(dividend: Any) -> tuple[NDArray[np.int32], np.float32, np.float32]:
        """Levels from -32 to 31, Σw·x·l and Σw·l², each added from the first to the last."""
        level = np.clip(nearest_ints(dividend / peak * x), -32, 31)
        weight = x * x
        by_level = level.astype(np.float32)
        return level, in_order(weight * x * by_level), in_order(weight * by_level * by_level)

    level, sum_lx, sum_l2 = tried(np.float32(-32))
    scale = sum_lx / sum_l2 if sum_l2 else np.float32(0)
    best = scale * sum_lx
    for dividend in DIVIDENDS:
        other, sum_lx, sum_l2 = tried(dividend)
        if sum_l2 > 0 and sum_lx * sum_lx > best * sum_l2:
            level = other
            scale = sum_lx / sum_l2
            best = scale * sum_lx
    return scale, level + 32


def nearest_ints(numbers: Floats) -> NDArray[np.int32]:
    """``nearest_int`` of each."""
    whole = (numbers + MAGIC).view(np.int32)
    return (whole & 0x007FFFFF) - 0x00400000


def in_order(terms: Floats) -> np.float32:
    """The sum, added up from the first term to the last and rounded to float32 each time."""
    total: np.float32 = np.add.accumulate(terms, dtype=np.float32)[-1]
    return total
