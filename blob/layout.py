"""How tensors lie in a safetensors shard, and whether a shard's header says what the manifest does.

safetensors: little-endian u64 header length, a JSON header ``name: {dtype, shape, data_offsets}``,
then the bytes, which the offsets count from (README of the format). ``safetensors`` writes our
shards; the reader is ours, as the library takes a key that stands twice and names like paths.
"""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from blob.codecs import RowCodec
from blob.errors import BlobError, Damaged
from blob.manifest import (
    MAX_DIMENSION,
    MAX_RANK,
    MAX_TENSOR_BYTES,
    WIDTH,
    Stored,
    Tensor,
    check_name,
)
from blob.registry import codec_of
from blob.spelling import strict

PREFIX = struct.Struct("<Q")
# The safetensors library refuses more, too.
MAX_HEADER_BYTES = 100_000_000
METADATA = "__metadata__"
ITEM_KEYS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class Header:
    """Where each array of a shard lies, and where in the file they are counted from."""

    arrays: Mapping[str, Stored]
    start: int


def stored_name(tensor: str, part: str) -> str:
    """Name of a part in its shard: ``X.weight`` and ``packed`` make ``X.weight_packed``."""
    return f"{tensor}_{part}" if part else tensor


def read_header(raw: memoryview, size: int, where: str, most: int = MAX_HEADER_BYTES) -> Header:
    """The header at the start of ``raw``, of a file of ``size`` bytes; of ``most`` at most.

    :raises Damaged: not safetensors, or one that readers could understand differently: a key that
        stands twice, ranges that overlap or leave a hole, shapes that do not fit their range.
    """
    length = PREFIX.unpack(raw[: PREFIX.size])[0] if len(raw) >= PREFIX.size else 0
    if not 2 <= length <= min(most, MAX_HEADER_BYTES, size - PREFIX.size):
        raise Damaged(where, f"no safetensors file: header of {length} bytes in a file of {size}")
    start = PREFIX.size + length
    try:
        tree = strict(bytes(raw[PREFIX.size : start]))
        if not isinstance(tree, dict):
            raise TypeError("header is no object")
        tree.pop(METADATA, None)
        arrays = {check_name(name): _array(name, item) for name, item in tree.items()}
    except (ValueError, TypeError, RecursionError) as error:
        raise Damaged(where, f"header: {error}") from error
    _check_ranges(arrays, size - start, where)
    return Header(arrays, start)


def _array(name: str, item: Any) -> Stored:
    if not isinstance(item, dict) or item.keys() != ITEM_KEYS:
        raise ValueError(f"{name}: not dtype, shape and data_offsets")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    whole = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [None]
    # bool is an int to isinstance.
    if any(type(number) is not int or number < 0 for number in whole) or len(offsets) != 2:
        raise ValueError(f"{name}: shape and data_offsets must be lists of whole numbers")
    if dtype not in WIDTH:
        raise ValueError(f"{name}: dtype {dtype!r:.40} is not known")
    if len(shape) > MAX_RANK or any(dimension > MAX_DIMENSION for dimension in shape):
        raise ValueError(f"{name}: shape {shape!s:.80} is beyond what a blob may hold")
    begin, end = offsets
    if end - begin != prod(shape) * WIDTH[dtype]:
        raise ValueError(f"{name}: {end - begin} bytes for {dtype} of shape {shape}")
    return Stored(dtype=dtype, shape=shape, begin=begin, end=end)


def _check_ranges(arrays: Mapping[str, Stored], size: int, where: str) -> None:
    position = 0
    for name, array in sorted(arrays.items(), key=lambda item: (item[1].begin, item[1].end)):
        if array.begin != position:
            kind = "overlaps another" if array.begin < position else "begins after a hole"
            raise Damaged(where, f"header: {name} {kind} (at {array.begin}, expected {position})")
        position = array.end
    if position != size:
        raise Damaged(where, f"expected {position} bytes of data by its header, got {size}")


def header_limit(tensors: Iterable[Tensor]) -> int:
    """Bytes that the header of a shard with ``tensors`` cannot exceed, however it is spelled.

    A header beyond it is not parsed: 100 MB of it would take a gigabyte.
    """
    # A character of a name takes six bytes at most, each of ten numbers twenty.
    names = (len(stored_name(t.name, key)) for t in tensors for key in t.parts)
    return 1024 + sum(6 * length + 64 + 20 * (MAX_RANK + 2) for length in names)


def check_shard(header: Header, tensors: Iterable[Tensor], where: str) -> None:
    """Whether a shard's header holds exactly the parts that the manifest lists.

    :raises Damaged: naming the tensor whose part differs.
    """
    expected = {
        stored_name(tensor.name, key): (tensor.name, part)
        for tensor in tensors
        for key, part in tensor.parts.items()
    }
    for name, (tensor_name, part) in expected.items():
        there = header.arrays.get(name)
        if there != part:
            got = f"{there.dtype} {there.shape} at {there.begin}" if there else "nothing"
            said = f"{part.dtype} {part.shape} at {part.begin}"
            raise Damaged(f"{where}: {tensor_name}", f"{name}: expected {said}, got {got}")
    if extra := sorted(header.arrays.keys() - expected.keys()):
        raise Damaged(where, f"holds {extra[0]}, which the manifest does not list")


def check_parts(tensor: Tensor) -> None:
    """Whether the parts of ``tensor`` are those that its codec makes of its shape.

    :raises BlobError: unknown codec or parameters, or parts of another shape.
    """
    codec = codec_of(tensor.codec, tensor.params, tensor.name)
    if tensor.size > MAX_TENSOR_BYTES:
        raise BlobError(f"{tensor.name}: shape {tensor.shape} is beyond what a blob may hold")
    rows, cols = tensor.rows_and_cols
    found = {key: (part.dtype, tuple(part.shape)) for key, part in tensor.parts.items()}
    if isinstance(codec, RowCodec):
        # A matrix without columns has rows that nothing could be decoded to.
        if tensor.dtype != "BF16" or not tensor.shape or not cols or cols % codec.block:
            shape = f"{tensor.dtype} {tensor.shape}"
            raise BlobError(f"{tensor.name}: {codec.name} does not hold {shape}")
        wanted = {key: (part.dtype, part.shape) for key, part in codec.parts(rows, cols).items()}
        wanted |= {key: ("I64", value.shape) for key, value in codec.constants(rows, cols).items()}
    elif codec.name == "raw":
        wanted = {"": (tensor.dtype, tuple(tensor.shape))}
    else:
        chunks = -(-tensor.size // codec.chunk)
        stored = found.get(codec.name, ("", ()))[1]
        wanted = {codec.name: ("U8", stored[:1]), "offsets": ("I64", (chunks + 1,))}
    if found != wanted:
        raise BlobError(f"{tensor.name}: {codec.name} makes {wanted}, the manifest lists {found}")
