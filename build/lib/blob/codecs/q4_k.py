"""q4_k, ggml's ``block_q4_K``: 256 numbers in 144 bytes, 4.5 bits each.

A super-block (``super_block``) with levels 0 to 15. After its header of 16 bytes, 128 bytes hold
the levels: those of sub-blocks 2p and 2p + 1 lie in the lower and upper halves of bytes 32p to
32p + 31.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blob.codecs import Bfloats, Floats, Part, Parts, k_decode, super_block
from blob.codecs.kernel import kernel
from blob.codecs.lanes import COUNT, splat, store_bytes
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

BYTES = 144
HIGHEST = 15
# quantize_row_q4_K_ref: make_qkx2_quants(32, 15, …, -1.f, 0.1f, 20, false)
RATIOS = super_block.ratios(-1.0, HIGHEST, 20)


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
            for j in range(0, SUBS, 2):
                for i in range(0, WIDTH, COUNT):
                    place = start + j * WIDTH + i
                    low = levels(values, place, most, plan, j)
                    high = levels(values, place + WIDTH, most, plan, j + 1)
                    store_bytes(out, at + HEADER + j // 2 * WIDTH + i, low + splat(16) * high)


@dataclass(frozen=True)
class Q4_K:  # noqa: N801 - ggml's name
    """Rows of 256 · n numbers as rows of n blocks; the bytes are ggml's, without importance."""

    @property
    def name(self) -> str:
        return "q4_k"

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
        k_decode.decode_q4_k(parts["blocks"], out)

    def encode_reference(self, values: Floats) -> dict[str, NDArray[Any]]:
        rows, cols = values.shape
        header, level = reference(values, HIGHEST, -1.0, 20)
        low, high = level[:, 0::2], level[:, 1::2]
        packed = (low | high << 4).reshape(-1, VALUES // 2)
        blocks = np.concatenate([header, packed], axis=1)
        return {"blocks": blocks.reshape(rows, cols // VALUES * BYTES)}

    def decode_reference(self, parts: Parts) -> Floats:
        return k_decode.decode_q4_k_reference(parts["blocks"])
