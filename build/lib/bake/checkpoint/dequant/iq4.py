"""IQ4_NL and IQ4_XS to numbers: four bits choose one of sixteen uneven steps.

Layouts and the order of products are those of ``dequantize_row_iq4_*`` in ggml-quants.c
(``block_iq4_*`` in ggml-common.h): of 32 numbers the first sixteen are the low nibbles of sixteen
bytes, the others the high ones. Each product is rounded to float32.
"""

from typing import Any

import numpy as np
from numba import njit

from bake.checkpoint.dequant.blocks import Bytes, Numbers
from bake.checkpoint.dequant.iq_grids import STEPS
from bake.checkpoint.dequant.iq_lanes import byte, short
from blob.codecs.byte_lanes import bits, load_bytes, signed, store_numbers
from blob.codecs.byte_moves import picked
from blob.codecs.k_decode import SUPER, half_at
from blob.codecs.kernel import kernel
from blob.codecs.lanes import splat

NL, NL_BYTES, XS_BYTES = 32, 18, 136


@njit(inline="always")
def write_steps(blocks: Any, at: Any, scale: Any, out: Any, to: Any) -> None:
    """32 numbers from sixteen bytes: ``scale`` times the step."""
    table, places = load_bytes(STEPS, 0), load_bytes(blocks, at)
    factor = splat(scale)
    store_numbers(out, to, factor * signed(picked(table, places)))
    store_numbers(out, to + 16, factor * signed(picked(table, bits(places, 4, 15))))


@kernel
def iq4_nl_rows(blocks: Bytes, stride: int, rows: int, out: Numbers) -> None:
    """18 bytes for 32 numbers: the scale (half) and their nibbles."""
    cols = out.size // rows
    for row in range(rows):
        at = row * stride
        for to in range(row * cols, (row + 1) * cols, NL):
            write_steps(blocks, at + 2, half_at(blocks, at), out, to)
            at += NL_BYTES


@kernel
def iq4_xs_rows(blocks: Bytes, stride: int, rows: int, out: Numbers) -> None:
    """136 bytes for 256 numbers: d (half); for each 32 the upper two bits of a scale ``s``, in two
    bytes, the lowest first; their low four, in four; and 16 bytes of nibbles. A number is
    ``(d · (s - 32)) · step``.
    """
    cols = out.size // rows
    for row in range(rows):
        at = row * stride
        for first in range(row * cols, (row + 1) * cols, SUPER):
            scale, upper = half_at(blocks, at), short(blocks, at + 2)
            for group in range(8):
                low = byte(blocks, at + 4 + group // 2) >> 4 * (group & 1) & 15
                steps = low | (upper >> 2 * group & 3) << 4
                factor = scale * np.float32(steps - 32)
                write_steps(blocks, at + 8 + 16 * group, factor, out, first + 32 * group)
            at += XS_BYTES
