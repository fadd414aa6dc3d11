"""IQ2_XXS, IQ2_XS and IQ2_S to numbers: eight at a time are a point of a grid, and eight signs.

Layouts and the order of products are those of ``dequantize_row_iq2_*`` in ggml-quants.c
(``block_iq2_*`` in ggml-common.h), with 256 numbers to a block, in eights of 32: a scale ``d``
(half), and for each sixteen or 32 numbers four bits ``s``: a number is
``((d · (½ + s)) · ¼) · point``, negated if its sign is set, each product rounded to float32.
"""

from typing import Any

import numpy as np
from numba import njit

from bake.checkpoint.dequant.blocks import Bytes, Numbers
from bake.checkpoint.dequant.iq_grids import EVEN_SIGNS, IQ2S, IQ2XS, IQ2XXS
from bake.checkpoint.dequant.iq_lanes import byte, flipped, pair, short, word
from blob.codecs.byte_lanes import store_numbers, unsigned
from blob.codecs.k_decode import SUPER, half_at
from blob.codecs.kernel import kernel
from blob.codecs.lanes import splat

HALF, QUARTER = np.float32(0.5), np.float32(0.25)
XXS_BYTES, XS_BYTES, S_BYTES = 66, 74, 82


@njit(inline="always")
def quarter(scale: Any, steps: Any) -> Any:
    """The scale of IQ2: ``steps`` is an integer from 0 to 15."""
    return splat(np.float32(np.float32(scale * (HALF + np.float32(steps))) * QUARTER))


@njit(inline="always")
def even_signs(first: Any, second: Any) -> Any:
    """Sixteen signs from twice seven bits, the first's lower."""
    low = np.int64(byte(EVEN_SIGNS, first & 127))
    return low | byte(EVEN_SIGNS, second & 127) << 8


@kernel
def iq2_xxs_rows(blocks: Bytes, stride: int, rows: int, out: Numbers) -> None:
    """66 bytes: d; for each 32 numbers four places in the grid (bytes), and a word of four times
    seven bits of signs, the lowest first, and the scale's four.
    """
    cols = out.size // rows
    for row in range(rows):
        at = row * stride
        for first in range(row * cols, (row + 1) * cols, SUPER):
            scale = half_at(blocks, at)
            for group in range(8):
                places = word(blocks, at + 2 + 8 * group)
                signs = word(blocks, at + 6 + 8 * group)
                step = quarter(scale, signs >> 28)
                for i in range(2):
                    points = pair(IQ2XXS, places & 255, places >> 8 & 255)
                    numbers = unsigned(points) * step
                    both = even_signs(signs, signs >> 7)
                    store_numbers(out, first + 32 * group + 16 * i, flipped(numbers, both))
                    places >>= 16
                    signs >>= 14
            at += XXS_BYTES


@kernel
def iq2_xs_rows(blocks: Bytes, stride: int, rows: int, out: Numbers) -> None:
    """74 bytes: d; for each eight numbers nine bits of a place in the grid and seven of signs; for
    each 32 a byte: the scale of the first sixteen in its low bits, of the others in its high ones.
    """
    cols = out.size // rows
    for row in range(rows):
        at = row * stride
        for first in range(row * cols, (row + 1) * cols, SUPER):
            scale = half_at(blocks, at)
            for group in range(16):
                steps = byte(blocks, at + 66 + group // 2) >> 4 * (group & 1)
                both = word(blocks, at + 2 + 4 * group)
                points = pair(IQ2XS, both & 511, both >> 16 & 511)
                numbers = unsigned(points) * quarter(scale, steps & 15)
                signs = even_signs(both >> 9, both >> 25)
                store_numbers(out, first + 16 * group, flipped(numbers, signs))
            at += XS_BYTES


@kernel
def iq2_s_rows(blocks: Bytes, stride: int, rows: int, out: Numbers) -> None:
    """82 bytes: d; for each eight numbers the low byte of a place in the grid; for each a byte of
    signs; for each 32 a byte of four times the two bits above, the lowest first; scales as in
    IQ2_XS.
    """
    cols = out.size // rows
    for row in range(rows):
        at = row * stride
        for first in range(row * cols, (row + 1) * cols, SUPER):
            scale = half_at(blocks, at)
            for group in range(16):
                shift = 4 * (group & 1)
                steps = byte(blocks, at + 74 + group // 2) >> shift & 15
                above = byte(blocks, at + 66 + group // 2) >> shift
                low = short(blocks, at + 2 + 2 * group)
                points = pair(IQ2S, low & 255 | (above & 3) << 8, low >> 8 | (above & 12) << 6)
                numbers = unsigned(points) * quarter(scale, steps)
                signs = short(blocks, at + 34 + 2 * group)
                store_numbers(out, first + 16 * group, flipped(numbers, signs))
            at += S_BYTES
