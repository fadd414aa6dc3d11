"""The members of a ZIP archive, as far as checkpoints need them: names, and where the bytes lie.

Strict, so that every reader sees the archive that we see. A ZIP says things twice (in the
directory at its end and before each member), and readers differ in whom they believe: here both
must agree. Members fill the file from its first byte to the directory, and the directory up to the
end record, which ends the file; so there is no room for a second archive, for members that share
bytes (how a few kilobytes become terabytes: Fifield, "A better zip bomb", 2019), or for a comment.

Names are looked up and never made into paths; what looks like a way out is refused all the same.
Sums (CRC-32) are not looked at: torch can be told to write none, and digests are for verifying.
"""

import re
import zlib
from collections.abc import Iterator
from struct import Struct

import msgspec

from bake.checkpoint.limits import DEFAULT, MIB, ParseLimits
from bake.checkpoint.source import Source
from bake.errors import Malformed, Unsupported

STORED, DEFLATED = 0, 8

# PKWARE's APPNOTE.TXT 6.3.10, sections 4.3.7 to 4.3.16. ``x`` is what nobody here believes:
# versions, times, attributes.
LOCAL = Struct("<4s2x2H4x3L2H")
ENTRY = Struct("<4s4x2H4x3L4H6xL")
END = Struct("<4s4H2LH")
END_64 = Struct("<4sQ4x2L4Q")
LOCATOR = Struct("<4sLQL")
EXTRA = Struct("<2H")
SUMS, SUMS_64 = Struct("<3L"), Struct("<L2Q")
# The longest that may lie between two members: a sign, a sum and two wide sizes.
GAP = SUMS_64.size + 4
unpack_local = LOCAL.unpack_from

ZIP_64, UNICODE_PATH = 0x0001, 0x7075
ENCRYPTED, DESCRIPTOR, PATCH, STRONG, UTF_8, MASKED = 0x1, 0x8, 0x20, 0x40, 0x800, 0x2000
REFUSED = ENCRYPTED | PATCH | STRONG | MASKED
FULL, FULL_16 = 0xFFFFFFFF, 0xFFFF

# What a member may grow to whatever its ratio: zeros deflate to a thousandth.
FREE = 16 * MIB
# Archives hold more than tensors: versions, byte orders, folders.
OTHERS = 64

# In names joined by NUL.
BAD = re.compile(r"[\x01-\x1f\x7f\\]|(?:^|\0)/|//|(?:^|[/\0])\.\.?(?:$|[/\0])|\0\0|^\0|\0$|^$")


class Member(msgspec.Struct, frozen=True, gc=False):
    """One member: ``stored`` bytes at ``offset``, which are ``size`` once inflated."""

    name: str
    offset: int
    size: int
    stored: int
    method: int


class Entry(msgspec.Struct, gc=False):
    """What the directory says of a member, and where in the directory."""

    at: int
    raw: bytes
    flags: int
    method: int
    crc: int
    stored: int
    size: int
    header: int


def members(source: Source, limits: ParseLimits) -> dict[str, Member]:
    """All members by name, in the order of their bytes.

    :raises Malformed: it is no ZIP, two readers could differ about it, or it passes the limits.
    :raises Unsupported: encryption, several disks, another compression than deflate.
    """
    begin, end, count = _directory(source, limits)
    entries = list(_entries(source, begin, end, count))
    named = _names(source, entries, limits)
    # Nearly always as they lie already.
    order = sorted(zip((entry.header for entry in entries), named, entries, strict=True))
    made, before, end = {}, None, 0
    for _, name, entry in order:
        if entry.flags & REFUSED or entry.method or entry.size != entry.stored:
            _sized(source, entry, limits)
        offset = _data(source, entry, before, end, begin)
        before, end = entry, offset + entry.stored
        made[name] = Member(name, offset, entry.size, entry.stored, entry.method)
    _gap(source, before, end, begin)
    return made


def names(source: Source, limits: ParseLimits = DEFAULT) -> list[str]:
    """Names of all members, from the directory alone: nothing else is checked.

    :raises Malformed: it is no ZIP.
    :raises Unsupported: several disks.
    """
    return _names(source, list(_entries(source, *_directory(source, limits))), limits)


def mentions(source: Source, name: bytes, limits: ParseLimits = DEFAULT) -> bool:
    """Whether the directory has these bytes: a quick look before anything is read or checked.

    :raises Malformed: it is no ZIP.
    :raises Unsupported: several disks.
    """
    begin, end, _ = _directory(source, limits)
    return name in bytes(source.read(begin, end))


def inflated(source: Source, member: Member, limits: ParseLimits, most: int) -> bytes:
    """The whole member, of at most ``most`` bytes.

    :raises Malformed: it is larger, or deflate ends elsewhere than said.
    """
    if member.size > min(most, limits.allocation_bytes):
        raise Malformed(
            source.name, f"{member.name} has {member.size} bytes, of at most {most}", member.offset
        )
    raw = source.read(member.offset, member.offset + member.stored)
    if member.method == STORED:
        return bytes(raw)
    return inflate(source, raw, member.size, member.offset)


def inflate(source: Source, raw: memoryview, size: int, at: int) -> bytes:
    """A deflate stream of exactly ``size`` bytes; never takes memory for more than one above.

    :raises Malformed: it is broken, has another size, or ends before its bytes do.
    """
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        # One more than it should be: a stream that is longer shows.
        made = stream.decompress(raw, size + 1)
    except zlib.error as error:
        raise Malformed(source.name, f"does not inflate: {error}", at) from error
    if len(made) != size or not stream.eof or stream.unused_data:
        raise Malformed(source.name, f"does not inflate to {size} bytes", at)
    return made


def _directory(source: Source, limits: ParseLimits) -> tuple[int, int, int]:
    """Where the directory begins and ends, and how many members it has."""
    at = source.size - END.size
    if at < 0:
        raise Malformed(source.name, "too short for a ZIP's end", 0)
    sign, disk, first, here, count, size, begin, comment = END.unpack(source.read(at, source.size))
    if sign != b"PK\5\6" or comment:
        raise Malformed(source.name, "does not end with a ZIP's end", at)
    end = at
    wide = _wide(source, at)
    if wide:
        end, said = wide
        for short, long, full in zip(
            (disk, first, here, count, size, begin),
            said,
            (FULL_16, FULL_16, FULL_16, FULL_16, FULL, FULL),
            strict=True,
        ):
            if short not in (long, full):
                raise Malformed(source.name, "its two ends disagree", end)
        disk, first, here, count, size, begin = said
    if disk or first or here != count:
        raise Unsupported(f"{source.name}: a ZIP of several disks")
    if begin + size != end:
        raise Malformed(source.name, f"its directory ends at {begin + size}, not at {end}", at)
    if size > limits.header_bytes or count > limits.tensors + OTHERS or count * ENTRY.size > size:
        raise Malformed(source.name, f"{count} members in a directory of {size} bytes", at)
    return begin, end, count


def _wide(source: Source, at: int) -> tuple[int, tuple[int, ...]] | None:
    """The 64-bit end, where there is one: where it begins, and what it says."""
    if at < LOCATOR.size + END_64.size:
        return None
    sign, disk, begin, disks = LOCATOR.unpack(source.read(at - LOCATOR.size, at))
    if sign != b"PK\6\7":
        return None
    if disk or disks > 1:
        raise Unsupported(f"{source.name}: a ZIP of several disks")
    if begin != at - LOCATOR.size - END_64.size:
        raise Malformed(source.name, f"its 64-bit end is not at {begin}", at - LOCATOR.size)
    sign, size, *said = END_64.unpack(source.read(begin, begin + END_64.size))
    if sign != b"PK\6\6" or size != END_64.size - 12:
        raise Malformed(source.name, "its 64-bit end is none", begin)
    return begin, tuple(said)


def _entries(source: Source, begin: int, end: int, count: int) -> Iterator[Entry]:
    raw = bytes(source.read(begin, end))
    at, size, unpack = 0, len(raw), ENTRY.unpack_from
    for _ in range(count):
        if at + ENTRY.size > size:
            raise Malformed(source.name, "its directory is cut off", begin + at)
        (sign, flags, method, crc, stored, full, name, extra, comment, disk, header) = unpack(
            raw, at
        )
        named = at + ENTRY.size
        after = named + name
        if sign != b"PK\1\2" or after + extra + comment > size:
            raise Malformed(source.name, "its directory has an entry that is none", begin + at)
        if disk and disk != FULL_16:
            raise Unsupported(f"{source.name}: a ZIP of several disks")
        entry = Entry(begin + at, raw[named:after], flags, method, crc, stored, full, header)
        if extra:
            _widen(source, entry, raw[after : after + extra])
        if (full == FULL and entry.size == FULL) or (header == FULL and entry.header == FULL):
            # 4 GiB - 1 means "elsewhere", and some readers take it as it stands.
            raise Malformed(source.name, "a member's size is not said", begin + at)
        yield entry
        at = after + extra + comment
    if at != size:
        raise Malformed(source.name, "its directory goes on after its last entry", begin + at)


def _extras(source: Source, raw: bytes, at: int) -> dict[int, bytes]:
    """Extra fields by their kind. Of those that count, two of a kind are refused."""
    found: dict[int, bytes] = {}
    here = 0
    while here + EXTRA.size <= len(raw):
        kind, size = EXTRA.unpack_from(raw, here)
        here += EXTRA.size
        if here + size > len(raw) or (kind == ZIP_64 and kind in found):
            break
        found[kind] = raw[here : here + size]
        here += size
    if here != len(raw):
        raise Malformed(source.name, "extra fields of a member are broken", at)
    if UNICODE_PATH in found:
        raise Unsupported(f"{source.name}: a member with two names")
    return found


def _widen(source: Source, entry: Entry, extra: bytes) -> None:
    """Take sizes from the 64-bit field where the entry has no room for them: in this order."""
    wide = _extras(source, extra, entry.at).get(ZIP_64)
    if wide is None:
        return
    at = 0
    for field in ("size", "stored", "header"):
        if getattr(entry, field) == FULL:
            if at + 8 > len(wide):
                raise Malformed(source.name, "a 64-bit size is missing", entry.at)
            setattr(entry, field, int.from_bytes(wide[at : at + 8], "little"))
            at += 8


def _names(source: Source, entries: list[Entry], limits: ParseLimits) -> list[str]:
    """Names in the directory's order: each once, ASCII or UTF-8, none that leads out."""
    try:
        # Without the flag other letters are of whichever code page the reader has.
        names = [e.raw.decode("utf-8" if e.flags & UTF_8 else "ascii") for e in entries]
    except UnicodeDecodeError as error:
        raise Malformed(source.name, f"a member's name is no text: {error.reason}") from error
    joined = "\0".join(names)
    # A folder may end with a slash.
    if names and (joined.count("\0") != len(names) - 1 or BAD.search(joined)):
        bad = next((name for name in names if "\0" in name or BAD.search(name)), "")
        raise Malformed(source.name, f"a member is named {bad[:80]!r}")
    if len(set(names)) != len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise Malformed(source.name, f"two members are named {twice[:80]!r}")
    most = limits.name_bytes + OTHERS
    if any(len(entry.raw) > most for entry in entries):
        raise Malformed(source.name, f"a member's name is longer than {most} bytes")
    return names


def _sized(source: Source, entry: Entry, limits: ParseLimits) -> None:
    """Whether the entry is of a kind that is read here, and grows no more than it may."""
    if entry.flags & REFUSED:
        raise Unsupported(f"{source.name}: an encrypted or patched member (at byte {entry.at})")
    if entry.method == STORED:
        if entry.size != entry.stored:
            raise Malformed(source.name, "a stored member has two sizes", entry.at)
    elif entry.method != DEFLATED:
        raise Unsupported(f"{source.name}: compression {entry.method} (at byte {entry.at})")
    elif entry.size > FREE and entry.size > entry.stored * limits.ratio:
        raise Malformed(
            source.name,
            f"{entry.stored} bytes become {entry.size}: more than {limits.ratio} times",
            entry.at,
        )


def _data(source: Source, entry: Entry, before: Entry | None, end: int, most: int) -> int:
    """Where the member's bytes begin, its local header agreeing.

    It begins where the one ``before`` ends, and itself ends before the directory at ``most``.
    """
    at = entry.header
    named = at + LOCAL.size + len(entry.raw)
    if not 0 <= at - end <= GAP or named > most:
        raise _misplaced(source, at, end)
    raw = source.read(end, named)
    if at != end:
        _gap(source, before, end, at)
    sign, flags, method, crc, stored, size, name, extra = unpack_local(raw, at - end)
    if (
        sign != b"PK\3\4"
        or flags != entry.flags
        or method != entry.method
        or name != len(entry.raw)
        or raw[at - end + LOCAL.size :] != entry.raw
    ):
        raise Malformed(source.name, "a member is not what the directory says", at)
    begin: int = named + extra
    if begin + entry.stored > most:
        raise _misplaced(source, most, begin + entry.stored)
    if not (flags & DESCRIPTOR and crc == stored == size == 0):
        _agree(source, entry, (crc, stored, size), source.read(named, begin))
    return begin


def _misplaced(source: Source, at: int, end: int) -> Malformed:
    if at < end:
        return Malformed(source.name, "members overlap", at)
    return Malformed(source.name, f"{at - end} bytes belong to no member", end)


def _gap(source: Source, entry: Entry | None, begin: int, end: int) -> None:
    """What may lie after a member: its sum and sizes again, in one of four forms, or nothing."""
    gap = end - begin
    if not gap:
        return
    if not 0 <= gap <= GAP or entry is None or not entry.flags & DESCRIPTOR:
        raise _misplaced(source, end, begin)
    wide = gap in (SUMS_64.size, GAP)
    if not wide and max(entry.stored, entry.size) >= FULL:
        raise _misplaced(source, end, begin)
    sums = (SUMS_64 if wide else SUMS).pack(entry.crc, entry.stored, entry.size)
    if source.read(begin, end) not in (sums, b"PK\7\x08" + sums):
        raise _misplaced(source, end, begin)


def _agree(source: Source, entry: Entry, local: tuple[int, int, int], extra: memoryview) -> None:
    """Whether a local header's sum and sizes are those of the directory."""
    crc, stored, size = local
    if FULL in (stored, size):
        wide = Entry(entry.header, b"", 0, 0, crc, stored, size, 0)
        _widen(source, wide, bytes(extra))
        stored, size = wide.stored, wide.size
    if entry.flags & DESCRIPTOR and crc == stored == size == 0:
        return
    if (crc, stored, size) != (entry.crc, entry.stored, entry.size):
        raise Malformed(source.name, "a member's sizes are not the directory's", entry.header)
