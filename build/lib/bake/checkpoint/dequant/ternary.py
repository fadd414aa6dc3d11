"""ggml's blocks of 256 ternary numbers: TQ1_0 and TQ2_0 (``block_tq*`` of ggml-common.h).

The numbers are those of ``dequantize_row_tq1_0`` and ``dequantize_row_tq2_0`` of ggml-quants.c:
-1, 0 or 1 times the block's scale.
"""

import numpy as np

from bake.checkpoint.dequant.blocks import Bytes, Numbers
from bake.checkpoint.ggml_types import BY_NAME
from blob.codecs.byte_lanes import bits, load_bytes, store_numbers, unsigned
from blob.codecs.byte_moves import picked, product, third
from blob.codecs.k_decode import SUPER, half_at
from blob.codecs.kernel import kernel
from blob.codecs.lanes import splat

TQ1_0_BYTES = BY_NAME["TQ1_0"].size
TQ2_0_BYTES = BY_NAME["TQ2_0"].size

# A byte is a fraction of 256; times a power of three, its digit at that place is in front.
POWERS = np.repeat(np.array([1, 3, 9, 27, 81], np.uint8), 16)
# Of the last sixteen bytes of a block, the four that hold four numbers each; their powers.
LAST = np.tile(np.arange(10, 14, dtype=np.uint8), 4)
LAST_POWERS = np.repeat(np.array([1, 3, 9, 27], np.uint8), 4)


@kernel
def tq1_0_rows(blocks: Bytes, stride: int, rows: int, out: Numbers) -> None:
    """A block: 32 bytes of five base-3 digits, 16 more such, 4 bytes of four digits, the scale
    (half). The first digits of all bytes of a part come first, then their second ones, and on.
    """
    cols = out.size // rows
    one = splat(1)
    for row in range(rows):
        at = row * stride
        for first in range(row * cols, (row + 1) * cols, SUPER):
            scale = splat(half_at(blocks, at + 52))
            low, high = load_bytes(blocks, at), load_bytes(blocks, at + 16)
            rest = load_bytes(blocks, at + 32)
            for n in range(5):
                power = load_bytes(POWERS, 16 * n)
                to = first + 32 * n
                store_numbers(out, to, (unsigned(third(product(low, power))) - one) * scale)
                store_numbers(out, to + 16, (unsigned(third(product(high, power))) - one) * scale)
                to = first + 160 + 16 * n
                store_numbers(out, to, (unsigned(third(product(rest, power))) - one) * scale)
            last = picked(load_bytes(blocks, at + 38), load_bytes(LAST, 0))
            digits = third(product(last, load_bytes(LAST_POWERS, 0)))
            store_numbers(out, first + 240, (unsigned(digits) - one) * scale)
            at += TQ1_0_BYTES


@kernel
def tq2_0_rows(blocks: Bytes, stride: int, rows: int, out: Numbers) -> None:
    """A block: 64 bytes of bit pairs, of which 1 is taken, and the scale (half). Each half of 128
    numbers is 32 bytes, four numbers a byte, 32 apart, the first lowest.
    """
    cols = out.size // rows
    one = splat(1)
    for row in range(rows):
        at = row * stride
        for first in range(row * cols, (row + 1) * cols, SUPER):
            scale = splat(half_at(blocks, at + 64))
            for half in range(2):
                for i in range(2):
                    quants = load_bytes(blocks, at + 32 * half + 16 * i)
                    for j in range(4):
                        to = first + 128 * half + 32 * j + 16 * i
                        store_numbers(out, to, (unsigned(bits(quants, 2 * j, 3)) - one) * scale)
            at += TQ2_0_BYTES
