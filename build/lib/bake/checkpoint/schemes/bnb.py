"""bitsandbytes' NF4 and FP4: pairs of four-bit codes in bytes, scaled by blocks.

``X.weight`` holds ⌈n/2⌉ bytes, whatever its own type and shape (a matrix may be stored as BF16 for
FSDP), the upper half of each first. ``X.weight.absmax`` is the scale of each block of ``blocksize``
numbers in their order, rows after rows: F32, or U8 when it is quantized itself. Then it is
``nested_quant_map[absmax] · nested_absmax[block // nested_blocksize] + nested_offset``, a product
and a sum, each rounded. ``X.weight.quant_state.bitsandbytes__nf4`` is JSON of the rest: the shape
above all, so that it is read when a conversion is planned.

The number is ``table[code] · scale`` in float32, which the library then rounds to the type it is
asked for. It takes its own table, not ``X.weight.quant_map``: another one is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from bake.checkpoint.contents import Tensor
from bake.checkpoint.dequant import groups
from bake.checkpoint.dequant.plain import aligned
from bake.checkpoint.limits import DEFAULT
from bake.checkpoint.output import Output
from bake.checkpoint.schemes import parts
from bake.checkpoint.schemes.parts import Checkpoint
from bake.errors import Malformed, Unsupported
from blob.rows import PIECE, each

STATE = ".quant_state.bitsandbytes__"
# bitsandbytes 0.50.2 (MIT), functional.get_4bit_type: quantiles of a normal distribution.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
# The same: floats of three bits and a sign, over the largest of them.
FP4 = tuple(sign * size / 12 for sign in (1, -1) for size in (0, 0.0625, 8, 12, 4, 6, 2, 3))
TABLES = {"nf4": np.array(NF4, np.float32), "fp4": np.array(FP4, np.float32)}
# bitsandbytes/functional.py: what dequantize_4bit takes, and dequantize_blockwise.
SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
STATE_BYTES = 4096
# Its own files have tables of another rounding, from before 0.50.
NEAR = 1e-3


class State(msgspec.Struct, frozen=True):
    """What the JSON says; ``dtype`` is that of the weight before, and ours to choose."""

    quant_type: str
    blocksize: int
    shape: list[int]
    dtype: str = ""
    nested_blocksize: int = 0
    nested_offset: float = 0.0


@dataclass(frozen=True)
class Layer:
    """How one weight is stored."""

    name: str
    count: int
    state: State
    nested: bool

    def fill(self, inputs: Sequence[NDArray[Any]], out: NDArray[Any], threads: int) -> None:
        """:raises Malformed: its table is another than that of its type."""
        table = TABLES[self.state.quant_type]
        if not np.allclose(inputs[2], table, rtol=0, atol=NEAR):
            raise Malformed(f"{self.name}.quant_map", f"is not {self.state.quant_type}'s table")
        pairs, flat = aligned(inputs[0]).reshape(-1).view(np.uint8), out.reshape(-1)
        size = self.state.blocksize

        def some(blocks: slice) -> None:
            begin, end = blocks.start * size, min(self.count, blocks.stop * size)
            codes = np.empty(end - begin, np.uint8)
            groups.split_pairs(pairs[begin // 2 : (end + 1) // 2], codes)
            scaled(codes, table, self.scales(inputs, blocks), size, flat[begin:end])

        each(some, (parts.groups_of(self.count, size), 1), threads, max(1, PIECE // size))

    def scales(self, inputs: Sequence[NDArray[Any]], blocks: slice) -> NDArray[np.float32]:
        """Of some blocks; a new array."""
        stored = aligned(inputs[1][blocks])
        if not self.nested:
            return stored
        outer, table = inputs[3], aligned(inputs[4])
        own = outer[np.arange(blocks.start, blocks.stop) // self.state.nested_blocksize]
        with np.errstate(all="ignore"):
            product: NDArray[np.float32] = table[stored] * own.astype(np.float32)
            return product + np.float32(self.state.nested_offset)


def scaled(
    codes: NDArray[np.uint8],
    table: NDArray[np.float32],
    scale: NDArray[np.float32],
    size: int,
    out: NDArray[Any],
) -> None:
    """``table[codes]`` times the scale of each ``size`` of them, the last perhaps fewer; flat."""
    many = len(codes) // size
    full = many * size
    if many:
        groups.multiply_table(
            codes[:full].reshape(-1, size),
            table,
            scale[:many].reshape(-1, 1),
            size,
            out[:full].reshape(-1, size),
        )
    if full < len(codes):
        rest = codes[full:].reshape(1, -1)
        groups.multiply_table(
            rest, table, scale[many:].reshape(1, 1), size, out[full:].reshape(1, -1)
        )


def outputs(checkpoint: Checkpoint) -> list[Output]:
    """The weights that have a ``quant_state``.

    :raises Malformed: a part is missing, or does not fit.
    :raises Unsupported: a type or size of block that is not known here.
    """
    found = []
    for name in checkpoint.tensors:
        stem, between, kind = name.partition(STATE)
        if between:
            found.append(_output(checkpoint, stem, kind, read_state(checkpoint, name)))
    return found


def read_state(checkpoint: Checkpoint, name: str) -> State:
    """What the JSON in this tensor says.

    :raises Malformed: it is no such JSON.
    """
    tensor = checkpoint.need(name, ("U8",))
    if len(tensor.shape) != 1:
        raise Malformed(name, f"expected bytes of JSON, got shape {list(tensor.shape)}")
    try:
        raw = checkpoint.small(name, STATE_BYTES).tobytes()
        state = msgspec.json.decode(raw, type=State)
    except (msgspec.MsgspecError, RecursionError, UnicodeError, ValueError) as error:
        raise Malformed(name, f"is not the JSON of a quantized weight: {error}") from error
    if not isfinite(state.nested_offset):
        raise Malformed(name, "nested_offset is not a finite number")
    return state


def _output(checkpoint: Checkpoint, name: str, kind: str, state: State) -> Output:
    where = f"{name}{STATE}{kind}"
    if state.quant_type not in TABLES or state.quant_type != kind:
        raise Unsupported(f"{where}: type {parts.shown(state.quant_type)} is not known here")
    if state.blocksize not in SIZES:
        raise Unsupported(f"{where}: blocks of {state.blocksize} are not known here")
    shape, count = _count(where, state)
    weight = checkpoint.need(name, ("U8", "I8", "F16", "BF16", "F32", "F64"))
    if weight.nbytes != -(-count // 2):
        raise Malformed(name, f"{weight.nbytes} bytes are no {list(shape)} numbers of four bits")
    blocks = parts.groups_of(count, state.blocksize)
    absmax = checkpoint.need(f"{name}.absmax", ("F32", "U8"), (blocks,))
    planned = [weight, absmax, checkpoint.need(f"{name}.quant_map", ("F32",), (16,))]
    if absmax.dtype == "U8":
        planned += _nested(checkpoint, name, blocks, state)
    planned.append(checkpoint.tensors[where])
    layer = Layer(name, count, state, absmax.dtype == "U8")
    return parts.output(name, shape, planned, layer.fill)


def _count(where: str, state: State) -> tuple[tuple[int, ...], int]:
    """The shape, and how many numbers it has.

    :raises Malformed: it is no shape.
    """
    shape = tuple(state.shape)
    if not 0 < len(shape) <= DEFAULT.rank or not all(0 < n <= DEFAULT.dimension for n in shape):
        raise Malformed(where, f"shape {list(shape)[:9]} is none of a weight")
    return shape, prod(shape)


def _nested(checkpoint: Checkpoint, name: str, blocks: int, state: State) -> list[Tensor]:
    """Scales of the scales."""
    size = state.nested_blocksize
    if not 0 < size <= SIZES[-1]:
        raise Malformed(f"{name}{STATE}{state.quant_type}", f"nested_blocksize: got {size}")
    outer = checkpoint.need(f"{name}.nested_absmax", ("F32",), (parts.groups_of(blocks, size),))
    return [outer, checkpoint.need(f"{name}.nested_quant_map", ("F32",), (256,))]


def described(checkpoint: Checkpoint) -> str:
    """``nf4, double``, or what else its tensors say."""
    kinds = sorted({name.partition(STATE)[2] for name in checkpoint.tensors if STATE in name})
    if not kinds:
        return "int8"
    double = any(name.endswith(".nested_absmax") for name in checkpoint.tensors)
    return ", ".join(parts.shown(kind)[1:-1] for kind in kinds) + (", double" if double else "")
