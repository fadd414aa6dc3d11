"""ggml's blocks of 32 numbers with nibbles: Q4_0, Q4_1, Q5_0, Q5_1 (``block_q*`` of ggml-common.h).

Byte *i* of a block's quants has number *i* in its low nibble and number *i* + 16 in its high one;
bit *i* of the four bytes before them is the fifth bit of number *i*. The numbers are those of
``dequantize_row_*`` of ggml-quants.c: one product, and one sum where there is a minimum.
"""

from typing import Any

import numpy as np
from numba import njit

from bake.checkpoint.dequant.blocks import Bytes, Numbers
from bake.checkpoint.ggml_types import BY_NAME
from blob.codecs.byte_lanes import bits, joined, load_bytes, store_numbers, unsigned
from blob.codecs.byte_moves import flags
from blob.codecs.k_decode import half_at
from blob.codecs.kernel import kernel
from blob.codecs.lanes import splat

VALUES = 32
Q4_0_BYTES = BY_NAME["Q4_0"].size
Q4_1_BYTES = BY_NAME["Q4_1"].size
Q5_0_BYTES = BY_NAME["Q5_0"].size
Q5_1_BYTES = BY_NAME["Q5_1"].size


@njit(inline="always")
def short_at(blocks: Any, at: Any) -> Any:
    """The sixteen bits whose two bytes, the lower first, begin there."""
    return np.uint16(blocks[at]) | np.uint16(np.uint16(blocks[at + 1]) << np.uint16(8))


@kernel
def q4_0_rows(blocks: Bytes, stride: int, rows: int, out: Numbers) -> None:
    """A block: scale (half), nibbles, of which 8 is taken."""
    cols = out.size // rows
    offset = splat(8)
    for row in range(rows):
        at = row * stride
        for to in range(row * cols, (row + 1) * cols, VALUES):
            scale = splat(half_at(blocks, at))
            quants = load_bytes(blocks, at + 2)
            store_numbers(out, to, (unsigned(bits(quants, 0, 15)) - offset) * scale)
            store_numbers(out, to + 16, (unsigned(bits(quants, 4, 15)) - offset) * scale)
            at += Q4_0_BYTES


@kernel
def q4_1_rows(blocks: Bytes, stride: int, rows: int, out: Numbers) -> None:
    """A block: scale, minimum (halves), nibbles."""
    cols = out.size // rows
    for row in range(rows):
        at = row * stride
        for to in range(row * cols, (row + 1) * cols, VALUES):
            scale, minimum = splat(half_at(blocks, at)), splat(half_at(blocks, at + 2))
            quants = load_bytes(blocks, at + 4)
            store_numbers(out, to, unsigned(bits(quants, 0, 15)) * scale + minimum)
            store_numbers(out, to + 16, unsigned(bits(quants, 4, 15)) * scale + minimum)
            at += Q4_1_BYTES


@kernel
def q5_0_rows(blocks: Bytes, stride: int, rows: int, out: Numbers) -> None:
    """A block: scale (half), fifth bits, nibbles; of the five bits, 16 is taken."""
    cols = out.size // rows
    offset = splat(16)
    for row in range(rows):
        at = row * stride
        for to in range(row * cols, (row + 1) * cols, VALUES):
            scale = splat(half_at(blocks, at))
            quants = load_bytes(blocks, at + 6)
            low = joined(bits(quants, 0, 15), flags(short_at(blocks, at + 2)), 4)
            high = joined(bits(quants, 4, 15), flags(short_at(blocks, at + 4)), 4)
            store_numbers(out, to, (unsigned(low) - offset) * scale)
            store_numbers(out, to + 16, (unsigned(high) - offset) * scale)
            at += Q5_0_BYTES


@kernel
def q5_1_rows(blocks: Bytes, stride: int, rows: int, out: Numbers) -> None:
    """A block: scale, minimum (halves), fifth bits, nibbles."""
    cols = out.size // rows
    for row in range(rows):
        at = row * stride
        for to in range(row * cols, (row + 1) * cols, VALUES):
            scale, minimum = splat(half_at(blocks, at)), splat(half_at(blocks, at + 2))
            quants = load_bytes(blocks, at + 8)
            low = joined(bits(quants, 0, 15), flags(short_at(blocks, at + 4)), 4)
            high = joined(bits(quants, 4, 15), flags(short_at(blocks, at + 6)), 4)
            store_numbers(out, to, unsigned(low) * scale + minimum)
            store_numbers(out, to + 16, unsigned(high) * scale + minimum)
            at += Q5_1_BYTES
