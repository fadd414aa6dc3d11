"""How much a file may ask of its reader. Asked before memory is taken, never after."""

from dataclasses import dataclass

MIB = 1024**2


@dataclass(frozen=True)
class ParseLimits:
    """Bounds of one parse. The defaults are far above every model known, and far below a hang.

    ``header_bytes`` bounds what is read to know a file's contents: a safetensors header, GGUF's
    metadata, a pickle, a ZIP's directory. ``items`` bounds the elements of all lists in it
    together: entries of vocabularies, opcodes of a pickle. ``ratio`` is what a deflated member
    may grow by.
    """

    header_bytes: int = 256 * MIB
    # What json makes of a header takes ten times its bytes, and a second for each 50 MB.
    json_bytes: int = 32 * MIB
    tensors: int = 100_000
    items: int = 8_000_000
    depth: int = 32
    rank: int = 8
    dimension: int = 2**40
    name_bytes: int = 512
    tensor_bytes: int = 2**44
    # A single buffer that a file can make us take, of what is not mapped.
    allocation_bytes: int = 2048 * MIB
    ratio: int = 200


DEFAULT = ParseLimits()
