"""Which format a file is in: by its first bytes, whatever its name."""

from importlib import import_module

from bake.checkpoint.contents import Contents
from bake.checkpoint.limits import DEFAULT, ParseLimits
from bake.checkpoint.source import Source
from bake.errors import Malformed, Unsupported

ZIP = b"PK\x03\x04"
EMPTY_ZIP = b"PK\x05\x06"
# A pickle of protocol 2 or later begins so; older torch wrote nothing else.
PICKLE = b"\x80"
NPY = b"\x93NUMPY"
PICKLED = b"data.pkl"
# What others begin with, for the message.
OTHERS = {
    b"\x89HDF\r\n": "HDF5 (Keras, h5py)",
    b"ustar": "a tar archive",
    b"\x1f\x8b": "gzip",
    b"(\xb5/\xfd": "zstd",
    b"version https://git-lfs": "a Git LFS pointer, not the file: git lfs pull",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
}
HEAD = 64


def parse(source: Source, limits: ParseLimits = DEFAULT) -> Contents:
    """What is in ``source``, by its header alone.

    :raises Malformed: it is not what its first bytes promise.
    :raises Unsupported: a format, or something in it, that is not known here.
    """
    module = import_module(f"bake.checkpoint.{format_of(source)}")
    contents: Contents = module.parse(source, limits)
    return contents


def format_of(source: Source) -> str:
    """``safetensors``, ``gguf``, ``pth`` or ``npz``.

    :raises Unsupported: none of these.
    """
    head = bytes(source.read(0, min(HEAD, source.size)))
    if head.startswith(b"GGUF"):
        return "gguf"
    if head.startswith((ZIP, EMPTY_ZIP)):
        from bake.checkpoint.members import mentions

        return "pth" if mentions(source, PICKLED) else "npz"
    if head.startswith(NPY):
        return "npz"
    # A header's length in eight bytes, then JSON: no other format here has a brace there.
    if head[8:9] == b"{":
        return "safetensors"
    if head.startswith(PICKLE):
        return "pth"
    raise _unknown(source, head)


def _unknown(source: Source, head: bytes) -> Malformed | Unsupported:
    if not head:
        return Malformed(source.name, "is empty")
    for magic, what in OTHERS.items():
        if head.startswith(magic):
            return Unsupported(
                f"{source.name}: is {what}", "give safetensors, GGUF, .pth/.bin or .npz"
            )
    return Unsupported(
        f"{source.name}: no safetensors, GGUF, .pth/.bin or .npz (begins with {head[:8]!r})",
        "is this the file of weights?",
    )
