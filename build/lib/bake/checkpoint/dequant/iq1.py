"""IQ1_S and IQ1_M to numbers: eight at a time are a point of -1, 0 and 1, all moved by an eighth.

Layouts and the order of products are those of ``dequantize_row_iq1_*`` in ggml-quants.c
(``block_iq1_*`` in ggml-common.h): 256 numbers to a block; with the scale ``d`` (half), three bits
``s`` and a sign, a number is ``(d · (2s + 1)) · (point ± ⅛)``, each product rounded to float32;
the sum is exact.
"""

from typing import Any

import numpy as np
from numba import njit

from bake.checkpoint.dequant.blocks import Bytes, Numbers
from bake.checkpoint.dequant.iq_grids import IQ1S
from bake.checkpoint.dequant.iq_lanes import byte, flipped, pair, short, word
from blob.codecs.byte_lanes import signed, store_numbers
from blob.codecs.float16 import from_half
from blob.codecs.k_decode import SUPER, half_at
from blob.codecs.kernel import kernel
from blob.codecs.lanes import splat

DELTA = 0.125  # IQ1S_DELTA, IQ1M_DELTA
S_BYTES, M_BYTES = 50, 56


@njit(inline="always")
def odd(scale: Any, steps: Any) -> Any:
    """``d · (2s + 1)``; ``steps`` is an integer from 0 to 7."""
    return splat(scale * np.float32(2 * steps + 1))


@kernel
def iq1_s_rows(blocks: Bytes, stride: int, rows: int, out: Numbers) -> None:
    """50 bytes: d; for each eight numbers the low byte of a place in the grid; for each 32 two
    bytes: four times the three bits above, the lowest first, three bits of scale, the sign of ⅛.
    """
    cols = out.size // rows
    for row in range(rows):
        at = row * stride
        for first in range(row * cols, (row + 1) * cols, SUPER):
            scale = half_at(blocks, at)
            for group in range(8):
                places = word(blocks, at + 2 + 4 * group)
                above = short(blocks, at + 34 + 2 * group)
                step = odd(scale, above >> 12 & 7)
                delta = flipped(splat(DELTA), -(above >> 15))
                above <<= 8
                for i in range(2):
                    a, b = places & 255 | above & 0x700, places >> 8 & 255 | above >> 3 & 0x700
                    numbers = step * (signed(pair(IQ1S, a, b)) + delta)
                    store_numbers(out, first + 32 * group + 16 * i, numbers)
                    places >>= 16
                    above >>= 6
            at += S_BYTES


@njit(inline="always")
def scattered(blocks: Any, at: Any) -> Any:
    """A half as float32: its nibbles, the lowest first, are on top of four times two bytes."""
    low, high = word(blocks, at), word(blocks, at + 4)
    half = low >> 12 & 0xF | low >> 24 & 0xF0 | high >> 4 & 0xF00 | high >> 16 & 0xF000
    return from_half(np.uint16(half))


@kernel
def iq1_m_rows(blocks: Bytes, stride: int, rows: int, out: Numbers) -> None:
    """56 bytes: for each eight numbers the low byte of a place in the grid; for each a nibble:
    three bits above and the sign of ⅛; for each 64 two bytes: three bits of scale of each sixteen,
    the lowest first, and a nibble of d.
    """
    cols = out.size // rows
    for row in range(rows):
        at = row * stride
        for first in range(row * cols, (row + 1) * cols, SUPER):
            scale = scattered(blocks, at + 48)
            for group in range(16):
                steps = short(blocks, at + 48 + group // 4 * 2) >> 3 * (group & 3)
                places = short(blocks, at + 2 * group)
                above = byte(blocks, at + 32 + group)
                a, b = places & 255 | (above & 7) << 8, places >> 8 | (above & 0x70) << 4
                # A bit for each half of sixteen becomes eight.
                signs = (above >> 3 & 1) * 0x00FF | (above >> 7) * 0xFF00
                delta = flipped(splat(DELTA), signs)
                numbers = odd(scale, steps & 7) * (signed(pair(IQ1S, a, b)) + delta)
                store_numbers(out, first + 16 * group, numbers)
            at += M_BYTES
