"""IQ3_XXS and IQ3_S to numbers: four at a time are a point of a grid, and signs.

Layouts and the order of products are those of ``dequantize_row_iq3_*`` in ggml-quants.c
(``block_iq3_*`` in ggml-common.h): 256 numbers to a block, in eights of 32, and each product
rounded to float32.
"""

import numpy as np

from bake.checkpoint.dequant.blocks import Bytes, Numbers
from bake.checkpoint.dequant.iq2 import HALF, even_signs
from bake.checkpoint.dequant.iq_grids import IQ3S, IQ3XXS
from bake.checkpoint.dequant.iq_lanes import byte, flipped, four, short, word
from blob.codecs.byte_lanes import store_numbers, unsigned
from blob.codecs.k_decode import SUPER, half_at
from blob.codecs.kernel import kernel
from blob.codecs.lanes import splat

XXS_BYTES, S_BYTES = 98, 110


@kernel
def iq3_xxs_rows(blocks: Bytes, stride: int, rows: int, out: Numbers) -> None:
    """98 bytes: d; for each four numbers a place in the grid (64 bytes); for each 32 a word of
    four times seven bits of signs, the lowest first, and four bits ``s``. A number is
    ``((d · (½ + s)) · ½) · point``.
    """
    cols = out.size // rows
    for row in range(rows):
        at = row * stride
        for first in range(row * cols, (row + 1) * cols, SUPER):
            scale = half_at(blocks, at)
            for group in range(8):
                signs = word(blocks, at + 66 + 4 * group)
                step = splat(np.float32(scale * (HALF + np.float32(signs >> 28))) * HALF)
                for i in range(2):
                    to = 32 * group + 16 * i
                    places = word(blocks, at + 2 + to // 4)
                    a, b, c, d = places, places >> 8, places >> 16, places >> 24
                    points = four(IQ3XXS, a & 255, b & 255, c & 255, d)
                    both = even_signs(signs, signs >> 7)
                    store_numbers(out, first + to, flipped(unsigned(points) * step, both))
                    signs >>= 14
            at += XXS_BYTES


@kernel
def iq3_s_rows(blocks: Bytes, stride: int, rows: int, out: Numbers) -> None:
    """110 bytes: d; for each four numbers the low byte of a place in the grid (64 bytes); for each
    32 a byte of the eight bits above, the lowest first; for each eight a byte of signs; for each 64
    a byte: four bits ``s`` of the first 32, and of the others. A number is
    ``(d · (1 + 2s)) · point``.
    """
    cols = out.size // rows
    for row in range(rows):
        at = row * stride
        for first in range(row * cols, (row + 1) * cols, SUPER):
            scale = half_at(blocks, at)
            for group in range(8):
                steps = byte(blocks, at + 106 + group // 2) >> 4 * (group & 1) & 15
                step = splat(scale * np.float32(1 + 2 * steps))
                above = byte(blocks, at + 66 + group) << 8
                for i in range(2):
                    to = 32 * group + 16 * i
                    places = word(blocks, at + 2 + to // 4)
                    points = four(
                        IQ3S,
                        places & 255 | above & 256,
                        places >> 8 & 255 | above >> 1 & 256,
                        places >> 16 & 255 | above >> 2 & 256,
                        places >> 24 | above >> 3 & 256,
                    )
                    signs = short(blocks, at + 74 + to // 8)
                    store_numbers(out, first + to, flipped(unsigned(points) * step, signs))
                    above >>= 4
            at += S_BYTES
