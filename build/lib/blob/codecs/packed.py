"""Groups of small signed integers, packed densely into int32 words, each group with a BF16 scale.

The layout of compressed-tensors' ``pack-quantized`` format: value *i* of a row, plus half of the
range, stands at bit ``i × bits`` of the row, least significant first, across words. (Its package
0.17.0 pads five-bit words; 0.20.0, and vLLM, have them dense as here. With four bits there is no
difference.) A number is its integer times its group's scale, rounded to BF16 as torch rounds a
product of two BF16 numbers.

Thirty-two values fill ``bits`` words whatever ``bits`` is: that is what is taken apart at once, in
LLVM's own vectors, which become those of the processor (one register of AVX-512, four of NEON).
Bytes are taken as they lie in memory: little-endian machines only, as safetensors has it.
"""

import sys
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from blob.codecs import Bfloats, Floats, Parts
from blob.codecs.kernel import kernel

AT_ONCE = 32
WORD_BITS = 32
if sys.byteorder != "little":
    raise ImportError("blob.codecs.packed: this machine is not little-endian")


def check_group(group: int) -> None:
    """:raises ValueError: groups of this size cannot be packed one by one."""
    if group < AT_ONCE or group % AT_ONCE:
        raise ValueError(f"group must be a positive multiple of {AT_ONCE}, got {group}")


def check(parts: Parts, shape: tuple[int, ...], group: int, bits: int) -> None:
    """Whether ``parts`` are those of a matrix of ``shape``: the kernels work on bare addresses.

    :raises ValueError: a part has another shape or type, or its memory has gaps.
    """
    rows, cols = shape
    if cols % group:
        raise ValueError(f"the columns must be a multiple of {group}, got {cols}")
    check_array("packed", parts["packed"], np.int32, (rows, cols * bits // WORD_BITS))
    check_array("scale", parts["scale"], np.uint16, (rows, cols // group))


def check_array(name: str, array: NDArray[Any], dtype: Any, shape: tuple[int, ...]) -> None:
    """:raises ValueError: ``array`` is not of this type and shape, without gaps."""
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise ValueError(
            f"{name} must be contiguous {np.dtype(dtype)} {shape}, got {array.dtype} {array.shape}"
        )


def decode(parts: Parts, out: Bfloats, group: int, bits: int) -> None:
    """``parts`` as BF16 bits into ``out`` (rows × cols, contiguous); one thread, no GIL.

    :raises ValueError: the shapes do not belong together.
    """
    check_array("out", out, np.uint16, out.shape)
    check(parts, out.shape, group, bits)
    stored, scale = parts["packed"], parts["scale"]
    # Addresses, since a kernel is compiled for each kind of array: mapped ones are read-only, and
    # may begin anywhere.
    multiply_groups(stored.ctypes.data, scale.ctypes.data, scale.size, out.ctypes.data, group, bits)


def decode_reference(parts: Parts, bits: int) -> Floats:
    """What ``decode`` gives before it is rounded, plainly: every bit by itself. A new array."""
    packed, scale = parts["packed"], parts["scale"]
    rows, cols = packed.shape[0], packed.shape[1] * WORD_BITS // bits
    stored = np.unpackbits(packed.view(np.uint8), axis=1, bitorder="little")
    weights = 1 << np.arange(bits)
    integers = stored.reshape(rows, cols, bits) @ weights - (1 << (bits - 1))
    factors = (scale.astype(np.uint32) << np.uint32(16)).view(np.float32)
    groups = integers.reshape(*scale.shape, -1).astype(np.float32)
    return (groups * factors[..., np.newaxis]).reshape(rows, cols)


def pack_reference(integers: NDArray[Any], bits: int) -> NDArray[np.int32]:
    """Words of a matrix of integers from ``-2^(bits-1)`` on, plainly: every bit by itself."""
    stored = integers.astype(np.int64) + (1 << (bits - 1))
    every = (stored[..., np.newaxis] >> np.arange(bits)) & 1
    flat = every.reshape(integers.shape[0], -1).astype(np.uint8)
    return np.packbits(flat, axis=1, bitorder="little").view(np.int32)


@kernel
def multiply_groups(  # noqa: PLR0913 - three addresses and what lies there
    packed: int, scale: int, groups: int, out: int, group: int, bits: int
) -> None:
    """One group after the other, from and to these addresses. Nothing is checked."""
    source, factor, target = np.int64(packed), np.int64(scale), np.int64(out)
    for _ in range(groups):
        for _ in range(group // AT_ONCE):
            if bits == 5:
                multiply_5(source, factor, target)
            else:
                multiply_4(source, factor, target)
            source += 4 * bits
            target += 2 * AT_ONCE
        factor += 2


@njit(inline="always")
def pack_4(values: Any, at: Any, words: Any, to: Any) -> None:
    """32 stored values (uint32, 0 to 15) from ``at`` on into four words from ``to`` on."""
    for word in range(4):
        bits = np.uint32(0)
        for i in range(8):
            bits |= np.uint32(values[at + word * 8 + i] << np.uint32(4 * i))
        words[to + word] = np.int32(bits)


@njit(inline="always")
def pack_5(values: Any, at: Any, words: Any, to: Any) -> None:
    """32 stored values (uint32, 0 to 31) from ``at`` on into five words from ``to`` on."""
    bits, held, word = np.uint64(0), 0, 0
    for i in range(AT_ONCE):
        bits |= np.uint64(values[at + i]) << np.uint64(held)
        held += 5
        if held >= WORD_BITS:
            words[to + word] = np.int32(np.uint32(bits & np.uint64(0xFFFFFFFF)))
            bits >>= np.uint64(WORD_BITS)
            held -= WORD_BITS
            word += 1


def _vector(kind: ir.Type, number: int, count: int = AT_ONCE) -> ir.Constant:
    return _constants(kind, [number] * count)


def _constants(kind: ir.Type, numbers: list[int]) -> ir.Constant:
    return ir.Constant(
        ir.VectorType(kind, len(numbers)), [ir.Constant(kind, each) for each in numbers]
    )


BYTE, HALF, WORD = ir.IntType(8), ir.IntType(16), ir.IntType(32)
BYTES_IN_WORD = 4


def _integers(builder: Any, address: Any, bits: int) -> Any:
    """32 signed integers in lanes of 16 bits: each value's two bytes, shifted and masked."""
    count = BYTES_IN_WORD * bits
    held = ir.VectorType(BYTE, count)
    memory = builder.load(builder.inttoptr(address, held.as_pointer()), align=1)
    # A value's bits begin in this byte, and may end in the next; the last value's do not.
    first = [bits * i // 8 for i in range(AT_ONCE)]
    pairs = [byte for at in first for byte in (at, min(at + 1, count - 1))]
    windows = builder.bitcast(
        builder.shuffle_vector(memory, memory, _constants(WORD, pairs)),
        ir.VectorType(HALF, AT_ONCE),
    )
    shifts = _constants(HALF, [bits * i % 8 for i in range(AT_ONCE)])
    stored = builder.and_(builder.lshr(windows, shifts), _vector(HALF, (1 << bits) - 1))
    return builder.sub(stored, _vector(HALF, 1 << (bits - 1)))


def _bfloats(builder: Any, products: Any) -> Any:
    """``bfloat16.rounded`` of 32 float32, in lanes."""
    bits = builder.bitcast(products, ir.VectorType(WORD, AT_ONCE))
    odd = builder.and_(builder.lshr(bits, _vector(WORD, 16)), _vector(WORD, 1))
    near = builder.add(builder.add(bits, _vector(WORD, 0x7FFF)), odd)
    nearest = builder.trunc(builder.lshr(near, _vector(WORD, 16)), ir.VectorType(HALF, AT_ONCE))
    nan = builder.fcmp_unordered("uno", products, products)
    return builder.select(nan, _vector(HALF, 0x7FC0), nearest)


def _multiplied(bits: int) -> Any:
    """Code for 32 values times a scale, which is BF16, as BF16: three addresses."""

    def code(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        source, factor, target = arguments
        floats = ir.VectorType(ir.FloatType(), AT_ONCE)
        half = builder.load(builder.inttoptr(factor, HALF.as_pointer()), align=1)
        word = builder.shl(builder.zext(half, WORD), ir.Constant(WORD, 16))
        scale = builder.bitcast(word, ir.FloatType())
        one = builder.insert_element(ir.Constant(floats, ir.Undefined), scale, WORD(0))
        scales = builder.shuffle_vector(one, one, _vector(WORD, 0))
        integers = builder.sext(_integers(builder, source, bits), ir.VectorType(WORD, AT_ONCE))
        products = builder.fmul(builder.sitofp(integers, floats), scales)
        to = builder.inttoptr(target, ir.VectorType(HALF, AT_ONCE).as_pointer())
        builder.store(_bfloats(builder, products), to, align=1)
        return context.get_dummy_value()

    return code


@intrinsic
def multiply_4(_: Any, source: Any, factor: Any, target: Any) -> Any:
    """16 bytes at ``source`` times the number at ``factor``, to 64 bytes at ``target``."""
    return types.void(types.int64, types.int64, types.int64), _multiplied(4)


@intrinsic
def multiply_5(_: Any, source: Any, factor: Any, target: Any) -> Any:
    """20 bytes at ``source`` times the number at ``factor``, to 64 bytes at ``target``."""
    return types.void(types.int64, types.int64, types.int64), _multiplied(5)
