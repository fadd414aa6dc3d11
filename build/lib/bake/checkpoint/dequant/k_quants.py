"""ggml's super-blocks of 256 numbers with two and three bits: Q2_K and Q3_K.

The layouts are ``block_q2_K`` and ``block_q3_K`` of ggml-common.h, the numbers those of
``dequantize_row_q2_K`` and ``dequantize_row_q3_K`` of ggml-quants.c, every product and difference
rounded as there. (Q4_K to Q6_K are kept by blobs too: ``blob.codecs.k_decode``.)
"""

from typing import Any

import numpy as np
from numba import njit

from bake.checkpoint.dequant.blocks import Bytes, Numbers
from bake.checkpoint.ggml_types import BY_NAME
from blob.codecs.byte_lanes import bits, joined, load_bytes, store_numbers, unsigned
from blob.codecs.k_decode import SUPER, half_at
from blob.codecs.kernel import kernel
from blob.codecs.lanes import splat

Q2_K_BYTES = BY_NAME["Q2_K"].size
Q3_K_BYTES = BY_NAME["Q3_K"].size


@kernel
def q2_k_rows(blocks: Bytes, stride: int, rows: int, out: Numbers) -> None:
    """A super-block: 16 bytes, each a scale (low nibble) and a minimum for 16 numbers; 64 bytes of
    bit pairs; scale and minimum of them all (halves). Each half of 128 numbers is 32 bytes, four
    numbers a byte, 32 apart, the first lowest.
    """
    cols = out.size // rows
    for row in range(rows):
        at = row * stride
        for first in range(row * cols, (row + 1) * cols, SUPER):
            scale, minimum = half_at(blocks, at + 80), half_at(blocks, at + 82)
            for half in range(2):
                for i in range(2):
                    quants = load_bytes(blocks, at + 16 + 32 * half + 16 * i)
                    for j in range(4):
                        packed = blocks[at + 8 * half + 2 * j + i]
                        step = splat(scale * np.float32(packed & 15))
                        less = splat(minimum * np.float32(packed >> 4))
                        to = first + 128 * half + 32 * j + 16 * i
                        store_numbers(out, to, step * unsigned(bits(quants, 2 * j, 3)) - less)
            at += Q2_K_BYTES


@njit(inline="always")
def six_bits(scales: Any, at: Any, group: Any) -> Any:
    """Scale ``group`` of 16, less 32, from the 12 bytes at ``at``.

    The low nibbles of the first eight are those of bytes 0 to 7, of the others their high ones;
    bytes 8 to 11 hold the upper bit pairs of four scales each, four apart, the first lowest.
    """
    low = scales[at + (group & 7)] >> (group >> 3 << 2) & 15
    high = scales[at + 8 + (group & 3)] >> (group >> 2 << 1) & 3
    return np.float32((low | high << 4) - 32)


@kernel
def q3_k_rows(blocks: Bytes, stride: int, rows: int, out: Numbers) -> None:
    """A super-block: 32 bytes of third bits (bit *j* of byte *i*: number *i* of group *j* of 32);
    64 bytes of bit pairs, as in Q2_K; 16 scales of six bits in 12 bytes; the scale of them all
    (half). Of the three bits, 4 is taken.
    """
    cols = out.size // rows
    offset = splat(4)
    for row in range(rows):
        at = row * stride
        for first in range(row * cols, (row + 1) * cols, SUPER):
            scale = half_at(blocks, at + 108)
            for half in range(2):
                for i in range(2):
                    third = load_bytes(blocks, at + 16 * i)
                    quants = load_bytes(blocks, at + 32 + 32 * half + 16 * i)
                    for j in range(4):
                        group = 4 * half + j
                        step = splat(scale * six_bits(blocks, at + 96, 2 * group + i))
                        three = joined(bits(quants, 2 * j, 3), bits(third, group, 1), 2)
                        to = first + 32 * group + 16 * i
                        store_numbers(out, to, step * (unsigned(three) - offset))
            at += Q3_K_BYTES
