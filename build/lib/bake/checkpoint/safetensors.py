"""safetensors: what is in a file, from its header. ``blob.header`` knows the format."""

from bake.checkpoint.contents import Contents, Tensor
from bake.checkpoint.limits import DEFAULT, ParseLimits
from bake.checkpoint.source import Source
from bake.errors import Malformed, Unsupported
from blob.header import (
    PREFIX,
    Bounds,
    HeaderError,
    UnknownDtypeError,
    header_length,
    parse_header,
)


def parse(source: Source, limits: ParseLimits = DEFAULT) -> Contents:
    """Tensors in the order of the header; ``metadata`` are the texts of ``__metadata__``.

    :raises Malformed: it is not safetensors, can be read in two ways, or is beyond ``limits``.
    :raises Unsupported: a type of numbers that safetensors 0.8 does not know.
    """
    try:
        length = header_length(source.read(0, min(PREFIX.size, source.size)), source.size)
        start = PREFIX.size + length
        # JSON takes many times its bytes once it is read.
        if length > (most := min(limits.header_bytes, limits.json_bytes)):
            raise HeaderError(f"header of {length} bytes, more than {most}")
        header = parse_header(bytes(source.read(PREFIX.size, start)), source.size, _bounds(limits))
    except UnknownDtypeError as error:
        raise Unsupported(f"{source.name}: {error}") from error
    except HeaderError as error:
        raise Malformed(source.name, str(error)) from error
    tensors = []
    for name, entry in header.entries.items():
        begin, end = entry.data_offsets
        tensors.append(Tensor(name, entry.dtype, entry.shape, start + begin, end - begin))
    return Contents("safetensors", tuple(tensors), header.metadata, start)


def _bounds(limits: ParseLimits) -> Bounds:
    return Bounds(
        tensors=limits.tensors,
        rank=limits.rank,
        dimension=limits.dimension,
        name_bytes=limits.name_bytes,
    )
