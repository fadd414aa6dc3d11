"""GGUF, versions 2 and 3: what is in a file, from its header (ggml's docs/gguf.md; gguf.cpp).

    "GGUF"  u32 version  u64 tensors  u64 keys
    keys:     text, u32 kind, value         (``gguf_metadata``)
    tensors:  text, u32 rank, u64 × rank columns first, u32 type, u64 offset
    padding to general.alignment, then the tensors, each padded to it

Version 3 may be big-endian in all its numbers. What gguf.cpp of llama.cpp refuses is refused, and
tensors that overlap, leave a hole or do not end with the file; their order is free.
"""

from math import prod
from typing import Any

from bake.checkpoint.contents import Contents, Listed, Tensor
from bake.checkpoint.ggml_types import TYPES
from bake.checkpoint.gguf_metadata import (
    ALIGNMENT,
    TEXT,
    Cursor,
    MoreNeeded,
    form_of,
    metadata,
    texts,
)
from bake.checkpoint.limits import DEFAULT, ParseLimits
from bake.checkpoint.source import Bytes, Source
from bake.errors import Malformed, Unsupported
from blob.header import check_names

MAGIC = b"GGUF"
VERSIONS = {"<": (2, 3), ">": (3,)}
MAX_RANK = 4
USUAL_ALIGNMENT = 32
# A hundred are many. Each may hold a list, which takes longer to pass than a tensor.
MAX_KEYS = 10_000
MAX_ALIGNMENT = 2**24
# Of a source that is not in memory, so much is read at first, and four times what was not enough.
WINDOW = 256 * 1024


def parse(source: Source, limits: ParseLimits = DEFAULT) -> Contents:
    """Tensors in the order of the header; ``metadata`` are all keys.

    Numbers of a big-endian file are told as such; so are blocks, whose scales are turned round.

    :raises Malformed: it is not GGUF, can be read in two ways, or is beyond ``limits``.
    :raises Unsupported: another version, or a type that ggml b11434 does not know.
    """
    most = min(source.size, limits.header_bytes)
    held = source.read(0, most if isinstance(source, Bytes) else min(WINDOW, most))
    while True:
        try:
            return _contents(Cursor(held, source.name, source.size, limits))
        except MoreNeeded as more:
            end = min(max(more.end, 4 * len(held)), most)
            held = memoryview(b"".join((held, source.read(len(held), end))))


def values(source: Source, listed: Listed) -> Any:
    """A long list: ``list[bytes]`` of texts, a NumPy array of numbers.

    :raises Malformed: it is not what it was.
    :raises Unsupported: a list of lists.
    """
    order = _order(source.read(0, 8), source.name)
    raw = source.read(listed.begin, listed.end)
    if listed.kind == TEXT.name:
        return texts(raw, listed, order, source.name)
    import numpy as np

    form = form_of(listed, source.name)
    if form == "?" and not (np.frombuffer(raw, np.uint8) < 2).all():
        raise Malformed(source.name, "a truth value that is none", listed.begin)
    numbers = np.frombuffer(raw, np.dtype(order + form))
    if len(numbers) != listed.count:
        raise Malformed(source.name, "a list that has changed", listed.begin)
    return numbers


def _order(head: bytes | memoryview, name: str) -> str:
    """``<`` or ``>``, by the version's number: it has never been larger than 16 bits."""
    head = bytes(head)
    if head[:4] != MAGIC or len(head) < 8:
        raise Malformed(name, "no GGUF file")
    order = ">" if head[4:6] == b"\0\0" else "<"
    version = int.from_bytes(head[4:8], "big" if order == ">" else "little")
    if version not in VERSIONS[order]:
        raise Unsupported(f"{name}: GGUF version {version}{', big-endian' * (order == '>')}")
    return order


def _contents(cursor: Cursor) -> Contents:
    head = cursor.take(8)
    cursor.order = _order(cursor.raw[head : head + 8], cursor.name)
    tensors, keys = cursor.numbers("QQ")
    limit = cursor.limits.tensors
    for count, what, most in ((tensors, "tensors", limit), (keys, "keys", min(limit, MAX_KEYS))):
        if count > most:
            raise Malformed(cursor.name, f"{count} {what}, more than {most}")
    found = metadata(cursor, keys)
    alignment = found.get(ALIGNMENT, USUAL_ALIGNMENT)
    if not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise Malformed(cursor.name, f"{ALIGNMENT} of {alignment}")
    told = [_tensor(cursor, alignment) for _ in range(tensors)]
    _check_unique(told, cursor)
    data = _padded(cursor.at, alignment)
    _check_places(told, data, alignment, cursor)
    big = cursor.order == ">"
    return Contents("gguf", tuple(_placed(one, data, big) for one in told), found, cursor.at)


def _tensor(cursor: Cursor, alignment: int) -> Tensor:
    """The next tensor; its offset counts from the data's start yet."""
    name, begin, limits = cursor.text_of("a tensor's name"), cursor.at, cursor.limits
    (rank,) = cursor.numbers("I")
    if rank > min(MAX_RANK, limits.rank):
        raise Malformed(cursor.name, f"{name}: {rank} dimensions", begin)
    *columns_first, number, offset = cursor.numbers("Q" * rank + "IQ")
    if number not in TYPES:
        raise Unsupported(f"{cursor.name}: {name}: ggml type {number} is not known")
    kind = TYPES[number]
    if max(columns_first, default=0) > limits.dimension:
        raise Malformed(cursor.name, f"{name}: shape {columns_first} is beyond what is read", begin)
    if (columns_first[0] if rank else 1) % kind.values:
        what = f"rows of {columns_first[0]}" if rank else "a number"
        raise Malformed(cursor.name, f"{name}: {what} in blocks of {kind.values}", begin)
    nbytes = prod(columns_first) // kind.values * kind.size
    if nbytes > limits.tensor_bytes or offset > cursor.size or offset % alignment:
        raise Malformed(cursor.name, f"{name}: {nbytes} bytes at {offset}", begin)
    return Tensor(name, kind.name, tuple(reversed(columns_first)), offset, nbytes)


def _placed(tensor: Tensor, data: int, big_endian: bool) -> Tensor:
    offset = data + tensor.offset
    return Tensor(
        tensor.name, tensor.dtype, tensor.shape, offset, tensor.nbytes, big_endian=big_endian
    )


def _check_unique(tensors: list[Tensor], cursor: Cursor) -> None:
    names = dict.fromkeys(tensor.name for tensor in tensors)
    try:
        check_names(names, cursor.limits.name_bytes)
    except ValueError as error:
        raise Malformed(cursor.name, str(error)) from error
    if len(names) == len(tensors):
        return
    for tensor in tensors:
        if tensor.name not in names:
            raise Malformed(cursor.name, f"tensor {tensor.name} stands twice")
        del names[tensor.name]


def _check_places(tensors: list[Tensor], data: int, alignment: int, cursor: Cursor) -> None:
    """Whether the tensors fill the file from ``data`` on, with nothing but padding between."""
    end = position = 0
    for tensor in sorted(tensors, key=lambda one: (one.offset, one.nbytes)):
        if tensor.offset != position:
            kind = "overlaps another" if tensor.offset < position else "begins after a hole"
            detail = f"{tensor.name} {kind} (at {tensor.offset}, expected {position})"
            raise Malformed(cursor.name, detail)
        end = tensor.offset + tensor.nbytes
        position = _padded(end, alignment)
    # Without a tensor there may be no padding; an empty one lies within the file, too.
    begins = data if tensors else min(data, cursor.at)
    if not begins + end <= cursor.size <= data + position:
        got = cursor.size - data
        raise Malformed(cursor.name, f"expected {end} bytes of tensors by its header, got {got}")


def _padded(size: int, alignment: int) -> int:
    """``size`` up to a multiple of ``alignment``; integers of Python do not wrap."""
    return -(-size // alignment) * alignment
