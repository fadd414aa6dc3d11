"""Sixteen float32 side by side, as one value of a kernel: what a loop over lanes should become.

Where the order of additions is part of a format, a sum cannot be split, and a compiler may not
vectorize it. But many such sums can run side by side, one in each lane. Left to plain loops, the
running sums would live in memory; here they are registers: one of AVX-512, two of AVX, four of
SSE or NEON, as the processor has them. Every operation is IEEE 754's, lane by lane, in the order
written: nothing is contracted, reordered or flushed.

In a kernel: ``splat(number)``, ``load(array, at)``, ``store(array, at, lanes)``, ``+ - * /``,
``<``, ``>`` and ``==`` (false where a lane is NaN), ``select(mask, a, b)``, ``mask & mask``,
``magnitude``, ``root``, ``smaller``, ``larger``, ``nearest``, ``store_bytes``. Indices are not
checked.
"""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing import signature
from numba.core.typing.templates import ConcreteTemplate, infer_global
from numba.extending import intrinsic, lower_builtin, models, register_model

COUNT = 16

FLOATS = ir.VectorType(ir.FloatType(), COUNT)
WORDS = ir.VectorType(ir.IntType(32), COUNT)
BYTES = ir.VectorType(ir.IntType(8), COUNT)
BITS = ir.VectorType(ir.IntType(1), COUNT)


class Lanes(types.Type):  # type: ignore[misc]
    """Sixteen float32."""

    def __init__(self) -> None:
        super().__init__(name=f"float32x{COUNT}")


class Mask(types.Type):  # type: ignore[misc]
    """Sixteen truths."""

    def __init__(self) -> None:
        super().__init__(name=f"boolx{COUNT}")


lanes = Lanes()
mask = Mask()


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, FLOATS)


@register_model(Mask)
class MaskModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, BITS)


def _operation(symbol: Any, kind: Any, result: Any, emit: Callable[[Any, Any, Any], Any]) -> None:
    """Give the operator ``symbol`` a meaning for two values of one ``kind``."""

    class Template(ConcreteTemplate):  # type: ignore[misc]
        cases = (signature(result, kind, kind),)

    infer_global(symbol)(Template)
    lower_builtin(symbol, kind, kind)(lambda context, builder, _, values: emit(builder, *values))


_operation(operator.add, lanes, lanes, lambda builder, a, b: builder.fadd(a, b))
_operation(operator.sub, lanes, lanes, lambda builder, a, b: builder.fsub(a, b))
_operation(operator.mul, lanes, lanes, lambda builder, a, b: builder.fmul(a, b))
_operation(operator.truediv, lanes, lanes, lambda builder, a, b: builder.fdiv(a, b))
_operation(operator.lt, lanes, mask, lambda builder, a, b: builder.fcmp_ordered("<", a, b))
_operation(operator.gt, lanes, mask, lambda builder, a, b: builder.fcmp_ordered(">", a, b))
_operation(operator.eq, lanes, mask, lambda builder, a, b: builder.fcmp_ordered("==", a, b))
_operation(operator.and_, mask, mask, lambda builder, a, b: builder.and_(a, b))


def _splat(builder: Any, scalar: Any, vector: Any) -> Any:
    """A vector that holds one scalar in every lane."""
    empty = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(empty, scalar, ir.Constant(ir.IntType(32), 0))
    places = ir.Constant(WORDS, [0] * COUNT)
    return builder.shuffle_vector(first, empty, places)


def _constant(vector: Any, number: float) -> Any:
    return ir.Constant(vector, [number] * COUNT)


def _place(context: Any, builder: Any, kinds: Any, values: Any, vector: Any) -> Any:
    """Where ``array[at]`` begins, as a pointer to a vector: arguments 0 and 1."""
    array = context.make_array(kinds.args[0])(context, builder, values[0])
    at = context.cast(builder, values[1], kinds.args[1], types.intp)
    return builder.bitcast(builder.gep(array.data, [at]), vector.as_pointer())


def _unary(name: str) -> Callable[[Any, Any, Any, Any], Any]:
    """How to call LLVM's own function of one vector."""

    def emit(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
        kind = ir.FunctionType(FLOATS, [FLOATS])
        function = cgutils.get_or_insert_function(builder.module, kind, f"{name}.v{COUNT}f32")
        return builder.call(function, values)

    return emit


@intrinsic
def splat(typing: Any, number: Any) -> Any:
    """``number`` in every lane, rounded to float32."""

    def emit(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
        scalar = context.cast(builder, values[0], kinds.args[0], types.float32)
        return _splat(builder, scalar, FLOATS)

    return lanes(number), emit


@intrinsic
def load(typing: Any, array: Any, at: Any) -> Any:
    """``array[at : at + 16]`` of a flat float32 array."""

    def emit(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
        return builder.load(_place(context, builder, kinds, values, FLOATS), align=4)

    return lanes(array, at), emit


@intrinsic
def store(typing: Any, array: Any, at: Any, value: Any) -> Any:
    """``array[at : at + 16] = value``, in a flat float32 array."""

    def emit(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
        place = _place(context, builder, kinds, values, FLOATS)
        builder.store(values[2], place, align=4)
        return context.get_dummy_value()

    return types.void(array, at, value), emit


@intrinsic
def store_bytes(typing: Any, array: Any, at: Any, value: Any) -> Any:
    """The same into a flat uint8 array; the lanes hold whole numbers from 0 to 255."""

    def emit(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
        place = _place(context, builder, kinds, values, BYTES)
        words = builder.fptosi(values[2], WORDS)
        builder.store(builder.trunc(words, BYTES), place, align=1)
        return context.get_dummy_value()

    return types.void(array, at, value), emit


@intrinsic
def select(typing: Any, which: Any, yes: Any, no: Any) -> Any:
    """``yes`` in the lanes where ``which`` holds, ``no`` in the others."""

    def emit(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
        return builder.select(*values)

    return lanes(which, yes, no), emit


@intrinsic
def smaller(typing: Any, a: Any, b: Any) -> Any:
    """``a if a < b else b``, as C's ``MIN(a, b)``: ``b`` where either is NaN."""

    def emit(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", *values), *values)

    return lanes(a, b), emit


@intrinsic
def larger(typing: Any, a: Any, b: Any) -> Any:
    """``a if a > b else b``, as C's ``MAX(a, b)``: ``b`` where either is NaN."""

    def emit(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *values), *values)

    return lanes(a, b), emit


@intrinsic
def magnitude(typing: Any, value: Any) -> Any:
    """The numbers without their signs."""
    return lanes(value), _unary("llvm.fabs")


@intrinsic
def root(typing: Any, value: Any) -> Any:
    """Square roots, correctly rounded."""
    return lanes(value), _unary("llvm.sqrt")


@intrinsic
def nearest(typing: Any, value: Any) -> Any:
    """ggml's ``nearest_int``, as float32: the whole number nearest to each, ties to even.

    ggml adds 1.5 · 2²³, takes the 23 bits of the sum's mantissa and subtracts 2²². For numbers
    beyond ±2²² that is no rounding any more (an infinity gives −2²², NaN gives 0), but it is
    what the bytes are made of, and the same bits are kept here: with the exponent of 2²³ put
    before them they are a float32 again, and the difference of two such is exact.
    """

    def emit(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
        shift = _constant(FLOATS, 1.5 * 2**23)
        bits = builder.bitcast(builder.fadd(values[0], shift), WORDS)
        mantissa = builder.and_(bits, _constant(WORDS, 0x007FFFFF))
        whole = builder.or_(mantissa, _constant(WORDS, 0x4B000000))
        return builder.fsub(builder.bitcast(whole, FLOATS), shift)

    return lanes(value), emit
