"""What the kernels of the IQ types need besides ``byte_lanes``: unaligned words, points of a grid,
and signs as bits.

In a kernel: ``byte(blocks, at)``, ``short(blocks, at)`` and ``word(blocks, at)``, of 8, 16 and 32
bits, the lowest byte first, each as an int64 that is not negative; ``pair(grid, a, b)`` and
``four(grid, a, b, c, d)``, sixteen bytes; ``flipped(lanes, signs)``. Places in blocks are not
checked; those in grids are masked, so no block leads out of one.
Little-endian machines only, as in ``blob.codecs.packed``.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core.errors import TypingError
from numba.extending import intrinsic

from blob.codecs.byte_lanes import byte_lanes
from blob.codecs.lanes import BITS, BYTES, COUNT, FLOATS, WORDS, lanes

WIDE = ir.IntType(64)
INDEX = ir.IntType(32)


def _start(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    """Where ``array[at]`` lies: arguments 0 and 1."""
    array = context.make_array(kinds.args[0])(context, builder, values[0])
    at = context.cast(builder, values[1], kinds.args[1], types.intp)
    return builder.gep(array.data, [at])


def _reading(width: int) -> Any:
    """Code that loads so many bits and fills them up with zeros."""

    def emit(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
        pointer = ir.IntType(width).as_pointer()
        place = builder.bitcast(_start(context, builder, kinds, values), pointer)
        return builder.zext(builder.load(place, align=1), WIDE)

    return emit


@intrinsic
def byte(typing: Any, blocks: Any, at: Any) -> Any:
    """``blocks[at]``; no place from the end is meant by a negative one."""
    return types.int64(blocks, at), _reading(8)


@intrinsic
def short(typing: Any, blocks: Any, at: Any) -> Any:
    """Two bytes from ``at`` on."""
    return types.int64(blocks, at), _reading(16)


@intrinsic
def word(typing: Any, blocks: Any, at: Any) -> Any:
    """Four bytes from ``at`` on."""
    return types.int64(blocks, at), _reading(32)


def _points(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    """Words of a table (argument 0) one after the other, as sixteen bytes."""
    table = context.make_array(kinds.args[0])(context, builder, values[0])
    last = builder.sub(table.nitems, ir.Constant(table.nitems.type, 1))
    width = 8 * COUNT // (len(values) - 1)
    points = ir.Constant(ir.VectorType(ir.IntType(width), 8 * COUNT // width), ir.Undefined)
    for number, (kind, value) in enumerate(zip(kinds.args[1:], values[1:], strict=True)):
        at = builder.and_(context.cast(builder, value, kind, types.intp), last)
        point = builder.load(builder.gep(table.data, [at]))
        points = builder.insert_element(points, point, ir.Constant(INDEX, number))
    return builder.bitcast(points, BYTES)


def _check(table: Any, dtype: Any) -> None:
    if table.dtype != dtype:
        raise TypingError(f"a table of {dtype} is wanted, not of {table.dtype}")


@intrinsic
def pair(typing: Any, grid: Any, a: Any, b: Any) -> Any:
    """Two points of eight numbers, of a grid whose size is a power of two (uint64)."""
    _check(grid, types.uint64)
    return byte_lanes(grid, a, b), _points


@intrinsic
def four(  # noqa: PLR0913 - a grid and four places
    typing: Any, grid: Any, a: Any, b: Any, c: Any, d: Any
) -> Any:
    """Four points of four numbers, of a grid whose size is a power of two (uint32)."""
    _check(grid, types.uint32)
    return byte_lanes(grid, a, b, c, d), _points


@intrinsic
def flipped(typing: Any, value: Any, signs: Any) -> Any:
    """The lanes, negated where the bit of their number is set in an integer."""

    def emit(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
        chosen = builder.trunc(
            context.cast(builder, values[1], kinds.args[1], types.int64), ir.IntType(COUNT)
        )
        minus = ir.Constant(WORDS, [0x80000000] * COUNT)
        turned = builder.select(
            builder.bitcast(chosen, BITS), minus, ir.Constant(WORDS, [0] * COUNT)
        )
        return builder.bitcast(builder.xor(builder.bitcast(values[0], WORDS), turned), FLOATS)

    return lanes(value, signs), emit
