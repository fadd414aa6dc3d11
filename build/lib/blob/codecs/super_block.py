"""What q4_k and q5_k share: 256 numbers as 8 sub-blocks of 32, each with a scale and a minimum.

The format and every rounding are ggml's (``ggml-quants.c``: ``quantize_row_q4_K_ref``,
``quantize_row_q5_K_ref``, ``make_qkx2_quants``, ``get_scale_min_k4``; layouts in
``ggml-common.h``). A number x of a sub-block is stored as a level q, x ≈ d·s·q - dmin·m: d and
dmin are halves of the super-block, s and m six-bit numbers of the sub-block.

The bytes depend on the order of every addition and on each product being rounded before it is
added. So the kernels do not split a sub-block's sums: they search 16 sub-blocks at once, one in
each lane (``lanes``). Where ggml branches, both ways are computed and one is selected, lane by
lane.

Nothing here is undefined for finite input, however large: where squares overflow, or where a half
becomes infinite, ggml's own steps (comparisons that are false for NaN, ``nearest_int`` of NaN,
the conversion of an int to uint8_t) are defined, and done here as there. (``nearest_int`` asserts
a range; the packages, as ggml's release builds, are compiled without assertions.)
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from blob.codecs import Floats
from blob.codecs.float16 import from_half, to_half
from blob.codecs.kernel import kernel
from blob.codecs.lanes import (
    COUNT,
    larger,
    load,
    magnitude,
    nearest,
    root,
    select,
    smaller,
    splat,
    store,
)

Numbers = NDArray[np.floating[Any]] | np.float32

VALUES = 256
SUBS = 8
WIDTH = 32
HEADER = 16  # bytes: d, dmin (halves), then 8 scales and 8 minima of six bits

AREA = WIDTH * COUNT
SCRATCH = 3 * AREA  # numbers, weights and levels of 16 sub-blocks, transposed: lanes run fastest
FOUND = 4 * COUNT  # scale, minimum, and the step and the lowest number of the best levels
PLAN = 4 * SUBS


def ratios(first: float, highest: int, tries: int) -> Floats:
    """Dividends of the steps that are tried, as ``rmin + rdelta * is + nmax`` in float32."""
    steps = np.float32(0.1) * np.arange(tries + 1, dtype=np.float32)
    return np.float32(first) + steps + np.float32(highest)


@kernel
def transpose(values: Any, start: int, scratch: Any, lane: int) -> None:
    """The super-block that begins at ``values[start]`` into eight lanes, from ``lane`` on."""
    for i in range(WIDTH):
        for j in range(SUBS):
            scratch[i * COUNT + lane + j] = values[start + j * WIDTH + i]


@njit(inline="always")
def _within(level: Any, highest: Any) -> Any:
    """``MAX(0, MIN(highest, level))``."""
    return smaller(larger(level, splat(0)), highest)


@njit(inline="always")
def _weigh(scratch: Any) -> Any:
    """Write each number's weight; the lowest number, the highest, Σw and Σw·x."""
    squares = splat(0)
    for i in range(WIDTH):
        x = load(scratch, i * COUNT)
        squares = squares + x * x
    mean = root(squares / splat(WIDTH))
    low = load(scratch, 0)
    high = low
    sum_w = mean + magnitude(low)
    sum_x = sum_w * low
    store(scratch, AREA, sum_w)
    for i in range(1, WIDTH):
        x = load(scratch, i * COUNT)
        weight = mean + magnitude(x)
        store(scratch, AREA + i * COUNT, weight)
        low = smaller(x, low)
        high = larger(x, high)
        sum_w = sum_w + weight
        sum_x = sum_x + weight * x
    return low, high, sum_w, sum_x


@njit(inline="always")
def _quantize(scratch: Any, step: Any, low: Any, highest: Any) -> Any:
    """Write each number's level; Σw·l, Σw·l² and Σw·l·x."""
    sum_l = splat(0)
    sum_l2 = splat(0)
    sum_xl = splat(0)
    for i in range(WIDTH):
        x = load(scratch, i * COUNT)
        level = _within(nearest(step * (x - low)), highest)
        store(scratch, 2 * AREA + i * COUNT, level)
        weighted = load(scratch, AREA + i * COUNT) * level
        sum_l = sum_l + weighted
        sum_l2 = sum_l2 + weighted * level
        sum_xl = sum_xl + weighted * x
    return sum_l, sum_l2, sum_xl


@njit(inline="always")
def _error(scratch: Any, scale: Any, low: Any) -> Any:
    """Σw·(scale·l + low - x)² of the levels last written."""
    error = splat(0)
    for i in range(WIDTH):
        level = load(scratch, 2 * AREA + i * COUNT)
        off = scale * level + low - load(scratch, i * COUNT)
        error = error + load(scratch, AREA + i * COUNT) * (off * off)
    return error


@kernel
def search(most: Any, dividends: Any, scratch: Any, found: Any) -> None:
    """``make_qkx2_quants`` for the 16 sub-blocks in ``scratch``, of levels 0 to ``most``.

    Levels are not kept: they follow from a step and a lowest number, should anyone ask.
    """
    zero = splat(0)
    highest = splat(most)
    low, high, sum_w, sum_x = _weigh(scratch)
    low = select(low > zero, zero, low)
    flat = high == low

    step = highest / (high - low)
    scale = splat(1) / step
    _quantize(scratch, step, low, highest)
    best = _error(scratch, scale, low)
    best_step = step
    best_low = low

    for dividend in dividends:
        # The lowest number is the last improvement's, as in ggml, not the sub-block's.
        step = splat(dividend) / (high - low)
        sum_l, sum_l2, sum_xl = _quantize(scratch, step, low, highest)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        try_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        try_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        above = try_low > zero
        try_scale = select(above, sum_xl / sum_l2, try_scale)
        try_low = select(above, zero, try_low)
        error = _error(scratch, try_scale, try_low)
        better = (determinant > zero) & (error < best)
        best = select(better, error, best)
        scale = select(better, try_scale, scale)
        best_step = select(better, step, best_step)
        best_low = select(better, low, best_low)
        low = select(better, try_low, low)

    # All numbers equal, and none of them positive: ggml leaves before the search. A step of zero
    # makes the levels zero.
    store(found, 0, select(flat, zero, scale))
    store(found, COUNT, zero - low)
    store(found, 2 * COUNT, select(flat, zero, best_step))
    store(found, 3 * COUNT, select(flat, zero, best_low))


@kernel
def _six_bits(scaled: Any) -> int:
    """``MIN(63, (uint8_t)nearest_int(scaled))``: what is negative wraps, and is cut to 63."""
    bits = np.float32(scaled + np.float32(12582912)).view(np.int32)
    whole = ((bits & np.int32(0x007FFFFF)) - np.int32(0x00400000)) & np.int32(255)
    return min(63, int(whole))


@kernel
def write_header(found: Any, lane: int, out: Any, at: int, plan: Any) -> None:
    """d, dmin and the sixteen six-bit numbers of one super-block, as ``get_scale_min_k4`` reads.

    ``plan`` gets what ``levels`` needs, for each sub-block: d·s and dmin·m as they will be read,
    and the step and the lowest number of the best levels that were found.
    """
    max_scale = np.float32(0)
    max_low = np.float32(0)
    for j in range(SUBS):
        max_scale = max(max_scale, found[lane + j])
        max_low = max(max_low, found[COUNT + lane + j])
    over_scale = np.float32(63) / max_scale if max_scale > 0 else np.float32(0)
    over_low = np.float32(63) / max_low if max_low > 0 else np.float32(0)
    d_bits = to_half(max_scale / np.float32(63))
    low_bits = to_half(max_low / np.float32(63))
    out[at] = d_bits & 255
    out[at + 1] = d_bits >> 8
    out[at + 2] = low_bits & 255
    out[at + 3] = low_bits >> 8
    d = from_half(d_bits)
    dmin = from_half(low_bits)
    packed = at + 4
    for j in range(SUBS):
        scale = _six_bits(over_scale * found[lane + j])
        low = _six_bits(over_low * found[COUNT + lane + j])
        if j < 4:
            out[packed + j] = scale
            out[packed + j + 4] = low
        else:
            out[packed + j + 4] = (scale & 15) | ((low & 15) << 4)
            out[packed + j - 4] |= (scale >> 4) << 6
            out[packed + j] |= (low >> 4) << 6
        plan[4 * j] = d * np.float32(scale)
        plan[4 * j + 1] = dmin * np.float32(low)
        plan[4 * j + 2] = found[2 * COUNT + lane + j]
        plan[4 * j + 3] = found[3 * COUNT + lane + j]


@njit(inline="always")
def levels(values: Any, at: int, most: Any, plan: Any, j: int) -> Any:
    """Levels of sixteen numbers, which begin at ``values[at]``, of sub-block ``j``."""
    x = load(values, at)
    step = plan[4 * j]
    if step != np.float32(0):
        level = nearest((x + splat(plan[4 * j + 1])) / splat(step))
    else:
        # The step is too small to be stored: ggml leaves the levels that the search has found.
        level = nearest(splat(plan[4 * j + 2]) * (x - splat(plan[4 * j + 3])))
    return _within(level, splat(most))


def encode(kernel: Callable[..., None], values: Floats, out: NDArray[np.uint8]) -> None:
    """Call a kernel of flat arrays; rows of ``out`` may lie apart."""
    flat = values.reshape(-1)
    if out.flags.c_contiguous:
        kernel(flat, out.reshape(-1))
    else:
        blocks = np.empty(out.shape, np.uint8)
        kernel(flat, blocks.reshape(-1))
        out[...] = blocks


def _nearest_int(numbers: Floats) -> NDArray[np.int32]:
    """ggml's ``nearest_int``, what it gives for numbers too large included."""
    bits = (numbers + np.float32(12582912)).view(np.int32)
    return (bits & 0x007FFFFF) - 0x00400000


def _sum(terms: Floats) -> Floats:
    """Sums over the last axis, each added up from the first term to the last."""
    return np.add.accumulate(terms, axis=-1, dtype=np.float32)[..., -1]


def _pick(which: NDArray[np.bool_], yes: Numbers, no: Numbers) -> Floats:
    """``np.where`` of float32, which its types take for float64."""
    return np.where(which, yes, no).astype(np.float32, copy=False)


def _search(
    x: Floats, weight: Floats, highest: int, first: float, tries: int
) -> tuple[Floats, Floats, NDArray[np.int32]]:
    """``make_qkx2_quants`` of each row of ``x``: scales, minima (negated) and levels."""
    low = np.minimum(x.min(axis=1), np.float32(0))
    high = x.max(axis=1)
    flat = high == low
    sum_w, sum_x = _sum(weight), _sum(weight * x)

    step = np.float32(highest) / (high - low)
    level = np.clip(_nearest_int(step[:, None] * (x - low[:, None])), 0, highest)
    level[flat] = 0
    scale = _pick(flat, np.float32(0), np.float32(1) / step)
    off = scale[:, None] * level.astype(np.float32) + low[:, None] - x
    best = _sum(weight * (off * off))

    for number in range(tries + 1):
        dividend = np.float32(first) + np.float32(0.1) * np.float32(number) + np.float32(highest)
        step = dividend / (high - low)
        tried = np.clip(_nearest_int(step[:, None] * (x - low[:, None])), 0, highest)
        wanted = tried.astype(np.float32)
        sum_l = _sum(weight * wanted)
        sum_l2 = _sum(weight * wanted * wanted)
        sum_xl = _sum(weight * wanted * x)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        slope = (sum_w * sum_xl - sum_x * sum_l) / determinant
        offset = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        try_low = _pick(offset > 0, np.float32(0), offset)
        try_scale = _pick(offset > 0, sum_xl / sum_l2, slope)
        off = try_scale[:, None] * wanted + try_low[:, None] - x
        error = _sum(weight * (off * off))
        better = (determinant > 0) & (error < best) & ~flat
        level = np.where(better[:, None], tried, level)
        best = _pick(better, error, best)
        scale = _pick(better, try_scale, scale)
        low = _pick(better, try_low, low)
    return scale, -low, level


def reference(
    values: Floats, highest: int, first: float, tries: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Headers (super-blocks × 16) and levels (super-blocks × 8 × 32) of a matrix, plainly.

    The steps of ``quantize_row_q4_K_ref`` and ``quantize_row_q5_K_ref``, for all blocks at once.
    """
    with np.errstate(all="ignore"):
        x = values.reshape(-1, WIDTH)
        mean = np.sqrt(_sum(x * x) / np.float32(WIDTH))
        weight = mean[:, None] + np.abs(x)
        found = _search(x, weight, highest, first, tries)
        scale, minimum = (part.reshape(-1, SUBS) for part in found[:2])

        def six_bits(numbers: Floats) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
            largest = np.max(np.where(numbers > 0, numbers, np.float32(0)), axis=1, keepdims=True)
            over = np.where(largest > 0, np.float32(63) / largest, np.float32(0))
            wrapped = _nearest_int(over * numbers).astype(np.uint8)
            return (largest / np.float32(63)).astype(np.float16), np.minimum(wrapped, 63)

        d, scales = six_bits(scale)
        dmin, minima = six_bits(minimum)
        lower = np.concatenate(
            [
                scales[:, :4] | (scales[:, 4:] >> 4) << 6,
                minima[:, :4] | (minima[:, 4:] >> 4) << 6,
                (scales[:, 4:] & 15) | (minima[:, 4:] & 15) << 4,
            ],
            axis=1,
        )
        header = np.concatenate([d.view(np.uint8), dmin.view(np.uint8), lower], axis=1)

        blocks = values.reshape(-1, SUBS, WIDTH)
        step = (d.astype(np.float32) * scales.astype(np.float32))[:, :, None]
        raised = blocks + (dmin.astype(np.float32) * minima.astype(np.float32))[:, :, None]
        level = np.clip(_nearest_int(raised / step), 0, highest)
        # A step too small to be stored: the levels stay as the search has found them.
        level = np.where(step != 0, level, found[2].reshape(level.shape))
    return header, level.astype(np.uint8)
