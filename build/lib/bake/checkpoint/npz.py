"""NumPy's ``.npz`` (a ZIP of ``.npy``) and a single ``.npy``.

The header of an ``.npy`` is a Python literal; ours is read by a grammar of three keys and nothing
is evaluated. Numbers of two bytes without a type (``V2``) are BF16: NumPy has no such type, and
that is how JAX's are saved. One byte without a type could be any of the 8-bit floats and is not
guessed. Texts are no tensors: they are told in ``metadata`` as ``npz.left_out``, by their names.
"""

import re
import zlib
from collections.abc import Iterator
from math import prod
from struct import Struct
from typing import NamedTuple

from bake.checkpoint.contents import Contents, Tensor
from bake.checkpoint.limits import DEFAULT, ParseLimits
from bake.checkpoint.members import DEFLATED, LOCAL, Member, members
from bake.checkpoint.naming import check_tensors
from bake.checkpoint.source import Source
from bake.errors import Malformed, Unsupported

MAGIC = b"\x93NUMPY"
SUFFIX = ".npy"
# numpy/lib/_format_impl.py: the length of the header's length, by version; its default limit.
LENGTHS = {1: Struct("<H"), 2: Struct("<I"), 3: Struct("<I")}
VERSION = 2
LONGEST = 10_000
# What is read at first: NumPy pads headers to 64 bytes, and most have 128.
PEEK = 256
ALONE = "array"

# A key and its value: text, a truth value, or a tuple of whole numbers.
ITEM = re.compile(
    r"""\s*(?P<quote>['"])(?P<key>\w+)(?P=quote)\s*:\s*(?:"""
    r"""'(?P<text>[^'\\]*)'|"(?P<other>[^"\\]*)"|(?P<truth>True|False)|\((?P<lengths>[0-9L,\s]*)\)"""
    r""")\s*(?:,|(?=\}))"""
)
RECORDS = re.compile(r"""\{.{0,200}?['"]descr['"]\s*:\s*\[""", re.DOTALL)
KEYS = {"descr": ("text", "other"), "fortran_order": ("truth",), "shape": ("lengths",)}
DTYPES = {
    "b1": "BOOL",
    "i1": "I8",
    "i2": "I16",
    "i4": "I32",
    "i8": "I64",
    "u1": "U8",
    "u2": "U16",
    "u4": "U32",
    "u8": "U64",
    "f2": "F16",
    "f4": "F32",
    "f8": "F64",
    "c8": "C64",
    "c16": "C128",
    "V2": "BF16",
}
TEXT = re.compile(r"[<>|=]?[SU]\d+")


class Header(NamedTuple):
    """What an ``.npy`` says of its numbers, and where they begin in it. No dtype: it is text."""

    dtype: str
    size: int
    big_endian: bool
    fortran: bool
    shape: tuple[int, ...]
    begin: int


def parse(source: Source, limits: ParseLimits = DEFAULT) -> Contents:
    """The arrays of an archive by their names without ``.npy``; a lone ``.npy`` is ``array``.

    ``header_bytes`` is how many bytes are looked at: an archive's directory is at its end.

    :raises Malformed: it is damaged, passes the limits, or an array has not the size it should.
    :raises Unsupported: objects (they are pickles), records, or types that are not known.
    """
    if bytes(source.read(0, min(len(MAGIC), source.size))) == MAGIC:
        found = [_alone(source, limits)]
        looked = found[0].offset
    else:
        listed = members(source, limits)
        found = list(_arrays(source, listed, limits))
        check_tensors([tensor.name for tensor in found], source.name)
        last = max((member.offset + member.stored for member in listed.values()), default=0)
        heads = sum(LOCAL.size + len(name) for name in listed)
        looked = source.size - last + heads + min(last, PEEK * len(listed))
    left_out = [tensor.name for tensor in found if not tensor.dtype]
    tensors = tuple(tensor for tensor in found if tensor.dtype)
    if len(tensors) > limits.tensors:
        raise Malformed(source.name, f"more than {limits.tensors} arrays")
    return Contents("npz", tensors, {"npz.left_out": left_out} if left_out else {}, looked)


def _alone(source: Source, limits: ParseLimits) -> Tensor:
    whole = Member(ALONE, 0, source.size, source.size, 0)
    return _array(source, whole, ALONE, limits)


def _arrays(source: Source, listed: dict[str, Member], limits: ParseLimits) -> Iterator[Tensor]:
    for member in listed.values():
        if not member.name.endswith(SUFFIX):
            raise Unsupported(f"{source.name}: {member.name[:80]!r} is no array")
        name = member.name.removesuffix(SUFFIX)
        if len(name.encode()) > limits.name_bytes:
            raise Malformed(source.name, f"a name longer than {limits.name_bytes} bytes")
        yield _array(source, member, name, limits)


def _array(source: Source, member: Member, name: str, limits: ParseLimits) -> Tensor:
    """One array; of text, one without a dtype."""
    head = _read(source, member)
    count, size = prod(head.shape), head.size
    if len(head.shape) > limits.rank or max(head.shape, default=0) > limits.dimension:
        raise Malformed(source.name, f"{name} has the shape {str(head.shape)[:80]}", member.offset)
    if count * size > limits.tensor_bytes or (
        head.dtype and member.size - head.begin != count * size
    ):
        detail = f"{name} has {member.size - head.begin} bytes, not {count * size}"
        raise Malformed(source.name, detail, member.offset)
    deflated = member.stored if member.method == DEFLATED else 0
    return Tensor(
        name,
        head.dtype,
        head.shape,
        member.offset + (0 if deflated else head.begin),
        count * size,
        columns(head.shape) if head.fortran else None,
        head.big_endian,
        deflated,
    )


def columns(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Strides of an array whose first dimension is the fastest; None where that is all the same."""
    if 0 in shape or sum(length > 1 for length in shape) < 2:
        return None
    return tuple(prod(shape[:i]) for i in range(len(shape)))


def _read(source: Source, member: Member) -> Header:
    """The header of a member, of which no more is read and inflated than the header takes."""
    raw = _start(source, member, PEEK)
    begin, length = begins(raw, source.name, member.offset)
    if begin + length > len(raw):
        raw = _start(source, member, begin + length)
    if begin + length > len(raw):
        raise Malformed(source.name, f"{member.name} ends in its header", member.offset)
    return header(raw[begin : begin + length], source.name, member.offset, begin + length)


def _start(source: Source, member: Member, most: int) -> bytes:
    """The first ``most`` bytes of a member, inflated."""
    if member.method != DEFLATED:
        return bytes(source.read(member.offset, member.offset + min(member.size, most)))
    # Deflate never takes more than a handful of bytes above what it stores, and its tables.
    raw = source.read(member.offset, member.offset + min(member.stored, 2 * most + 1024))
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, most)
    except zlib.error as error:
        raise Malformed(source.name, f"does not inflate: {error}", member.offset) from error


def begins(raw: bytes, where: str, at: int) -> tuple[int, int]:
    """Where the header of an ``.npy`` begins, and how long it is.

    :raises Malformed: it is no ``.npy``, or its header is longer than NumPy reads.
    """
    version = raw[len(MAGIC)] if len(raw) > len(MAGIC) + VERSION + 4 else 0
    if not raw.startswith(MAGIC) or version not in LENGTHS:
        raise Malformed(where, "no .npy of a known version", at)
    begin = len(MAGIC) + VERSION
    (length,) = LENGTHS[version].unpack_from(raw, begin)
    if length > LONGEST:
        raise Malformed(where, f"a header of {length} bytes", at)
    return begin + LENGTHS[version].size, length


def header(raw: bytes, where: str, at: int, begin: int) -> Header:
    """What the literal says: three keys, each once.

    :raises Malformed: it says something else.
    :raises Unsupported: a type that is no number.
    """
    # Latin-1 takes any byte; what is not ASCII matches nothing below.
    text = raw.decode("latin-1").strip()
    if RECORDS.match(text):
        raise Unsupported(f"{where}: records, not numbers (at byte {at})")
    said: dict[str, str] = {}
    here = 1
    while item := ITEM.match(text, here):
        of = KEYS.get(item["key"], ())
        if item["key"] in said or item.lastgroup not in of:
            break
        said[item["key"]] = item[item.lastgroup]
        here = item.end()
    if said.keys() != KEYS.keys() or text[:1] != "{" or text[here:].strip() != "}":
        raise Malformed(where, f"a header that is none: {text[:80]!r}", at)
    try:
        shape = tuple(int(length.strip().rstrip("L")) for length in _lengths(said["shape"]))
    except ValueError:
        raise Malformed(where, f"a shape that is none: {said['shape'][:80]!r}", at) from None
    dtype, size, big = _dtype(said["descr"], where, at)
    return Header(dtype, size, big, said["fortran_order"] == "True", shape, begin)


def _lengths(text: str) -> list[str]:
    """A tuple's elements; one element has a comma after it."""
    parts = text.split(",")
    return parts if parts[-1].strip() else parts[:-1]


def _dtype(descr: str, where: str, at: int) -> tuple[str, int, bool]:
    order, kind = (descr[:1], descr[1:]) if descr[:1] in tuple("<>|=") else ("=", descr)
    if TEXT.fullmatch(descr):
        return "", 0, False
    if kind not in DTYPES:
        why = " (objects are pickles)" if kind.startswith("O") else ""
        raise Unsupported(f"{where}: numbers of the type {descr[:40]!r}{why} (at byte {at})")
    size = int(kind[1:])
    return DTYPES[kind], size, order == ">" and size > 1


def deflated_header(source: Source, offset: int, stored: int) -> int:
    """Bytes that come before the numbers in a deflated ``.npy``, once inflated."""
    return _read(source, Member("", offset, 0, stored, DEFLATED)).begin
