"""Codes times the scales of their groups: what GPTQ, AWQ, compressed-tensors, bitsandbytes and FP8
have in common.

A code is an integer, whose zero point is taken from it before it is multiplied, or the index of a
table of numbers. Each step is one float32 operation, rounded as IEEE 754 has it, and nothing is
fused. With scales of 16 bits no step rounds at all: a difference of two bytes has nine bits and a
scale eleven, and float32 holds the product of both. So where a library multiplies in F16 or BF16,
its number is ours, rounded to that type.

Kernels do not check what they index: their callers do, and give arrays that are contiguous,
aligned and in this machine's byte order.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from bake.checkpoint.dequant.stored import stored
from blob.codecs.kernel import kernel
from blob.rows import PIECE, each

WORD_BITS = 32
# Rows are taken by so many: that fills words whatever the bits, where rows are what is packed.
ROWS_AT_ONCE = 32
# Which output each four bits of a word of AutoAWQ belong to, from the least significant on
# (awq/utils/packing_utils.py of AutoAWQ 0.2.9, MIT).
AWQ_ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])


def each_rows(work: Callable[[slice], None], shape: tuple[int, int], threads: int) -> None:
    """``work`` on slices of rows that begin at multiples of 32, on so many threads."""
    rows, cols = shape
    many = PIECE // max(1, cols) // ROWS_AT_ONCE
    each(work, (rows, 1), threads, ROWS_AT_ONCE * max(1, many))


def multiply(  # noqa: PLR0913 - what the kernels take
    codes: NDArray[Any],
    scale: NDArray[np.float32],
    zero: NDArray[np.float32],
    group: int,
    index: NDArray[np.int32] | None,
    out: NDArray[Any],
) -> None:
    """``(codes - zero) * scale`` into ``out``, rows × cols each.

    ``scale`` and ``zero`` are rows × groups; a column's group is its place by ``group``, or
    ``index`` (cols, checked) of it. One thread, no GIL.
    """
    if index is None:
        _multiply_groups(codes, scale, zero, group, out)
    else:
        _multiply_indexed(codes, scale, zero, index, out)


@kernel
def _multiply_groups(codes: Any, scale: Any, zero: Any, group: int, out: Any) -> None:
    rows, cols = codes.shape
    for row in range(rows):
        for at in range(scale.shape[1]):
            factor, shift = scale[row, at], zero[row, at]
            # Slices, since LLVM makes no vectors of indices that could be negative.
            own = codes[row, at * group : min(cols, (at + 1) * group)]
            target = out[row, at * group : min(cols, (at + 1) * group)]
            for i in range(own.size):
                number = np.float32(np.float32(own[i]) - shift)
                target[i] = stored(target, np.float32(number * factor))


@kernel
def _multiply_indexed(codes: Any, scale: Any, zero: Any, index: Any, out: Any) -> None:
    product = np.empty(codes.shape[1], np.float32)
    for row in range(codes.shape[0]):
        own, target, factors, shifts = codes[row], out[row], scale[row], zero[row]
        for i in range(own.size):
            at = np.uint32(index[i])
            number = np.float32(np.float32(own[i]) - shifts[at])
            product[i] = np.float32(number * factors[at])
        _store(product, target)


@kernel
def multiply_table(codes: Any, table: Any, scale: Any, group: int, out: Any) -> None:
    """``table[codes] * scale``: codes (uint8) rows × cols, scale rows × groups."""
    rows, cols = codes.shape
    product = np.empty(cols, np.float32)
    for row in range(rows):
        for at in range(scale.shape[1]):
            factor = scale[row, at]
            own = codes[row, at * group : min(cols, (at + 1) * group)]
            part = product[at * group : min(cols, (at + 1) * group)]
            for i in range(own.size):
                part[i] = np.float32(table[own[i]] * factor)
        _store(product, out[row])


@njit
def _store(product: Any, target: Any) -> None:
    # Apart from the look-up: LLVM does not make vectors of both at once.
    for i in range(target.size):
        target[i] = stored(target, product[i])


@kernel
def multiply_twice(codes: Any, scale: Any, factor: Any, out: Any) -> None:
    """``(codes * scale) * factor``: codes (int8) rows × cols, scale one of each row."""
    for row in range(codes.shape[0]):
        own, target, first = codes[row], out[row], scale[row]
        for i in range(own.size):
            number = np.float32(np.float32(own[i]) * first)
            target[i] = stored(target, np.float32(number * factor))


def transposed(words: NDArray[np.int32]) -> NDArray[np.int32]:
    """``words.T``, contiguous: a new array. ``words`` may be a slice of columns."""
    out = np.empty(words.shape[::-1], np.int32)
    _transpose(words, out)
    return out


def unpacked(words: NDArray[np.int32], bits: int, cols: int, dense: bool) -> NDArray[np.uint8]:
    """Unsigned integers of ``bits`` (1 to 8) of each row of contiguous ``words``, least
    significant first; without signs, a new array of rows × ``cols``.

    ``dense`` has them across words. Otherwise each word holds as many as are whole in it. A row
    must hold ``cols`` of them: the caller's to check.
    """
    if bits == 8:
        return np.ascontiguousarray(words.view(np.uint8)[:, :cols])
    codes = np.empty((len(words), cols), np.uint8)
    if bits == 4:
        _halve(words.view(np.uint8), codes)
    elif dense and WORD_BITS % bits:
        _take_across(words.view(np.uint32), bits, codes)
    else:
        _take_whole(words.view(np.uint32), bits, codes)
    return codes


@kernel
def _halve(pairs: Any, codes: Any) -> None:
    rows, cols = codes.shape
    for row in range(rows):
        for at in range(cols // 2):
            both = pairs[row, at]
            codes[row, 2 * at] = both & np.uint8(15)
            codes[row, 2 * at + 1] = both >> np.uint8(4)
        if cols % 2:
            codes[row, cols - 1] = pairs[row, cols // 2] & np.uint8(15)


@kernel
def _take_whole(words: Any, bits: int, codes: Any) -> None:
    rows, cols = codes.shape
    many, mask = WORD_BITS // bits, np.uint32((1 << bits) - 1)
    for row in range(rows):
        for col in range(cols):
            shift = np.uint32(col % many * bits)
            codes[row, col] = np.uint8(words[row, col // many] >> shift & mask)


@kernel
def _take_across(words: Any, bits: int, codes: Any) -> None:
    rows, cols = codes.shape
    mask = np.uint64((1 << bits) - 1)
    last = words.shape[1] - 1
    for row in range(rows):
        for col in range(cols):
            at = col * bits // WORD_BITS
            # The last number of a row ends in its last word: there is no next one.
            high = np.uint64(words[row, min(at + 1, last)]) << np.uint64(WORD_BITS)
            both = high | np.uint64(words[row, at])
            codes[row, col] = np.uint8(both >> np.uint64(col * bits % WORD_BITS) & mask)


@kernel
def take_awq(words: Any, order: Any, codes: Any) -> None:
    """Four-bit integers of ``words`` (uint32, rows / 8 × cols): eight rows of ``codes`` a word."""
    for at in range(words.shape[0]):
        for place in range(order.size):
            row, shift = 8 * at + order[place], np.uint32(4 * place)
            for col in range(words.shape[1]):
                codes[row, col] = np.uint8(words[at, col] >> shift & np.uint32(15))


@kernel
def split_pairs(pairs: Any, codes: Any) -> None:
    """Both halves of each byte, the upper one first, as bitsandbytes has them; flat."""
    for at in range(codes.size // 2):
        codes[2 * at] = pairs[at] >> np.uint8(4)
        codes[2 * at + 1] = pairs[at] & np.uint8(15)
    if codes.size % 2:
        codes[codes.size - 1] = pairs[codes.size // 2] >> np.uint8(4)


@kernel
def _transpose(words: Any, out: Any) -> None:
    # Squares of sixteen: a line of the cache each way, and no more lines than a set holds.
    rows, cols = words.shape
    for top in range(0, rows, 16):
        for left in range(0, cols, 16):
            for row in range(top, min(top + 16, rows)):
                for col in range(left, min(left + 16, cols)):
                    out[col, row] = words[row, col]
