"""GGUF's metadata: keys and values, as they stand one after another.

A list is told and not kept (``Listed``) where it is long, holds texts that are not UTF-8, or holds
lists; ``gguf.values`` reads one. A single text that is not UTF-8 has escapes where it is not.
"""

import struct
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bake.checkpoint import hops
from bake.checkpoint.contents import Listed
from bake.checkpoint.limits import ParseLimits
from bake.errors import Malformed, Unsupported


class Kind(NamedTuple):
    """``form`` is its letter for ``struct``, ``width`` its bytes."""

    name: str
    form: str
    width: int


# By their numbers in a file (gguf.h of ggml).
KINDS = {
    0: Kind("u8", "B", 1),
    1: Kind("i8", "b", 1),
    2: Kind("u16", "H", 2),
    3: Kind("i16", "h", 2),
    4: Kind("u32", "I", 4),
    5: Kind("i32", "i", 4),
    6: Kind("f32", "f", 4),
    7: Kind("bool", "B", 1),
    8: Kind("text", "", 8),
    9: Kind("list", "", 12),
    10: Kind("u64", "Q", 8),
    11: Kind("i64", "q", 8),
    12: Kind("f64", "d", 8),
}
BOOL, TEXT, LIST = KINDS[7], KINDS[8], KINDS[9]
ALIGNMENT = "general.alignment"
# Lists of up to so many elements are kept, until all that are kept together have so many.
SHORT = 64
KEPT = 100_000
# A tokenizer's whole JSON is half of this; a character may take four times its byte.
MAX_TEXT_BYTES = 64 * 1024**2
# Of all texts that are not UTF-8: Python takes a second to escape a few MB.
MAX_ESCAPED = 64 * 1024
# What a list within a list counts for, as passing it takes longer than passing a number.
NESTED = 64


class MoreNeeded(Exception):
    """The part of the file that was read ends before ``end``."""

    def __init__(self, end: int) -> None:
        self.end = end


@dataclass
class Cursor:
    """Where a parse stands in ``raw``, the beginning of a file of ``size`` bytes."""

    raw: memoryview
    name: str
    size: int
    limits: ParseLimits
    order: str = "<"
    at: int = 0
    items: int = 0
    kept: int = 0
    escaped: int = 0
    forms: dict[str, struct.Struct] = field(default_factory=dict)

    def take(self, count: int) -> int:
        """Pass ``count`` bytes; returns where they begin."""
        begin, self.at = self.at, self.at + count
        if self.at > len(self.raw):
            self.beyond(self.at, begin)
        return begin

    def beyond(self, end: int, begin: int) -> None:
        """What is at ``begin`` ends at ``end``, past what was read.

        :raises MoreNeeded: there is more.
        :raises Malformed: there is not, or it is more than may be read.
        """
        if end > self.size:
            raise Malformed(self.name, f"ends at {self.size}, within what begins here", begin)
        if end > self.limits.header_bytes:
            most = self.limits.header_bytes
            raise Malformed(self.name, f"header of more than {most} bytes", begin)
        raise MoreNeeded(end)

    def numbers(self, form: str) -> tuple[Any, ...]:
        """The next numbers, by ``struct``'s letters."""
        one = self.forms.get(form) or self.forms.setdefault(form, struct.Struct(self.order + form))
        return one.unpack_from(self.raw, self.take(one.size))

    def text(self) -> bytes:
        """The next text."""
        (length,) = self.numbers("Q")
        begin = self.take(length)
        return bytes(self.raw[begin : self.at])

    def text_of(self, what: str) -> str:
        """The next text, a name of ours to come.

        :raises Malformed: it is longer than a name may be, empty, or no UTF-8.
        """
        begin = self.at
        (length,) = self.numbers("Q")
        if not 0 < length <= self.limits.name_bytes:
            raise Malformed(self.name, f"{what} of {length} bytes", begin)
        try:
            return str(self.raw[(at := self.take(length)) : at + length], "utf-8")
        except UnicodeDecodeError as error:
            raise Malformed(self.name, f"{what} is not UTF-8", begin) from error

    def charge(self, count: int, width: int) -> None:
        """Before ``count`` elements of a list are passed, of ``width`` bytes at least.

        :raises Malformed: all lists together have more than may be, or than the file could hold.
        """
        self.items += count
        if self.items > (most := self.limits.items):
            raise Malformed(self.name, f"lists of more than {most} elements", self.at)
        if self.at + count * width > self.size:
            raise Malformed(self.name, f"a list of {count} in a file of {self.size}", self.at)


def metadata(cursor: Cursor, count: int) -> dict[str, Any]:
    """The next ``count`` keys with their values.

    :raises Malformed: a key stands twice, is empty, or is no UTF-8; a value is none of its kind.
    """
    found: dict[str, Any] = {}
    for _ in range(count):
        begin = cursor.at
        key = cursor.text_of("a key")
        if key in found:
            raise Malformed(cursor.name, f"key {key!r} stands twice", begin)
        kind = _kind(cursor)
        if key == ALIGNMENT and kind.name != "u32":
            raise Malformed(cursor.name, f"{ALIGNMENT} is {kind.name}, not u32", begin)
        found[key] = _list(cursor) if kind is LIST else _value(cursor, kind)
    return found


def _kind(cursor: Cursor) -> Kind:
    begin = cursor.at
    (number,) = cursor.numbers("I")
    if number not in KINDS:
        raise Malformed(cursor.name, f"a value of kind {number}", begin)
    return KINDS[number]


def _value(cursor: Cursor, kind: Kind) -> Any:
    if kind is TEXT:
        return _told(cursor, cursor.text())
    (number,) = cursor.numbers(kind.form)
    return _truth(cursor, number) if kind is BOOL else number


def _told(cursor: Cursor, raw: bytes) -> str:
    if len(raw) > MAX_TEXT_BYTES:
        raise Malformed(cursor.name, f"a text of {len(raw)} bytes", cursor.at - len(raw))
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        cursor.escaped += len(raw)
        if cursor.escaped > MAX_ESCAPED:
            raise Malformed(
                cursor.name, "a text that is not UTF-8", cursor.at - len(raw)
            ) from error
        return raw.decode(errors="backslashreplace")


def _truth(cursor: Cursor, number: int) -> bool:
    if number > 1:
        raise Malformed(cursor.name, f"a truth value of {number}", cursor.at - 1)
    return bool(number)


def _list(cursor: Cursor) -> list[Any] | Listed:
    kind, count = _kind(cursor), cursor.numbers("Q")[0]
    begin = cursor.at
    if kind is LIST:
        _pass_lists(cursor, count)
    else:
        _pass(cursor, kind, count)
    listed = Listed(kind.name, count, begin, cursor.at)
    if kind is LIST or count > SHORT or cursor.kept + count > KEPT:
        return listed
    cursor.kept += count
    cursor.at = begin
    short = _short(cursor, kind, count)
    cursor.at = listed.end
    return listed if short is None else short


def _short(cursor: Cursor, kind: Kind, count: int) -> list[Any] | None:
    """The next ``count`` elements; none where a text is not UTF-8."""
    if kind is not TEXT:
        numbers = list(cursor.numbers(f"{count}{kind.form}")) if count else []
        return [_truth(cursor, one) for one in numbers] if kind is BOOL else numbers
    try:
        return [cursor.text().decode() for _ in range(count)]
    except UnicodeDecodeError:
        return None


def _pass(cursor: Cursor, kind: Kind, count: int) -> None:
    """Past ``count`` elements."""
    cursor.charge(count, kind.width)
    if kind is not TEXT:
        cursor.take(count * kind.width)
        return
    passed = cursor.items - count
    walked = hops.walk(cursor.raw, cursor.at, count, cursor.order == ">", passed)
    cursor.at = walked.at
    if walked.done < count:
        # Says what is wrong with the one that is not there.
        cursor.text()


def _pass_lists(cursor: Cursor, count: int) -> None:
    """Past ``count`` lists, of lists maybe; no deeper than may be."""
    cursor.charge(count, LIST.width)
    pending = [count]
    while pending:
        if not pending[-1]:
            pending.pop()
            continue
        pending[-1] -= 1
        cursor.charge(NESTED, 0)
        kind, inner = _kind(cursor), cursor.numbers("Q")[0]
        if kind is not LIST:
            _pass(cursor, kind, inner)
            continue
        cursor.charge(inner, LIST.width)
        pending.append(inner)
        if len(pending) > (most := cursor.limits.depth):
            raise Malformed(cursor.name, f"lists within lists, deeper than {most}", cursor.at)


def texts(raw: memoryview, listed: Listed, order: str, name: str) -> list[bytes]:
    """The texts of a list, whose bytes are ``raw``.

    :raises Malformed: they are not what was told of them.
    """
    whole, length, at, found = bytes(raw), struct.Struct(order + "Q").unpack_from, 0, []
    for _ in range(listed.count):
        begin = at + 8
        if begin > len(whole) or (at := begin + length(whole, begin - 8)[0]) > len(whole):
            raise Malformed(name, "a list that has changed", listed.begin)
        found.append(whole[begin:at])
    if at != len(whole):
        raise Malformed(name, "a list that has changed", listed.begin)
    return found


def form_of(listed: Listed, name: str) -> str:
    """``struct``'s letter of what is in a list of numbers; NumPy's is the same.

    :raises Unsupported: it is one of lists.
    """
    for kind in KINDS.values():
        if kind.name == listed.kind and kind.form:
            return "?" if kind is BOOL else kind.form
    raise Unsupported(f"{name}: lists of {listed.kind} in metadata are not read")
