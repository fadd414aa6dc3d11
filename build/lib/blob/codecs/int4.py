"""Four bits and a BF16 scale for each group: the layout that vLLM serves as it is.

Byte for byte what compressed-tensors 0.17.0 makes of a BF16 weight with symmetric groups
(``pack-quantized``): its min-max observer's scale, ``max |w| / 7.5`` rounded to BF16, where zero
becomes BF16's epsilon; its ``quantize``, which rounds the quotient to BF16 *before* rounding it to
an integer; its ``pack_to_int32``. Numbers that are not BF16 are rounded to it first.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blob.codecs import Bfloats, Floats, Part, Parts, bfloat16, packed
from blob.codecs.kernel import kernel

BITS = 4
# compressed-tensors' calculate_qparams: half of the range of four bits, as a real number.
HALF_RANGE = np.float32(7.5)
LEAST, MOST = np.float32(-8), np.float32(7)
# torch.finfo(torch.bfloat16).eps, which stands where a scale would be zero; its bits.
EPSILON = 0x3C00
# 1.5 × 2²³: added to a small float32, it leaves the nearest integer (ties to even) in the bits.
ROUNDER = np.float32(12582912)
STORED = np.uint32(0x4B400000 - 8)


@dataclass(frozen=True)
class Int4:
    """Int4 of ``group`` columns to a scale."""

    group: int = 32

    def __post_init__(self) -> None:
        packed.check_group(self.group)

    @property
    def name(self) -> str:
        """As the manifest says it."""
        return "int4"

    @property
    def block(self) -> int:
        """The columns of a matrix must be a multiple of this."""
        return self.group

    def parts(self, rows: int, cols: int) -> dict[str, Part]:
        """Words of eight values, and a scale for each group."""
        return {
            "packed": Part("I32", (rows, cols * BITS // packed.WORD_BITS)),
            "scale": Part("BF16", (rows, cols // self.group)),
        }

    def constants(self, rows: int, cols: int) -> dict[str, NDArray[Any]]:
        """The shape, which compressed-tensors stores since words may hide padding."""
        return {"shape": np.array([rows, cols], np.int64)}

    def encode(self, values: Floats, out: Parts) -> None:
        """Quantize ``values`` (rows × cols, finite as BF16) into ``out``; one thread, no GIL.

        :raises ValueError: the shapes do not belong together.
        """
        packed.check(out, values.shape, self.group, BITS)
        source = np.ascontiguousarray(values, np.float32)
        quantize(source, out["packed"].reshape(-1), out["scale"].reshape(-1), self.group)

    def decode(self, parts: Parts, out: Bfloats) -> None:
        """Rows of ``parts`` as BF16 bits into ``out`` (rows × cols); one thread, no GIL.

        :raises ValueError: the shapes do not belong together.
        """
        packed.decode(parts, out, self.group, BITS)

    def encode_reference(self, values: Floats) -> dict[str, NDArray[Any]]:
        """The same as ``encode``, plainly."""
        rows, cols = values.shape
        near = bfloat16.to_float32(bfloat16.from_float32_reference(values))
        groups = near.reshape(rows, cols // self.group, self.group)
        largest = np.abs(groups).max(axis=2)
        scale = bfloat16.from_float32_reference(largest / HALF_RANGE)
        scale[scale == 0] = EPSILON
        quotients = groups / bfloat16.to_float32(scale)[..., np.newaxis]
        near = bfloat16.to_float32(bfloat16.from_float32_reference(quotients))
        integers = np.rint(np.clip(near, LEAST, MOST)).reshape(rows, cols)
        return {"packed": packed.pack_reference(integers, BITS), "scale": scale}

    def decode_reference(self, parts: Parts) -> Floats:
        """What ``decode`` gives, before it is rounded to BF16."""
        return packed.decode_reference(parts, BITS)


@kernel
def quantize(values: Floats, words: NDArray[np.int32], scale: Bfloats, group: int) -> None:
    """One group after the other; ``words`` and ``scale`` are flat. Nothing is checked."""
    source = values.reshape(-1)
    near = np.empty(group, np.float32)
    stored = np.empty(group, np.uint32)
    for g in range(scale.size):
        # Of numbers without a sign, the larger has the larger bits: an integer maximum, in lanes.
        largest = np.uint32(0)
        for i in range(group):
            near[i] = bfloat16.nearest(source[g * group + i])
            size = np.uint32(np.float32(near[i]).view(np.uint32) & np.uint32(0x7FFFFFFF))
            largest = max(largest, size)
        quotient = np.float32(np.uint32(largest).view(np.float32) / HALF_RANGE)
        own = bfloat16.rounded(np.float32(quotient).view(np.uint32))
        if own == 0:
            own = np.uint16(EPSILON)
        scale[g] = own
        divisor = np.uint32(bfloat16.widened(own)).view(np.float32)
        for i in range(group):
            ratio = min(max(bfloat16.nearest(near[i] / divisor), LEAST), MOST)
            stored[i] = np.uint32(np.float32(ratio + ROUNDER).view(np.uint32) - STORED)
        for i in range(0, group, packed.AT_ONCE):
            packed.pack_4(stored, i, words, (g * group + i) // 8)
