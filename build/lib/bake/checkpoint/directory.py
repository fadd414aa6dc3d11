"""The directory of a ZIP archive: what it says of each member, and nothing that a member says.

It must end where the end record begins, which must end the file; names must be safe and stand once.
"""

from collections.abc import Iterator
from struct import Struct

import msgspec

from bake.checkpoint.limits import ParseLimits
from bake.checkpoint.naming import strange
from bake.checkpoint.source import Source
from bake.errors import Malformed, Unsupported

# PKWARE's APPNOTE.TXT 6.3.10, sections 4.3.12 to 4.3.16 and 4.5.3. ``x`` is what nobody here
# believes: versions, times, attributes.
ENTRY = Struct("<4s4x2H4x3L4H6xL")
END = Struct("<4s4H2LH")
END_64 = Struct("<4sQ4x2L4Q")
LOCATOR = Struct("<4sLQL")
EXTRA = Struct("<2H")

ZIP_64, UNICODE_PATH, UTF_8 = 0x0001, 0x7075, 0x800
# What stands for a size that has no room.
FULL, FULL_16 = 0xFFFFFFFF, 0xFFFF

# Archives hold more than tensors: versions, byte orders, folders.
OTHERS = 64


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


def located(source: Source, limits: ParseLimits) -> tuple[int, int, int]:
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


def entries_of(source: Source, begin: int, end: int, count: int) -> Iterator[Entry]:
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
            widen(source, entry, raw[after : after + extra])
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


def widen(source: Source, entry: Entry, extra: bytes) -> None:
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


def names_of(source: Source, entries: list[Entry], limits: ParseLimits) -> list[str]:
    """Names in the directory's order: each once, ASCII or UTF-8, none that leads out."""
    try:
        # Without the flag other letters are of whichever code page the reader has.
        names = [e.raw.decode("utf-8" if e.flags & UTF_8 else "ascii") for e in entries]
    except UnicodeDecodeError as error:
        raise Malformed(source.name, f"a member's name is no text: {error.reason}") from error
    if (bad := strange(names)) is not None:
        raise Malformed(source.name, f"a member is named {bad[:80]!r}")
    if len(set(names)) != len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise Malformed(source.name, f"two members are named {twice[:80]!r}")
    most = limits.name_bytes + OTHERS
    if any(len(entry.raw) > most for entry in entries):
        raise Malformed(source.name, f"a member's name is longer than {most} bytes")
    return names
