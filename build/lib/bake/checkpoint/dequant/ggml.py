"""Tensors of ggml's block types back to numbers, on several threads.

The numbers are the float32 ones of ``dequantize_row_*`` (ggml-quants.c), bit for bit, NaN apart:
a NaN is a NaN, of any payload. As BF16 they are those, rounded once: to nearest, ties to even.
"""

from collections.abc import Mapping

import numpy as np

from bake.checkpoint.dequant import floats4, iq, k_quants, legacy, low_bits, ternary
from bake.checkpoint.dequant.blocks import Blocks, Bytes, Kernel, Numbers
from bake.checkpoint.ggml_types import BY_NAME
from blob import rows as matrix
from blob.codecs import k_decode

KERNELS: Mapping[str, Kernel] = {
    "Q1_0": low_bits.q1_0_rows,
    "Q2_0": low_bits.q2_0_rows,
    "Q4_0": legacy.q4_0_rows,
    "Q4_1": legacy.q4_1_rows,
    "Q5_0": legacy.q5_0_rows,
    "Q5_1": legacy.q5_1_rows,
    "Q8_0": k_decode.q8_0_rows,
    "Q2_K": k_quants.q2_k_rows,
    "Q3_K": k_quants.q3_k_rows,
    "Q4_K": k_decode.q4_k_rows,
    "Q5_K": k_decode.q5_k_rows,
    "Q6_K": k_decode.q6_k_rows,
    "TQ1_0": ternary.tq1_0_rows,
    "TQ2_0": ternary.tq2_0_rows,
    "MXFP4": floats4.mxfp4_rows,
    "NVFP4": floats4.nvfp4_rows,
}
# All block types that gguf-py decodes, and two that only ggml does, by their names in GGUF.
BLOCKS: Mapping[str, Blocks] = {
    name: Blocks(name, BY_NAME[name].values, BY_NAME[name].size, kernel)
    for name, kernel in KERNELS.items()
} | dict(iq.DECODERS)

# Numbers of a piece: some 50 µs of work, which a thread's hand-over does not show beside.
# Each byte is read once and each number written once, so no smaller one is worth anything.
PIECE = 512 * 1024


def dequantize(dtype: str, rows: Bytes, out: Numbers, threads: int = 1) -> None:
    """Blocks of type ``dtype`` (rows × bytes, as they lie in the file) into ``out`` (rows × cols).

    Float32, or BF16 bits in uint16, as ``out`` has it. Work is split between any two blocks, into
    slices of ``out`` that do not overlap: its bytes are the same for every number of threads.

    :raises ValueError: no such type; or shapes and types do not belong together, or an array has
        gaps.
    """
    kind = _known(dtype)
    _check(kind, rows, out)
    blocks, numbers = _flat(rows), out.reshape(-1)

    def some(piece: slice) -> None:
        first, last = piece.start, piece.stop
        of_them = blocks[first * kind.size : last * kind.size]
        kind.rows(of_them, of_them.size, 1, numbers[first * kind.values : last * kind.values])

    matrix.each(some, (out.size // kind.values, kind.values), threads, PIECE)


def _known(dtype: str) -> Blocks:
    if dtype not in BLOCKS:
        raise ValueError(f"the block type must be one of {', '.join(sorted(BLOCKS))}, got {dtype}")
    return BLOCKS[dtype]


def _check(kind: Blocks, rows: Bytes, out: Numbers) -> None:
    if rows.ndim != 2 or out.ndim != 2:
        raise ValueError(f"{kind.name}: two dimensions wanted, got {rows.ndim} and {out.ndim}")
    if out.dtype not in (np.float32, np.uint16):
        raise ValueError(f"{kind.name}: out must be float32 or uint16 (BF16), got {out.dtype}")
    k_decode.check(rows, out, out.dtype, kind.values, kind.size)
    if not rows.flags.c_contiguous:
        raise ValueError(f"{kind.name}: rows of {rows.shape[1]} bytes must be contiguous")
    if not (out.flags.aligned and out.flags.writeable):
        raise ValueError(f"{kind.name}: out must be aligned and writable")


def _flat(rows: Bytes) -> Bytes:
    """Read-only, as mapped bytes are: kernels are compiled for that alone, not for both."""
    flat = np.asarray(rows).reshape(-1)
    flat.flags.writeable = False
    return flat
