"""Plain numbers as float32 or BF16: exact where the new type holds the old one's numbers.

F64 is rounded to float32 first, and that to BF16, as torch does it. NaN becomes BF16's one NaN
(:mod:`blob.codecs.bfloat16`); BF16 itself is copied, bit for bit. A byte of F8 is looked up in a
table of 256 numbers (OCP 8-bit Floating Point Specification 1.0; E4M3 is the variant without
infinities that every checkpoint has, ``e4m3fn``).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bake.checkpoint.dequant.stored import stored
from bake.errors import Unsupported
from blob.codecs.bfloat16 import widened
from blob.codecs.float16 import from_half
from blob.codecs.kernel import kernel
from blob.numpy_types import NUMPY
from blob.rows import each

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0")


def cast(array: NDArray[Any], dtype: str, out: NDArray[Any], threads: int = 1) -> None:
    """``array``, numbers of ``dtype`` as they are stored, into ``out`` of the same count.

    ``array`` may be mapped, strided or of another byte order. ``out`` is contiguous float32, or
    uint16 for the bits of BF16.

    :raises Unsupported: ``dtype`` is not one of ``FLOATS``.
    :raises ValueError: ``array`` or ``out`` is of another type or size.
    """
    check(array, dtype, out)
    flat = array.reshape(-1)
    target = out.reshape(-1)

    def some(piece: slice) -> None:
        _cast_piece(flat[piece], dtype, target[piece])

    each(some, (flat.size, 1), threads)


def check(array: NDArray[Any], dtype: str, out: NDArray[Any]) -> None:
    """Whether ``cast`` would take these.

    :raises Unsupported: ``dtype`` is not one of ``FLOATS``.
    :raises ValueError: ``array`` or ``out`` is of another type or size.
    """
    if dtype not in FLOATS:
        raise Unsupported(f"{dtype} cannot be cast", f"only floats can: {', '.join(FLOATS)}")
    if array.dtype.newbyteorder("=") != NUMPY[dtype]:
        raise ValueError(f"{dtype} is held as {np.dtype(NUMPY[dtype])}, got {array.dtype}")
    check_out(out)
    if array.size != out.size:
        raise ValueError(f"out must have {array.size} elements, got {out.size}")


def check_out(out: NDArray[Any]) -> None:
    """:raises ValueError: ``out`` is not contiguous float32 or uint16."""
    if out.dtype not in (np.float32, np.uint16) or not out.flags.c_contiguous:
        raise ValueError(f"out must be contiguous float32 or uint16, got {out.dtype}")


def _cast_piece(piece: NDArray[Any], dtype: str, out: NDArray[Any]) -> None:
    own = aligned(piece)
    if dtype in ("F64", "F32"):
        _from_floats(own, out)
    elif dtype == "F16":
        _from_halves(own.view(np.uint16), out)
    elif dtype == "BF16" and out.dtype == np.uint16:
        out[...] = own
    elif dtype == "BF16":
        _from_bfloats(own, out)
    else:
        _from_bytes(own, TABLES[dtype], out)


def aligned(piece: NDArray[Any]) -> NDArray[Any]:
    """A contiguous copy in this machine's byte order: kernels are compiled for no other kind."""
    return np.array(piece, piece.dtype.newbyteorder("="), order="C")


@kernel
def _from_floats(numbers: Any, out: Any) -> None:
    for i in range(numbers.size):
        out[i] = stored(out, np.float32(numbers[i]))


@kernel
def _from_halves(bits: Any, out: Any) -> None:
    for i in range(bits.size):
        out[i] = stored(out, from_half(bits[i]))


@kernel
def _from_bfloats(bits: Any, out: Any) -> None:
    for i in range(bits.size):
        out[i] = stored(out, np.uint32(widened(bits[i])).view(np.float32))


@kernel
def _from_bytes(bits: Any, table: Any, out: Any) -> None:
    for i in range(bits.size):
        out[i] = stored(out, table[bits[i]])


def float32(array: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """``cast`` of a small array, such as scales, to a new one of its shape; one thread.

    :raises Unsupported: ``dtype`` is not one of ``FLOATS``.
    """
    out = np.empty(array.shape, np.float32)
    cast(array, dtype, out)
    return out


def _small_floats(exponent_bits: int, bias: int) -> NDArray[np.float32]:
    """What bytes of a sign, an exponent and a mantissa stand for; infinities and NaN are not."""
    codes = np.arange(256)
    mantissa_bits = 7 - exponent_bits
    exponent = codes >> mantissa_bits & (1 << exponent_bits) - 1
    fraction = (codes & (1 << mantissa_bits) - 1) / (1 << mantissa_bits)
    size = np.where(
        exponent == 0, np.ldexp(fraction, 1 - bias), np.ldexp(1 + fraction, exponent - bias)
    )
    return np.where(codes >= 128, -size, size).astype(np.float32)


def _e4m3() -> NDArray[np.float32]:
    table = _small_floats(4, 7)
    table[[0x7F, 0xFF]] = np.nan
    return table


def _e5m2() -> NDArray[np.float32]:
    table = _small_floats(5, 15)
    table[[0x7C, 0xFC]] = np.inf, -np.inf
    table[0x7D:0x80] = table[0xFD:] = np.nan
    return table


def _e8m0() -> NDArray[np.float32]:
    """Powers of two, from 2⁻¹²⁷ (subnormal) to 2¹²⁷."""
    table = np.empty(256, np.float32)
    table[:255] = np.ldexp(np.float32(1), np.arange(255) - 127)
    table[255] = np.nan
    return table


TABLES = {"F8_E4M3": _e4m3(), "F8_E5M2": _e5m2(), "F8_E8M0": _e8m0()}
