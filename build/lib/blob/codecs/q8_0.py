"""ggml's Q8_0: 32 numbers share one scale and are eight bits each; 34 bytes a block.

A block is ``block_q8_0`` of ggml-common.h: the scale as a half, then 32 signed bytes. The bytes
are those of ``quantize_row_q8_0_ref`` in ggml-quants.c, which ``encode_reference`` follows line by
line.

Where ggml's C has no defined answer: below about 3.7e-37 the inverse of the scale is infinite,
and a float beyond the range of a byte is converted to one. What every x86 build then stores is 0,
and so is the scale, so the block is zeros, as it would be had it been computed exactly.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blob.codecs import Bfloats, Floats, Part, Parts
from blob.codecs.byte_lanes import away, largest, narrowed, save_bytes
from blob.codecs.float16 import to_half
from blob.codecs.k_decode import check, decode_q8_0, decode_q8_0_reference, flat
from blob.codecs.kernel import kernel
from blob.codecs.lanes import COUNT, larger, load, magnitude, splat

VALUES = 32
BYTES = 34
QUANTS = 2  # where they begin in a block


@dataclass(frozen=True)
class Q8_0:  # noqa: N801
    """A ``RowCodec``; its one part, ``blocks``, is uint8 of rows × (cols / 32 · 34)."""

    @property
    def name(self) -> str:
        return "q8_0"

    @property
    def block(self) -> int:
        return VALUES

    def parts(self, rows: int, cols: int) -> dict[str, Part]:
        return {"blocks": Part("U8", (rows, cols // VALUES * BYTES))}

    def constants(self, rows: int, cols: int) -> dict[str, NDArray[Any]]:
        return {}

    def encode(self, values: Floats, out: Parts) -> None:
        check(out["blocks"], values, np.float32, VALUES, BYTES)
        if values.size:
            encode_rows(values.reshape(-1), len(values), *flat(out["blocks"]))

    def decode(self, parts: Parts, out: Bfloats) -> None:
        decode_q8_0(parts["blocks"], out)

    def encode_reference(self, values: Floats) -> dict[str, NDArray[Any]]:
        """``quantize_row_q8_0_ref``, a block at a time."""
        rows, cols = values.shape
        blocks = np.empty((rows, cols // VALUES, BYTES), np.uint8)
        for row in range(rows):
            for index in range(cols // VALUES):
                block = values[row, index * VALUES : (index + 1) * VALUES]
                blocks[row, index] = encode_block(block)
        return {"blocks": blocks.reshape(rows, cols // VALUES * BYTES)}

    def decode_reference(self, parts: Parts) -> Floats:
        return decode_q8_0_reference(parts["blocks"])


def encode_block(block: Floats) -> NDArray[np.uint8]:
    """34 bytes for 32 numbers, as ``quantize_row_q8_0_ref`` makes them."""
    with np.errstate(all="ignore"):
        scale = np.abs(block).max() / np.float32(127)
        inverse = np.float32(1) / scale if scale else np.float32(0)
        scaled = block * inverse
        # roundf: halves go away from zero.
        whole = np.trunc(scaled)
        whole += np.where(np.abs(scaled - whole) >= 0.5, np.sign(scaled), 0)
        # An infinite inverse: see above.
        quants = np.where(np.isfinite(inverse), whole, 0).astype(np.int8)
        half = np.float16(scale)
    return np.frombuffer(half.tobytes() + quants.tobytes(), np.uint8)


@kernel
def encode_rows(values: Floats, rows: int, out: NDArray[np.uint8], stride: int) -> None:
    """Flat ``values`` of ``rows`` rows into ``out``, a row's bytes ``stride`` after the last's."""
    cols = values.size // rows
    for row in range(rows):
        at = row * stride
        for first in range(row * cols, (row + 1) * cols, VALUES):
            low, high = load(values, first), load(values, first + COUNT)
            scale = largest(larger(magnitude(low), magnitude(high))) / np.float32(127)
            inverse = np.float32(1) / scale
            # What is zero, or has no inverse, becomes zeros.
            if not inverse < np.float32(np.inf):
                inverse = np.float32(0)
            half = to_half(scale)
            out[at] = half & 255
            out[at + 1] = half >> 8
            factor = splat(inverse)
            save_bytes(out, at + QUANTS, narrowed(away(low * factor)))
            save_bytes(out, at + QUANTS + COUNT, narrowed(away(high * factor)))
            at += BYTES
