"""q5_k, ggml's ``block_q5_K``: 256 numbers in 176 bytes, 5.5 bits each.

A super-block (``super_block``) with levels 0 to 31. After its header of 16 bytes, byte i of 32
holds the fifth bits of the levels number i of each sub-block, that of sub-block j as bit j; then
128 bytes hold the lower four bits, as in ``q4_k``.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blob.codecs import Bfloats, Floats, Part, Parts, k_decode, super_block
from blob.codecs.kernel import kernel
from blob.codecs.lanes import COUNT, select, splat, store_bytes
from blob.codecs.super_block import (
    HEADER,
    SUBS,
    VALUES,
    WIDTH,
    levels,
    reference,
    search,
    transpose,
    write_header,
)

BYTES = 176
HIGHEST = 31
# quantize_row_q5_K_ref: make_qkx2_quants(32, 31, …, -0.5f, 0.1f, 15, false)
RATIOS = super_block.ratios(-0.5, HIGHEST, 15)


@kernel
def _encode(values: Any, out: Any) -> None:
    """Flat numbers into flat blocks, two super-blocks at a time; a last odd one twice."""
    count = len(values) // VALUES
    scratch = np.empty(super_block.SCRATCH, np.float32)
    found = np.empty(super_block.FOUND, np.float32)
    plan = np.empty(super_block.PLAN, np.float32)
    most = np.float32(HIGHEST)
    for block in range(0, count, 2):
        pair = min(2, count - block)
        one = block * VALUES
        transpose(values, one, scratch, 0)
        transpose(values, one + (pair - 1) * VALUES, scratch, SUBS)
        search(most, RATIOS, scratch, found)
        for k in range(pair):
            lane = k * SUBS
            start = one + k * VALUES
            at = (block + k) * BYTES
            write_header(found, lane, out, at, plan)
            for i in range(0, WIDTH, COUNT):
                fifths = splat(0)
                bit = splat(1)
                for j in range(0, SUBS, 2):
                    place = start + j * WIDTH + i
                    low = levels(values, place, most, plan, j)
                    high = levels(values, place + WIDTH, most, plan, j + 1)
                    low_fifth = select(low > splat(15), splat(1), splat(0))
                    high_fifth = select(high > splat(15), splat(1), splat(0))
                    fifths = fifths + bit * (low_fifth + splat(2) * high_fifth)
                    bit = bit * splat(4)
                    low = low - splat(16) * low_fifth
                    high = high - splat(16) * high_fifth
                    lower = at + HEADER + WIDTH + j // 2 * WIDTH
                    store_bytes(out, lower + i, low + splat(16) * high)
                store_bytes(out, at + HEADER + i, fifths)


@dataclass(frozen=True)
class Q5_K:  # noqa: N801 - ggml's name
    """Rows of 256 · n numbers as rows of n blocks; the bytes are ggml's, without importance."""

    @property
    def name(self) -> str:
        return "q5_k"

    @property
    def block(self) -> int:
        return VALUES

    def parts(self, rows: int, cols: int) -> dict[str, Part]:
        return {"blocks": Part("U8", (rows, cols // VALUES * BYTES))}

    def constants(self, rows: int, cols: int) -> dict[str, NDArray[Any]]:
        return {}

    def encode(self, values: Floats, out: Parts) -> None:
        super_block.encode(_encode, values, out["blocks"])

    def decode(self, parts: Parts, out: Bfloats) -> None:
        k_decode.decode_q5_k(parts["blocks"], out)

    def encode_reference(self, values: Floats) -> dict[str, NDArray[Any]]:
        rows, cols = values.shape
        header, level = reference(values, HIGHEST, -0.5, 15)
        bits = np.arange(SUBS, dtype=np.uint8)[None, :, None]
        fifths = np.bitwise_or.reduce((level >> 4) << bits, axis=1)
        low, high = level[:, 0::2] & 15, level[:, 1::2] & 15
        packed = (low | high << 4).reshape(-1, VALUES // 2)
        blocks = np.concatenate([header, fifths, packed], axis=1)
        return {"blocks": blocks.reshape(rows, cols // VALUES * BYTES)}

    def decode_reference(self, parts: Parts) -> Floats:
        return k_decode.decode_q5_k_reference(parts["blocks"])
