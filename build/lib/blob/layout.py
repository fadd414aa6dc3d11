"""How tensors lie in a safetensors shard, and whether a shard's header says what the manifest does.

``safetensors`` writes our shards; ``blob.header`` reads them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from blob.codecs import RowCodec
from blob.dtypes import WIDTH
from blob.errors import BlobError, Damaged
from blob.header import (
    MAX_HEADER_BYTES,
    PREFIX,
    Bounds,
    Entry,
    HeaderError,
    header_length,
    parse_header,
)
from blob.manifest import (
    MAX_DIMENSION,
    MAX_RANK,
    MAX_TENSOR_BYTES,
    MAX_TENSORS,
    Stored,
    Tensor,
)
from blob.registry import codec_of

BOUNDS = Bounds(
    tensors=4 * MAX_TENSORS,
    rank=MAX_RANK,
    dimension=MAX_DIMENSION,
    bits={dtype: 8 * width for dtype, width in WIDTH.items()},
)


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
    try:
        start = PREFIX.size + header_length(raw, size, most)
        header = parse_header(bytes(raw[PREFIX.size : start]), size, BOUNDS)
    except HeaderError as error:
        raise Damaged(where, str(error)) from error
    return Header({name: _stored(entry) for name, entry in header.entries.items()}, header.start)


def _stored(entry: Entry) -> Stored:
    begin, end = entry.data_offsets
    return Stored(dtype=entry.dtype, shape=list(entry.shape), begin=begin, end=end)


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
