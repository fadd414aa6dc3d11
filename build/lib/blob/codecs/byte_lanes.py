"""Sixteen bytes side by side, as one value of a kernel, and their ways to and from ``lanes``.

In a kernel: ``load_bytes(array, at)``, ``save_bytes(array, at, bytes)``, ``bits(bytes, shift,
mask)``, ``joined(low, high, shift)``; ``signed(bytes)`` and ``unsigned(bytes)`` as float32 lanes,
``narrowed(lanes)`` back; ``store_numbers(array, at, lanes)``, ``largest(lanes)``,
``away(lanes)``. Indices are not checked.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic, models, register_model

from blob.codecs.lanes import BYTES, COUNT, FLOATS, WORDS, lanes

SHORTS = ir.VectorType(ir.IntType(16), COUNT)

# BF16's one NaN here, as ``bfloat16.NAN``: rounding the bits of a NaN could make a number of it.
NAN = 0x7FC0
# The float32 just below a half.
BELOW_HALF = 0.5 - 2.0**-25


class ByteLanes(types.Type):  # type: ignore[misc]
    """Sixteen bytes."""

    def __init__(self) -> None:
        super().__init__(name=f"uint8x{COUNT}")


byte_lanes = ByteLanes()


@register_model(ByteLanes)
class ByteLanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, BYTES)


def _constant(vector: Any, number: float) -> Any:
    return ir.Constant(vector, [number] * COUNT)


def _splat(context: Any, builder: Any, number: Any, kind: Any) -> Any:
    """An integer of a kernel in every one of sixteen bytes."""
    byte = context.cast(builder, number, kind, types.uint8)
    first = builder.insert_element(
        ir.Constant(BYTES, ir.Undefined), byte, ir.Constant(ir.IntType(32), 0)
    )
    return builder.shuffle_vector(first, first, ir.Constant(WORDS, [0] * COUNT))


def _place(context: Any, builder: Any, kinds: Any, values: Any, vector: Any) -> Any:
    """Where ``array[at]`` begins, as a pointer to a vector: arguments 0 and 1."""
    array = context.make_array(kinds.args[0])(context, builder, values[0])
    at = context.cast(builder, values[1], kinds.args[1], types.intp)
    return builder.bitcast(builder.gep(array.data, [at]), vector.as_pointer())


@intrinsic
def load_bytes(typing: Any, array: Any, at: Any) -> Any:
    """``array[at : at + 16]`` of a flat array of bytes."""

    def emit(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
        return builder.load(_place(context, builder, kinds, values, BYTES), align=1)

    return byte_lanes(array, at), emit


@intrinsic
def save_bytes(typing: Any, array: Any, at: Any, value: Any) -> Any:
    """``array[at : at + 16] = value``, in a flat array of bytes."""

    def emit(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
        builder.store(values[2], _place(context, builder, kinds, values, BYTES), align=1)
        return context.get_dummy_value()

    return types.void(array, at, value), emit


@intrinsic
def bits(typing: Any, value: Any, shift: Any, mask: Any) -> Any:
    """``value >> shift & mask`` of each byte."""

    def emit(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
        places = _splat(context, builder, values[1], kinds.args[1])
        wanted = _splat(context, builder, values[2], kinds.args[2])
        return builder.and_(builder.lshr(values[0], places), wanted)

    return byte_lanes(value, shift, mask), emit


@intrinsic
def joined(typing: Any, low: Any, high: Any, shift: Any) -> Any:
    """``low | high << shift`` of each byte; what is shifted out is lost."""

    def emit(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
        places = _splat(context, builder, values[2], kinds.args[2])
        return builder.or_(values[0], builder.shl(values[1], places))

    return byte_lanes(low, high, shift), emit


@intrinsic
def unsigned(typing: Any, value: Any) -> Any:
    """Numbers from 0 to 255 as float32 lanes."""

    def emit(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
        return builder.uitofp(values[0], FLOATS)

    return lanes(value), emit


@intrinsic
def signed(typing: Any, value: Any) -> Any:
    """Numbers from -128 to 127 as float32 lanes."""

    def emit(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
        return builder.sitofp(values[0], FLOATS)

    return lanes(value), emit


@intrinsic
def narrowed(typing: Any, value: Any) -> Any:
    """Lanes that hold numbers from -128 to 255, cut to whole ones, towards zero, as bytes."""

    def emit(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
        return builder.trunc(builder.fptosi(values[0], WORDS), BYTES)

    return byte_lanes(value), emit


def _bfloats(builder: Any, value: Any) -> Any:
    """BF16 bits of float32 lanes, to nearest, ties to even: as ``bfloat16.rounded``."""
    sixteen = _constant(WORDS, 16)
    exact = builder.bitcast(value, WORDS)
    kept = builder.lshr(exact, sixteen)
    bias = builder.add(builder.and_(kept, _constant(WORDS, 1)), _constant(WORDS, 0x7FFF))
    nearest = builder.lshr(builder.add(exact, bias), sixteen)
    nan = builder.fcmp_unordered("uno", value, value)
    return builder.trunc(builder.select(nan, _constant(WORDS, NAN), nearest), SHORTS)


@intrinsic
def store_numbers(typing: Any, array: Any, at: Any, value: Any) -> Any:
    """Lanes into ``array[at : at + 16]``, flat, in what ``array`` holds: float32 as they are, or
    BF16 bits (uint16), to nearest, ties to even.
    """
    rounding = array.dtype == types.uint16
    if not rounding and array.dtype != types.float32:
        raise TypingError(f"numbers are stored as float32 or uint16 (BF16 bits), not {array.dtype}")
    vector, align = (SHORTS, 2) if rounding else (FLOATS, 4)

    def emit(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
        numbers = _bfloats(builder, values[2]) if rounding else values[2]
        builder.store(numbers, _place(context, builder, kinds, values, vector), align=align)
        return context.get_dummy_value()

    return types.void(array, at, value), emit


@intrinsic
def largest(typing: Any, value: Any) -> Any:
    """The largest of sixteen float32, none of them negative or NaN."""

    def emit(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
        # Such numbers are in the order of their bits; of integers, any order of comparing will do.
        kind = ir.FunctionType(ir.IntType(32), [WORDS])
        name = f"llvm.vector.reduce.umax.v{COUNT}i32"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        found = builder.call(function, [builder.bitcast(values[0], WORDS)])
        return builder.bitcast(found, ir.FloatType())

    return types.float32(value), emit


@intrinsic
def away(typing: Any, value: Any) -> Any:
    """What, cut to whole numbers, is C's ``roundf``: to nearest, halves away from zero.

    Not a half but the number just below it is added: a half would carry the number just below a
    half up to one. Right for numbers below 2²².
    """

    def emit(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
        kind = ir.FunctionType(FLOATS, [FLOATS, FLOATS])
        name = f"llvm.copysign.v{COUNT}f32"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        step = builder.call(function, [_constant(FLOATS, BELOW_HALF), values[0]])
        return builder.fadd(values[0], step)

    return lanes(value), emit


@intrinsic
def transpose(typing: Any, values: Any, at: Any, out: Any) -> Any:
    """``out[16 * i + j] = values[at + 16 * j + i]`` for 16 × 16 float32, in flat arrays."""

    def emit(context: Any, builder: Any, kinds: Any, arguments: Any) -> Any:
        source = context.make_array(kinds.args[0])(context, builder, arguments[0]).data
        target = context.make_array(kinds.args[2])(context, builder, arguments[2]).data
        start = builder.gep(
            source, [context.cast(builder, arguments[1], kinds.args[1], types.intp)]
        )

        def row(base: Any, number: int) -> Any:
            place = builder.gep(base, [ir.Constant(ir.IntType(64), number * COUNT)])
            return builder.bitcast(place, FLOATS.as_pointer())

        rows = [builder.load(row(start, number), align=4) for number in range(COUNT)]
        half = COUNT // 2
        low = ir.Constant(WORDS, [i // 2 + COUNT * (i % 2) for i in range(COUNT)])
        high = ir.Constant(WORDS, [half + i // 2 + COUNT * (i % 2) for i in range(COUNT)])
        # Four perfect shuffles of row and column numbers put one in the other's place.
        for _ in range(COUNT.bit_length() - 1):
            rows = [
                builder.shuffle_vector(rows[number], rows[number + half], order)
                for number in range(half)
                for order in (low, high)
            ]
        for number in range(COUNT):
            builder.store(rows[number], row(target, number), align=4)
        return context.get_dummy_value()

    return types.void(values, at, out), emit
