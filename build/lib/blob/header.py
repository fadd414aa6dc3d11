"""The one reader of safetensors headers: fast where a header is spelled as safetensors writes it.

safetensors: little-endian u64 header length, a JSON header ``name: {dtype, shape, data_offsets}``
with ``__metadata__`` of texts among them, padded with spaces, then the bytes, which the offsets
count from (README of the format).

A header is decoded by its types and encoded again. If that gives the bytes that were read, each
key stands once, as nothing that was decoded keeps one twice; otherwise it is read once more by
``blob.spelling``, which looks for that, at a tenth of the speed. The library takes keys that stand
twice, names like paths, and a shape of ``[0, 2^62]``; this does not. Imports neither NumPy nor
pydantic.
"""

import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Annotated, Any

import msgspec

from blob.dtypes import BITS
from blob.files import MAX_TENSOR_NAME_BYTES, check_name
from blob.spelling import strict

PREFIX = struct.Struct("<Q")
# The safetensors library refuses more, too.
MAX_HEADER_BYTES = 100_000_000
# No tensor takes fewer bytes of a header.
LEAST = len('"a":{"dtype":"U8","shape":[],"data_offsets":[0,0]}')
# A header longer than this is taken as safetensors spells it, or not at all: of nothing but
# brackets, json makes a hundred times its bytes.
MAX_SLOW_BYTES = 4 * 1024**2
METADATA = "__metadata__"
# What may stand in a name without another look.
PLAIN = bytes(sorted({*range(0x20, 0x7F)} - {*b"\\/"}))
KEYS = {"dtype", "shape", "data_offsets"}
# What msgspec raises, of what nests too deep, and of text that is not UTF-8, which is a ValueError.
WRONG = (msgspec.MsgspecError, RecursionError, ValueError)


class HeaderError(ValueError):
    """It is not safetensors, or readers could understand it differently."""


class TruncatedError(HeaderError):
    """The header is sound, and the file is not as long as it says."""

    def __init__(self, expected: int, got: int) -> None:
        super().__init__(f"expected {expected} bytes of data by its header, got {got}")
        self.expected = expected
        self.got = got


class UnknownDtypeError(HeaderError):
    """The header is sound, but for a type of numbers that is not known."""


@dataclass(frozen=True)
class Bounds:
    """What a header may ask for. ``bits`` are the types of numbers that are taken."""

    tensors: int = 500_000
    rank: int = 8
    dimension: int = 2**40
    name_bytes: int = MAX_TENSOR_NAME_BYTES
    bits: Mapping[str, int] = field(default_factory=lambda: BITS)


# Numbers of thousands of digits would take seconds to spell.
Whole = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Entry(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """One tensor. ``data_offsets`` are where it begins and ends, from the data's start."""

    dtype: str
    shape: tuple[Whole, ...]
    data_offsets: tuple[Whole, Whole]


class Opening(msgspec.Struct):
    """What a header begins with, where it has metadata."""

    metadata: dict[str, str] = msgspec.field(name=METADATA)


@dataclass(frozen=True)
class Header:
    """Tensors in the order of the header, what it says of itself, and where its data begins."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    start: int


ENTRIES = msgspec.json.Decoder(dict[str, Entry])
TEXTS = msgspec.json.Decoder(dict[str, str])
OPENING = msgspec.json.Decoder(Opening)
ENCODER = msgspec.json.Encoder()
BEGINS = b'{"' + METADATA.encode() + b'":'


def header_length(prefix: bytes | memoryview, size: int, most: int = MAX_HEADER_BYTES) -> int:
    """Bytes of the header of a file of ``size`` bytes that begins with ``prefix``.

    :raises HeaderError: no safetensors file, or the header is longer than ``most``.
    """
    length: int = PREFIX.unpack(prefix[: PREFIX.size])[0] if len(prefix) >= PREFIX.size else 0
    if not 2 <= length <= min(most, MAX_HEADER_BYTES, size - PREFIX.size):
        raise HeaderError(f"no safetensors file: header of {length} bytes in a file of {size}")
    return length


def parse_header(text: bytes, size: int, bounds: Bounds) -> Header:
    """What ``text``, the header of a file of ``size`` bytes, says.

    :raises HeaderError: it can be read in two ways, asks for more than ``bounds``, or does not
        fit the file: ranges overlap, leave a hole, or differ from what their shapes need.
    """
    if len(text) // LEAST > bounds.tensors:
        _check_count(text, bounds.tensors)
    entries, metadata = _fast(text) or _slow(text)
    start = PREFIX.size + len(text)
    try:
        check_names(entries, bounds.name_bytes)
        end = _check(entries, bounds)
    except UnknownDtypeError:
        raise
    except ValueError as error:
        raise HeaderError(f"header: {error}") from error
    if end != size - start:
        raise TruncatedError(end, size - start)
    return Header(entries, metadata, start)


def _check_count(text: bytes, most: int) -> None:
    # A tensor takes two brackets however its keys are spelled.
    many = text.count(b"[") // 2 if b"\\" in text else text.count(b'"data_offsets"')
    if many > most:
        raise HeaderError(f"header: {many} tensors, more than {most}")
    # A tensor has one pair of texts; the others are metadata.
    if (pairs := text.count(b'":"')) > 2 * most:
        raise HeaderError(f"header: {pairs} pairs of texts, more than {2 * most}")


def check_names(names: Collection[str], most: int = MAX_TENSOR_NAME_BYTES) -> None:
    """Whether all may be names of tensors.

    :raises ValueError: one is empty, like a path, no UTF-8, or longer than ``most`` bytes.
    """
    # All at once, as there are many and they are sound. Between two dots, one that is empty or
    # begins with a dot makes two; so does one that ends with it, which may: then one by one.
    together = "." + ".".join(names) + "."
    plain = together.isascii() and not together.encode().translate(None, PLAIN)
    if not plain or ".." in together or max(map(len, names), default=0) > most:
        for name in names:
            check_name(name, most)


def _fast(text: bytes) -> tuple[dict[str, Entry], dict[str, str]] | None:
    """``text`` as safetensors writes it; none where it is spelled in any other way."""
    text, metadata = text.rstrip(b" "), {}
    try:
        if text.startswith(BEGINS):
            metadata = _opening(text)
            spelled = BEGINS + ENCODER.encode(metadata)
            rest = text[len(spelled) :]
            if not text.startswith(spelled) or not (rest == b"}" or rest.startswith(b',"')):
                return None
            text = b"{" + rest.removeprefix(b",")
        entries = ENTRIES.decode(text)
    except WRONG:
        return None
    if METADATA in entries or ENCODER.encode(entries) != text:
        return None
    return entries, metadata


def _opening(text: bytes) -> dict[str, str]:
    """The metadata that ``text`` begins with: up to the first brace, if it holds none itself."""
    try:
        return TEXTS.decode(text[len(BEGINS) : text.find(b"}") + 1])
    except WRONG:
        return OPENING.decode(text).metadata


def _slow(text: bytes) -> tuple[dict[str, Entry], dict[str, str]]:
    """``text``, however it is spelled; what is wrong with it is said.

    :raises HeaderError: it is not JSON, no header, or a key stands twice in it.
    """
    if len(text) > MAX_SLOW_BYTES:
        raise HeaderError(f"header: {len(text)} bytes, and not as safetensors spells them")
    try:
        tree = strict(text)
        if not isinstance(tree, dict):
            raise TypeError("header is no object")
        metadata = tree.pop(METADATA, {})
        if not isinstance(metadata, dict):
            raise TypeError(f"{METADATA} is no object")
        for key, value in metadata.items():
            _check_text(key, value)
        return {name: _entry(name, item) for name, item in tree.items()}, metadata
    except (ValueError, TypeError, RecursionError) as error:
        raise HeaderError(f"header: {error}") from error


def _check_text(key: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{METADATA}: {key[:60]!r} is no text")
    try:
        (key + value).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{METADATA}: {key[:60]!r} is not UTF-8") from error


def _entry(name: str, item: Any) -> Entry:
    check_name(name)
    if not isinstance(item, dict) or item.keys() != KEYS:
        raise ValueError(f"{name}: not dtype, shape and data_offsets")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    whole = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [None]
    # bool is an int to isinstance.
    if any(type(number) is not int or number < 0 for number in whole) or len(offsets) != 2:
        raise ValueError(f"{name}: shape and data_offsets must be lists of whole numbers")
    if not isinstance(dtype, str):
        raise ValueError(f"{name}: dtype is no text")
    return Entry(dtype, tuple(shape), (offsets[0], offsets[1]))


def _check(entries: Mapping[str, Entry], bounds: Bounds) -> int:
    """Whether shapes fit ranges, and ranges each other; returns where the last ends.

    :raises ValueError: they do not.
    """
    position, bits, rank = 0, bounds.bits, bounds.rank
    for name, entry in entries.items():
        begin, end = entry.data_offsets
        shape = entry.shape
        # Numbers of Python do not wrap. A product that fits the file has no factor beyond it;
        # one without elements could say anything, and is looked at more closely.
        if (
            not begin < end <= bounds.dimension
            or len(shape) > rank
            or (end - begin) * 8 != prod(shape) * bits.get(entry.dtype, -1)
        ):
            _check_one(name, entry, bounds)
        # -1 from where they do not lie as they stand.
        position = end if begin == position else -1
    return position if position >= 0 else _check_places(entries)


def _check_places(entries: Mapping[str, Entry]) -> int:
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        begin, end = entry.data_offsets
        if begin != position:
            kind = "overlaps another" if begin < position else "begins after a hole"
            raise ValueError(f"{name} {kind} (at {begin}, expected {position})")
        position = end
    return position


def _check_one(name: str, entry: Entry, bounds: Bounds) -> None:
    shape, (begin, end) = entry.shape, entry.data_offsets
    if entry.dtype not in bounds.bits:
        raise UnknownDtypeError(f"header: {name}: dtype {entry.dtype!r:.40} is not known")
    if len(shape) > bounds.rank or any(number > bounds.dimension for number in shape):
        # Not all of it: what is cut from a message is spelled first.
        raise ValueError(f"{name}: shape {list(shape[:9])!s:.80} is beyond what is read")
    if (end - begin) * 8 != prod(shape) * bounds.bits[entry.dtype]:
        raise ValueError(f"{name}: {end - begin} bytes for {entry.dtype} of shape {list(shape)}")
