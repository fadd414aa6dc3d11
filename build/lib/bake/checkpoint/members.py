"""The members of a ZIP archive, as far as checkpoints need them: names, and where the bytes lie.

Strict, so that every reader sees the archive that we see. A ZIP says things twice (in the
directory at its end and before each member), and readers differ in whom they believe: here both
must agree. Members fill the file from its first byte to the directory, and the directory up to the
end record, which ends the file; so there is no room for a second archive, for members that share
bytes (how a few kilobytes become terabytes: Fifield, "A better zip bomb", 2019), or for a comment.

Names are looked up and never made into paths; what looks like a way out is refused all the same.
Sums (CRC-32) are not looked at: torch can be told to write none, and digests are for verifying.
"""

import zlib
from struct import Struct

import msgspec

from bake.checkpoint.directory import FULL, Entry, entries_of, located, names_of, widen
from bake.checkpoint.limits import DEFAULT, MIB, ParseLimits
from bake.checkpoint.source import Source
from bake.errors import Malformed, Unsupported

STORED, DEFLATED = 0, 8

# PKWARE's APPNOTE.TXT 6.3.10, sections 4.3.7 and 4.3.9; ``x`` is what nobody here believes.
LOCAL = Struct("<4s2x2H4x3L2H")
unpack_local = LOCAL.unpack_from
SUMS, SUMS_64 = Struct("<3L"), Struct("<L2Q")
# The longest that may lie between two members: a sign, a sum and two wide sizes.
GAP = SUMS_64.size + 4

ENCRYPTED, DESCRIPTOR, PATCH, STRONG, MASKED = 0x1, 0x8, 0x20, 0x40, 0x2000
REFUSED = ENCRYPTED | PATCH | STRONG | MASKED

# What a member may grow to whatever its ratio: zeros deflate to a thousandth.
FREE = 16 * MIB


class Member(msgspec.Struct, frozen=True, gc=False):
    """One member: ``stored`` bytes at ``offset``, which are ``size`` once inflated."""

    name: str
    offset: int
    size: int
    stored: int
    method: int


def members(source: Source, limits: ParseLimits) -> dict[str, Member]:
    """All members by name, in the order of their bytes.

    :raises Malformed: it is no ZIP, two readers could differ about it, or it passes the limits.
    :raises Unsupported: encryption, several disks, another compression than deflate.
    """
    begin, end, count = located(source, limits)
    entries = list(entries_of(source, begin, end, count))
    named = names_of(source, entries, limits)
    # Nearly always as they lie already.
    order = sorted(zip((entry.header for entry in entries), named, entries, strict=True))
    made, before, end = {}, None, 0
    for _, name, entry in order:
        if entry.flags & REFUSED or entry.method or entry.size != entry.stored:
            _sized(source, entry, limits)
        offset = _data(source, entry, before, end, begin)
        before, end = entry, offset + entry.stored
        made[name] = Member(name, offset, entry.size, entry.stored, entry.method)
    if 0 < begin - end <= GAP:
        _gap(source, before, end, source.read(end, begin))
    elif begin != end:
        raise _misplaced(source, begin, end)
    return made


def names(source: Source, limits: ParseLimits = DEFAULT) -> list[str]:
    """Names of all members, from the directory alone: nothing else is checked.

    :raises Malformed: it is no ZIP.
    :raises Unsupported: several disks.
    """
    return names_of(source, list(entries_of(source, *located(source, limits))), limits)


def mentions(source: Source, name: bytes, limits: ParseLimits = DEFAULT) -> bool:
    """Whether the directory has these bytes: a quick look before anything is read or checked.

    :raises Malformed: it is no ZIP.
    :raises Unsupported: several disks.
    """
    begin, end, _ = located(source, limits)
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
        _gap(source, before, end, raw[: at - end])
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


def _gap(source: Source, entry: Entry | None, begin: int, gap: memoryview) -> None:
    """What may lie after a member: its sum and sizes again, in one of four forms."""
    if entry is None or not entry.flags & DESCRIPTOR:
        raise _misplaced(source, begin + len(gap), begin)
    wide = len(gap) in (SUMS_64.size, GAP)
    if not wide and max(entry.stored, entry.size) >= FULL:
        raise _misplaced(source, begin + len(gap), begin)
    sums = (SUMS_64 if wide else SUMS).pack(entry.crc, entry.stored, entry.size)
    if gap not in (sums, b"PK\7\x08" + sums):
        raise _misplaced(source, begin + len(gap), begin)


def _agree(source: Source, entry: Entry, local: tuple[int, int, int], extra: memoryview) -> None:
    """Whether a local header's sum and sizes are those of the directory."""
    crc, stored, size = local
    if FULL in (stored, size):
        wide = Entry(entry.header, b"", 0, 0, crc, stored, size, 0)
        widen(source, wide, bytes(extra))
        stored, size = wide.stored, wide.size
    if entry.flags & DESCRIPTOR and crc == stored == size == 0:
        return
    if (crc, stored, size) != (entry.crc, entry.stored, entry.size):
        raise Malformed(source.name, "a member's sizes are not the directory's", entry.header)
