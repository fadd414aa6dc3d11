"""Sixteen bytes moved about and taken apart, beside what ``byte_lanes`` does.

In a kernel: ``picked(table, places)``, ``lower(a, b)``, ``upper(a, b)``, ``flags(word)``,
``product(a, b)``, ``third(bytes)``.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from blob.codecs.byte_lanes import SHORTS, byte_lanes
from blob.codecs.lanes import BITS, BYTES, COUNT

EIGHTS = ir.VectorType(ir.IntType(64), 2)


def _constant(vector: Any, number: int) -> Any:
    return ir.Constant(vector, [number] * COUNT)


@intrinsic
def picked(typing: Any, table: Any, places: Any) -> Any:
    """``table[places & 15]``, lane by lane: a look-up among sixteen bytes.

    LLVM has no such operation; of exactly this chain of extractions and insertions it makes the
    processor's own where there is one (``pshufb``), and goes byte by byte elsewhere.
    """

    def emit(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
        wanted = builder.and_(values[1], _constant(BYTES, COUNT - 1))
        made: Any = ir.Constant(BYTES, ir.Undefined)
        for lane in range(COUNT):
            number = ir.Constant(ir.IntType(32), lane)
            place = builder.zext(builder.extract_element(wanted, number), ir.IntType(32))
            made = builder.insert_element(made, builder.extract_element(values[0], place), number)
        return made

    return byte_lanes(table, places), emit


def _eights(order: list[int]) -> Any:
    """How runs of eight bytes of two values, counted through, are put into one.

    As wide integers: of single bytes LLVM would look through this into a look-up, or from a
    look-up into this, and no longer see what that is.
    """

    def emit(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
        first, second = (builder.bitcast(value, EIGHTS) for value in values)
        places = ir.Constant(ir.VectorType(ir.IntType(32), 2), order)
        return builder.bitcast(builder.shuffle_vector(first, second, places), BYTES)

    return emit


@intrinsic
def lower(typing: Any, a: Any, b: Any) -> Any:
    """The first eight bytes of ``a``, then those of ``b``."""
    return byte_lanes(a, b), _eights([0, 2])


@intrinsic
def upper(typing: Any, a: Any, b: Any) -> Any:
    """The last eight bytes of ``a``, then those of ``b``."""
    return byte_lanes(a, b), _eights([1, 3])


@intrinsic
def flags(typing: Any, word: Any) -> Any:
    """The lower sixteen bits of an integer, each as a byte 0 or 1, the lowest bit first."""

    def emit(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
        short = context.cast(builder, values[0], kinds.args[0], types.uint16)
        return builder.zext(builder.bitcast(short, BITS), BYTES)

    return byte_lanes(word), emit


@intrinsic
def product(typing: Any, a: Any, b: Any) -> Any:
    """``a * b & 255`` of each byte."""

    def emit(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
        return builder.mul(values[0], values[1])

    return byte_lanes(a, b), emit


@intrinsic
def third(typing: Any, value: Any) -> Any:
    """``value * 3 >> 8`` of each byte: in which third of the range it is, 0, 1 or 2."""

    def emit(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
        threefold = builder.mul(builder.zext(values[0], SHORTS), _constant(SHORTS, 3))
        return builder.trunc(builder.lshr(threefold, _constant(SHORTS, 8)), BYTES)

    return byte_lanes(value), emit
