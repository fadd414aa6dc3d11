"""ggml's blocks back to numbers: Q8_0, Q4_K, Q5_K and Q6_K, straight to BF16 or float32.

Each decoder takes blocks as rows of bytes (rows × bytes, a row contiguous) and fills BF16 bits
(rows × cols, contiguous). The numbers are the float32 ones that ``dequantize_row_*`` of
ggml-quants.c gives, every product and difference rounded as there, and then rounded to BF16: to
nearest, ties to even. Each has a reference in NumPy that gives the float32 numbers.

The kernels (``*_rows``) take flat blocks, how many bytes apart rows begin, how many rows there
are, and a flat array to fill: uint16 for BF16 bits, or float32 for the numbers unrounded.

What a block holds is in ggml-common.h (``block_q8_0``, ``block_q4_K``, …); the layouts stand at
the references. No kernel trusts a block: whatever the bytes, it stays inside its arrays.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from blob.codecs import Bfloats, Floats
from blob.codecs.byte_lanes import bits, joined, load_bytes, signed, store_numbers, unsigned
from blob.codecs.float16 import from_half
from blob.codecs.kernel import kernel
from blob.codecs.lanes import splat

Bytes = NDArray[np.uint8]
Numbers = Floats | Bfloats  # what a kernel fills

SUPER = 256  # numbers of a super-block of the k-quants
Q8_0_BYTES, Q4_K_BYTES, Q5_K_BYTES, Q6_K_BYTES = 34, 144, 176, 210


def flat(rows: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Rows of bytes, each contiguous, as one vector from the first byte to the last, and how far
    apart rows begin in it.

    Numba knows of a matrix with gaps between its rows only that nothing in it need be contiguous,
    and makes no vectors of it.

    :raises ValueError: the bytes of a row are not contiguous.
    """
    count, width = rows.shape
    if rows.flags.c_contiguous:
        return rows.reshape(-1), width
    if rows.strides[1] != 1 or rows.dtype.itemsize != 1:
        raise ValueError(f"rows of single contiguous bytes wanted, got strides {rows.strides}")
    stride = rows.strides[0]
    if stride < width:
        raise ValueError(f"rows of {width} bytes overlap: {stride} apart")
    span = (count - 1) * stride + width
    return np.lib.stride_tricks.as_strided(rows, (span,), (1,)), stride


def decode_q8_0(blocks: Bytes, out: Bfloats) -> None:
    """Rows × (cols / 32 · 34) bytes as BF16 bits into rows × cols; releases the GIL."""
    decode(q8_0_rows, blocks, out, 32, Q8_0_BYTES)


def decode_q4_k(blocks: Bytes, out: Bfloats) -> None:
    """Rows × (cols / 256 · 144) bytes as BF16 bits into rows × cols; releases the GIL."""
    decode(q4_k_rows, blocks, out, SUPER, Q4_K_BYTES)


def decode_q5_k(blocks: Bytes, out: Bfloats) -> None:
    """Rows × (cols / 256 · 176) bytes as BF16 bits into rows × cols; releases the GIL."""
    decode(q5_k_rows, blocks, out, SUPER, Q5_K_BYTES)


def decode_q6_k(blocks: Bytes, out: Bfloats) -> None:
    """Rows × (cols / 256 · 210) bytes as BF16 bits into rows × cols; releases the GIL."""
    decode(q6_k_rows, blocks, out, SUPER, Q6_K_BYTES)


def check(blocks: Bytes, numbers: NDArray[Any], dtype: Any, values: int, size: int) -> None:
    """Whether ``blocks`` have room for ``numbers``, ``size`` bytes for ``values`` of a row: the
    kernels work on bare addresses.

    :raises ValueError: shapes or types do not belong together, or ``numbers`` has gaps.
    """
    if numbers.dtype != dtype:
        raise ValueError(f"numbers must be {np.dtype(dtype)}, got {numbers.dtype}")
    rows, cols = numbers.shape
    if cols % values:
        raise ValueError(f"the columns must be a multiple of {values}, got {cols}")
    wanted = (rows, cols // values * size)
    if blocks.dtype != np.uint8 or blocks.shape != wanted:
        raise ValueError(f"blocks must be uint8 {wanted}, got {blocks.dtype} {blocks.shape}")
    if not numbers.flags.c_contiguous:
        raise ValueError(f"{rows} × {cols} numbers must be contiguous")


def decode(kernel: Any, blocks: Bytes, out: Bfloats, values: int, size: int) -> None:
    """Call a kernel of flat arrays.

    :raises ValueError: as ``check`` and ``flat`` say.
    """
    check(blocks, out, np.uint16, values, size)
    if out.size:
        kernel(*flat(blocks), len(out), out.reshape(-1))


@njit(inline="always")
def half_at(blocks: Any, at: Any) -> Any:
    """The float32 of the half whose two bytes, the lower first, begin there."""
    return from_half(np.uint16(blocks[at]) | np.uint16(np.uint16(blocks[at + 1]) << np.uint16(8)))


@kernel
def q8_0_rows(blocks: Bytes, stride: int, rows: int, out: Numbers) -> None:
    cols = out.size // rows
    for row in range(rows):
        at = row * stride
        for to in range(row * cols, (row + 1) * cols, 32):
            scale = splat(half_at(blocks, at))
            for i in range(0, 32, 16):
                quants = signed(load_bytes(blocks, at + 2 + i))
                store_numbers(out, to + i, quants * scale)
            at += Q8_0_BYTES


@njit(inline="always")
def scale_of(scales: Any, at: Any, j: Any) -> Any:
    """``get_scale_min_k4``: the six bits of scale ``j`` of 8, from the 12 bytes at ``at``."""
    if j < 4:
        return np.float32(scales[at + j] & 63)
    return np.float32((scales[at + j + 4] & 15) | (scales[at + j - 4] >> 6 << 4))


@njit(inline="always")
def minimum_of(scales: Any, at: Any, j: Any) -> Any:
    """``get_scale_min_k4``: the six bits of minimum ``j`` of 8, from the 12 bytes at ``at``."""
    if j < 4:
        return np.float32(scales[at + j + 4] & 63)
    return np.float32((scales[at + j + 4] >> 4) | (scales[at + j] >> 6 << 4))


@kernel
def q4_k_rows(blocks: Bytes, stride: int, rows: int, out: Numbers) -> None:
    cols = out.size // rows
    for row in range(rows):
        at = row * stride
        for first in range(row * cols, (row + 1) * cols, SUPER):
            scale, minimum = half_at(blocks, at), half_at(blocks, at + 2)
            for j in range(0, 8, 2):
                step = splat(scale * scale_of(blocks, at + 4, j))
                less = splat(minimum * minimum_of(blocks, at + 4, j))
                next_step = splat(scale * scale_of(blocks, at + 4, j + 1))
                next_less = splat(minimum * minimum_of(blocks, at + 4, j + 1))
                for i in range(0, 32, 16):
                    quants = load_bytes(blocks, at + 16 + 16 * j + i)
                    to = first + 32 * j + i
                    store_numbers(out, to, step * unsigned(bits(quants, 0, 15)) - less)
                    store_numbers(
                        out, to + 32, next_step * unsigned(bits(quants, 4, 15)) - next_less
                    )
            at += Q4_K_BYTES


@kernel
def q5_k_rows(blocks: Bytes, stride: int, rows: int, out: Numbers) -> None:
    cols = out.size // rows
    for row in range(rows):
        at = row * stride
        for first in range(row * cols, (row + 1) * cols, SUPER):
            scale, minimum = half_at(blocks, at), half_at(blocks, at + 2)
            for j in range(0, 8, 2):
                step = splat(scale * scale_of(blocks, at + 4, j))
                less = splat(minimum * minimum_of(blocks, at + 4, j))
                next_step = splat(scale * scale_of(blocks, at + 4, j + 1))
                next_less = splat(minimum * minimum_of(blocks, at + 4, j + 1))
                for i in range(0, 32, 16):
                    fifth = load_bytes(blocks, at + 16 + i)
                    quants = load_bytes(blocks, at + 48 + 16 * j + i)
                    low = joined(bits(quants, 0, 15), bits(fifth, j, 1), 4)
                    high = joined(bits(quants, 4, 15), bits(fifth, j + 1, 1), 4)
                    to = first + 32 * j + i
                    store_numbers(out, to, step * unsigned(low) - less)
                    store_numbers(out, to + 32, next_step * unsigned(high) - next_less)
            at += Q5_K_BYTES


@kernel
def q6_k_rows(blocks: Bytes, stride: int, rows: int, out: Numbers) -> None:
    cols = out.size // rows
    offset = splat(32)
    steps = blocks.view(np.int8)
    for row in range(rows):
        at = row * stride
        for first in range(row * cols, (row + 1) * cols, SUPER):
            scale = half_at(blocks, at + 208)
            for half in range(2):
                for i in range(2):
                    even = load_bytes(blocks, at + 64 * half + 16 * i)
                    odd = load_bytes(blocks, at + 64 * half + 32 + 16 * i)
                    upper = load_bytes(blocks, at + 128 + 32 * half + 16 * i)
                    to = first + 128 * half + 16 * i
                    group = at + 192 + 8 * half + i
                    first_six = joined(bits(even, 0, 15), bits(upper, 0, 3), 4)
                    second_six = joined(bits(odd, 0, 15), bits(upper, 2, 3), 4)
                    third_six = joined(bits(even, 4, 15), bits(upper, 4, 3), 4)
                    fourth_six = joined(bits(odd, 4, 15), bits(upper, 6, 3), 4)
                    step = splat(scale * np.float32(steps[group]))
                    store_numbers(out, to, step * (unsigned(first_six) - offset))
                    step = splat(scale * np.float32(steps[group + 2]))
                    store_numbers(out, to + 32, step * (unsigned(second_six) - offset))
                    step = splat(scale * np.float32(steps[group + 4]))
                    store_numbers(out, to + 64, step * (unsigned(third_six) - offset))
                    step = splat(scale * np.float32(steps[group + 6]))
                    store_numbers(out, to + 96, step * (unsigned(fourth_six) - offset))
            at += Q6_K_BYTES


def fields(blocks: Bytes, *sizes: int) -> list[Bytes]:
    """The blocks' fields of these sizes in bytes, each as blocks × size."""
    whole = np.ascontiguousarray(blocks).reshape(-1, sum(sizes))
    return np.split(whole, np.cumsum(sizes)[:-1].tolist(), axis=1)


def halves(field: Bytes) -> Floats:
    """A field of two bytes as float32, blocks × 1."""
    return np.ascontiguousarray(field).view(np.float16).astype(np.float32)


def decode_q8_0_reference(blocks: Bytes) -> Floats:
    """``dequantize_row_q8_0``. A block: scale (half), 32 signed bytes."""
    scale, quants = fields(blocks, 2, 32)
    with np.errstate(all="ignore"):
        values = quants.view(np.int8).astype(np.float32) * halves(scale)
    return values.reshape(len(blocks), blocks.shape[1] // Q8_0_BYTES * 32)


def scales_and_minimums(packed: Bytes) -> tuple[Floats, Floats]:
    """``get_scale_min_k4`` for all 8: blocks × 12 bytes as two times blocks × 8.

    The first four of each are the low six bits of bytes 0 to 3 and 4 to 7; the last four have
    their low nibbles in bytes 8 to 11 and their upper two bits on top of those eight bytes.
    """
    scales, minimums, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    last_scales = rest & 15 | scales >> 6 << 4
    last_minimums = rest >> 4 | minimums >> 6 << 4
    all_scales = np.concatenate([scales & 63, last_scales], axis=1)
    all_minimums = np.concatenate([minimums & 63, last_minimums], axis=1)
    return all_scales.astype(np.float32), all_minimums.astype(np.float32)


def nibbles(quants: Bytes) -> Bytes:
    """Blocks × 128 bytes as blocks × 8 × 32: low nibbles of 32 bytes, their high ones, and on."""
    by_pair = quants.reshape(-1, 4, 1, 32)
    both: Bytes = np.concatenate([by_pair & 15, by_pair >> 4], axis=2)
    return both.reshape(-1, 8, 32)


def scaled(quants: Bytes, scale: Bytes, minimum: Bytes, packed: Bytes) -> Floats:
    """What Q4_K and Q5_K share: ``(d · scale) · quant - (dmin · minimum)``."""
    scales, minimums = scales_and_minimums(packed)
    with np.errstate(all="ignore"):
        steps = halves(scale) * scales
        less = halves(minimum) * minimums
        values: Floats = steps[:, :, None] * quants.astype(np.float32) - less[:, :, None]
    return values


def decode_q4_k_reference(blocks: Bytes) -> Floats:
    """``dequantize_row_q4_K``. A super-block: scale and minimum (halves), 8 scales and minimums of
    six bits in 12 bytes, nibbles of 8 groups of 32 in 128.
    """
    scale, minimum, packed, quants = fields(blocks, 2, 2, 12, 128)
    return scaled(nibbles(quants), scale, minimum, packed).reshape(
        len(blocks), blocks.shape[1] // Q4_K_BYTES * SUPER
    )


def decode_q5_k_reference(blocks: Bytes) -> Floats:
    """``dequantize_row_q5_K``. As Q4_K, with 32 bytes before the nibbles: bit ``j`` of byte ``i``
    is the fifth bit of number ``i`` of group ``j``.
    """
    scale, minimum, packed, fifth, quants = fields(blocks, 2, 2, 12, 32, 128)
    groups = np.arange(8, dtype=np.uint8)[None, :, None]
    fives: Bytes = nibbles(quants) | (fifth[:, None, :] >> groups & np.uint8(1)) << np.uint8(4)
    return scaled(fives, scale, minimum, packed).reshape(
        len(blocks), blocks.shape[1] // Q5_K_BYTES * SUPER
    )


def decode_q6_k_reference(blocks: Bytes) -> Floats:
    """``dequantize_row_q6_K``. A super-block: 128 bytes of low nibbles, 64 of upper bit pairs,
    16 signed scales, the scale of them all (half). Its halves of 128 numbers are alike: 64 bytes
    have 64 numbers in their low nibbles and the next 64 in their high ones; 32 bytes have the
    upper bits of four times 32 numbers, the first lowest.
    """
    low, high, scales, scale = fields(blocks, 128, 64, 16, 2)
    by_half = low.reshape(-1, 2, 1, 64)
    fours = np.concatenate([by_half & 15, by_half >> 4], axis=2).reshape(-1, 2, 4, 32)
    shifts = 2 * np.arange(4, dtype=np.uint8)[None, None, :, None]
    sixes = fours | (high.reshape(-1, 2, 1, 32) >> shifts & 3) << 4
    quants = sixes.reshape(-1, 16, 16).astype(np.float32) - np.float32(32)
    with np.errstate(all="ignore"):
        steps = halves(scale) * scales.view(np.int8).astype(np.float32)
        values: Floats = steps[:, :, None] * quants
    return values.reshape(len(blocks), blocks.shape[1] // Q6_K_BYTES * SUPER)
