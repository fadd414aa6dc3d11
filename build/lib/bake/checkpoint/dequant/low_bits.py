"""ggml's blocks of one and two bits without a minimum: Q1_0 and Q2_0 (``block_q*`` of
ggml-common.h; gguf-py 0.19 does not read them).

The numbers are those of ``dequantize_row_q1_0`` and ``dequantize_row_q2_0`` of ggml-quants.c.
"""

import numpy as np

from bake.checkpoint.dequant.blocks import Bytes, Numbers
from bake.checkpoint.dequant.legacy import short_at
from bake.checkpoint.ggml_types import BY_NAME
from blob.codecs.byte_lanes import bits, load_bytes, signed, store_numbers, unsigned
from blob.codecs.byte_moves import flags, picked, product
from blob.codecs.k_decode import half_at
from blob.codecs.kernel import kernel
from blob.codecs.lanes import splat

Q1_0_VALUES, Q2_0_VALUES = 128, 64
Q1_0_BYTES = BY_NAME["Q1_0"].size
Q2_0_BYTES = BY_NAME["Q2_0"].size

# What a bit stands for: -1 or 1.
SIGNS = np.array([0xFF, 1] + [0] * 14, np.uint8)
# Each of four bytes four times, and what brings the first, … fourth bit pair of a byte on top.
FOURFOLD = np.arange(64, dtype=np.uint8) >> 2 & 15
ON_TOP = np.tile(np.array([64, 16, 4, 1], np.uint8), 4)


@kernel
def q1_0_rows(blocks: Bytes, stride: int, rows: int, out: Numbers) -> None:
    """A block: scale (half), 128 bits, the lowest of a byte first; a number is the scale where
    its bit is set, and less the scale where not.
    """
    cols = out.size // rows
    table = load_bytes(SIGNS, 0)
    for row in range(rows):
        at = row * stride
        for first in range(row * cols, (row + 1) * cols, Q1_0_VALUES):
            scale = splat(half_at(blocks, at))
            for i in range(8):
                chosen = picked(table, flags(short_at(blocks, at + 2 + 2 * i)))
                store_numbers(out, first + 16 * i, signed(chosen) * scale)
            at += Q1_0_BYTES


@kernel
def q2_0_rows(blocks: Bytes, stride: int, rows: int, out: Numbers) -> None:
    """A block: scale (half), 16 bytes of four bit pairs, the lowest first, of which 1 is taken."""
    cols = out.size // rows
    one = splat(1)
    top = load_bytes(ON_TOP, 0)
    for row in range(rows):
        at = row * stride
        for first in range(row * cols, (row + 1) * cols, Q2_0_VALUES):
            scale = splat(half_at(blocks, at))
            quants = load_bytes(blocks, at + 2)
            for i in range(0, 64, 16):
                pairs = bits(product(picked(quants, load_bytes(FOURFOLD, i)), top), 6, 3)
                store_numbers(out, first + i, (unsigned(pairs) - one) * scale)
            at += Q2_0_BYTES
