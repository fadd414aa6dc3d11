"""ggml's blocks of four-bit floats: MXFP4 and NVFP4 (``block_*`` of ggml-common.h).

A nibble is an E2M1 number, kept doubled, so that it is an integer (``kvalues_fp4`` of
ggml-common.h); the scales are halved for it (``ggml_e8m0_to_fp32_half`` and ``ggml_ue4m3_to_fp32``
of ggml-impl.h, MIT). No scale is NaN or infinite there, whatever its byte, nor is it here.
"""

import numpy as np
from numpy.typing import NDArray

from bake.checkpoint.dequant.blocks import Bytes, Numbers
from bake.checkpoint.ggml_types import BY_NAME
from blob.codecs.byte_lanes import bits, load_bytes, signed, store_numbers
from blob.codecs.byte_moves import lower, picked, upper
from blob.codecs.kernel import kernel
from blob.codecs.lanes import splat

MXFP4_VALUES, NVFP4_VALUES = 32, 64
MXFP4_BYTES = BY_NAME["MXFP4"].size
NVFP4_BYTES = BY_NAME["NVFP4"].size

DOUBLED = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]
NIBBLES = np.array(DOUBLED, np.int8).view(np.uint8)

# E8M0: 2^(byte - 128), exact; the first two are subnormal.
E8M0 = np.ldexp(1.0, np.arange(256) - 128).astype(np.float32)


def _unsigned_e4m3() -> NDArray[np.float32]:
    """Half of each byte as E4M3 (bias 7); its eighth bit counts for nothing, and of the two
    patterns that are NaN elsewhere, 0x7F is 0 and 0xFF is 240.
    """
    code = np.arange(256)
    exponent, fraction = code >> 3 & 15, code & 7
    whole = np.where(exponent == 0, 2 * fraction, 8 + fraction)
    values: NDArray[np.float32] = np.ldexp(whole.astype(np.float32), exponent - 11)
    values[0x7F] = 0
    return values


UE4M3 = _unsigned_e4m3()


@kernel
def mxfp4_rows(blocks: Bytes, stride: int, rows: int, out: Numbers) -> None:
    """A block: scale (one byte), 16 bytes of nibbles; a byte has numbers *i* and *i* + 16."""
    cols = out.size // rows
    table = load_bytes(NIBBLES, 0)
    for row in range(rows):
        at = row * stride
        for to in range(row * cols, (row + 1) * cols, MXFP4_VALUES):
            scale = splat(E8M0[blocks[at]])
            quants = load_bytes(blocks, at + 1)
            store_numbers(out, to, signed(picked(table, quants)) * scale)
            store_numbers(out, to + 16, signed(picked(table, bits(quants, 4, 15))) * scale)
            at += MXFP4_BYTES


@kernel
def nvfp4_rows(blocks: Bytes, stride: int, rows: int, out: Numbers) -> None:
    """A block: four scales (bytes) of 16 numbers each, then their nibbles; of the eight bytes of
    a group, byte *i* has numbers *i* and *i* + 8.
    """
    cols = out.size // rows
    table = load_bytes(NIBBLES, 0)
    for row in range(rows):
        at = row * stride
        for first in range(row * cols, (row + 1) * cols, NVFP4_VALUES):
            for pair in range(2):
                quants = load_bytes(blocks, at + 4 + 16 * pair)
                low, high = picked(table, quants), picked(table, bits(quants, 4, 15))
                to = first + 32 * pair
                scale = splat(UE4M3[blocks[at + 2 * pair]])
                store_numbers(out, to, signed(lower(low, high)) * scale)
                scale = splat(UE4M3[blocks[at + 2 * pair + 1]])
                store_numbers(out, to + 16, signed(upper(low, high)) * scale)
            at += NVFP4_BYTES
