"""ZIP directories: what is accepted is what everyone else reads; what two could read is refused."""

import contextlib
import io
import struct
import zipfile
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bake.checkpoint.limits import DEFAULT, ParseLimits
from bake.checkpoint.members import inflated, members, mentions, names
from bake.checkpoint.source import Bytes, Seekable
from bake.errors import Malformed, Unsupported
from tests.bake.checkpoint.pickles import fixture

BAD = (Malformed, Unsupported)


def zipped(contents, method=zipfile.ZIP_STORED, seekable=True, wide=False):
    made = io.BytesIO()
    out = made if seekable else Unseekable(made)
    with zipfile.ZipFile(out, "w", method) as file:
        for name, raw in contents.items():
            with file.open(zipfile.ZipInfo(name), "w", force_zip64=wide) as member:
                member.write(raw)
            file.filelist[-1].compress_type = method
    return made.getvalue()


class Unseekable:
    """Makes zipfile put sums after each member."""

    def __init__(self, file):
        self.write, self.flush = file.write, file.flush


def deflated(contents, **options):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, **options) as file:
        for name, raw in contents.items():
            file.writestr(name, raw)
    return made.getvalue()


def read(raw, limits=DEFAULT):
    source = Bytes(raw)
    return {
        name: inflated(source, member, limits, limits.allocation_bytes)
        for name, member in members(source, limits).items()
    }


def by_zipfile(raw):
    with zipfile.ZipFile(io.BytesIO(raw)) as file:
        return {info.filename: file.read(info) for info in file.infolist()}


contents = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="/\\"))
    .filter(lambda name: name not in ("", ".", ".."))
    .map(lambda name: f"a/{name}"),
    st.binary(max_size=200),
    max_size=5,
)
two = {"a/one": b"first", "a/two": b"second" * 20}


@given(contents, st.booleans(), st.booleans())
def test_what_zipfile_writes_is_read(contents, seekable, wide):
    raw = zipped(contents, seekable=seekable, wide=wide)
    assert read(raw) == contents
    assert names(Bytes(raw)) == list(contents)


@given(contents)
def test_what_zipfile_deflates_is_read(contents):
    assert read(deflated(contents)) == contents


def test_any_source_gives_the_same():
    raw = fixture("plain.pth")
    assert members(Seekable(io.BytesIO(raw)), DEFAULT) == members(Bytes(raw), DEFAULT)
    assert read(raw) == by_zipfile(raw)


def test_a_quick_look_finds_names():
    source = Bytes(fixture("plain.pth"))
    assert mentions(source, b"/data.pkl")
    assert not mentions(source, b"/model.pkl")


def flips(raw):
    """Each byte changed in three ways."""
    for at in range(len(raw)):
        for mask in (0x01, 0x80, 0xFF):
            yield raw[:at] + bytes([raw[at] ^ mask]) + raw[at + 1 :]


@pytest.mark.parametrize("raw", [zipped(two), deflated(two), zipped(two, seekable=False)])
def test_a_changed_byte_is_refused_or_read_as_zipfile_reads_it(raw):
    for changed in flips(raw):
        try:
            ours = read(changed)
        except BAD:
            continue
        try:
            theirs = by_zipfile(changed)
        except (zipfile.BadZipFile, NotImplementedError):
            # Sums, which are not ours to look at.
            continue
        assert ours == theirs


@pytest.mark.parametrize("raw", [zipped(two), deflated(two), fixture("plain.pth")])
def test_a_file_cut_anywhere_is_refused(raw):
    for end in range(len(raw)):
        with pytest.raises(BAD):
            read(raw[:end])


def test_nothing_lies_before_after_or_between_members():
    raw = zipped(two)
    second = raw.index(b"PK\3\4", 4)
    for at, word in ((0, "ends at|directory"), (len(raw), "does not end")):
        with pytest.raises(Malformed, match=word):
            read(raw[:at] + b"x" + raw[at:])
    # The same, with the directory moved along as a self-extracting archive has it.
    with pytest.raises(Malformed, match="belong to no member"):
        read(by_hand(two, before=b"#!/bin/sh\n"))
    with pytest.raises(Malformed, match="belong to no member"):
        read(by_hand(two, between=b"PK\3\4"))
    assert second


def by_hand(contents, before=b"", between=b"", **local):
    """An archive of stored members; ``local`` changes what stands before each."""
    body, directory = bytearray(before), b""
    for name, raw in contents.items():
        at = len(body)
        said = {
            "flags": 0, "method": 0, "crc": zlib.crc32(raw),
            "stored": len(raw), "size": len(raw), "name": name.encode(), "extra": b"",
        }  # fmt: skip
        directory += entry(**said, at=at)
        said |= local
        body += struct.pack(
            "<4s5H3L2H", b"PK\3\4", 20, said["flags"], said["method"], 0, 0x21,
            said["crc"], said["stored"], said["size"], len(said["name"]), len(said["extra"]),
        )  # fmt: skip
        body += said["name"] + said["extra"] + raw + between
    return bytes(body) + directory + end(len(contents), len(directory), len(body))


def entry(name, at, crc=0, stored=0, size=0, flags=0, method=0, extra=b"", disk=0):
    return (
        struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 20, 20, flags, method, 0, 0x21,
            crc, stored, size, len(name), len(extra), 0, disk, 0, 0, at,
        ) + name + extra
    )  # fmt: skip


def end(count, size, begin, disk=0, comment=b""):
    return struct.pack(
        "<4s4H2LH", b"PK\5\6", disk, disk, count, count, size, begin, len(comment)
    ) + (comment)


def test_what_is_made_by_hand_is_read():
    assert read(by_hand(two)) == two == by_zipfile(by_hand(two))


@pytest.mark.parametrize(
    "local",
    [
        {"name": b"a/eno"},
        {"size": 4},
        {"stored": 4},
        {"crc": 1},
        {"method": 8},
        {"flags": 1},
        {"flags": 8, "size": 0, "stored": 0, "crc": 0},
        {"extra": b"\1"},
        {"stored": 0xFFFFFFFF, "size": 0xFFFFFFFF},
        {"stored": 0xFFFFFFFF, "size": 0xFFFFFFFF, "extra": b"\1\0\x10\0" + b"\xff" * 16},
    ],
)
def test_a_header_that_disagrees_with_the_directory_is_refused(local):
    if local == {"extra": b"\1"}:
        # Bytes that fill up to a boundary, as zipalign writes them, are nobody's business.
        assert read(by_hand({"a/one": b"first"}, **local)) == {"a/one": b"first"}
        return
    with pytest.raises(Malformed):
        read(by_hand({"a/one": b"first"}, **local))


@pytest.mark.parametrize(
    "name",
    ["", "/etc/x", "..", "../x", "a/../x", "a/..", "./x", "a//b", "a\\b", "a\nb", "a\0b", "\x7f",
     "/", "x" * 600],
)  # fmt: skip
def test_names_that_lead_out_are_refused(name):
    with pytest.raises(Malformed, match=r"is named|name is longer"):
        read(by_hand({"ok": b"", name: b""}))


def test_letters_without_the_flag_are_of_no_known_alphabet():
    with pytest.raises(Malformed, match="no text"):
        read(by_hand({"ä": b""}))


def test_names_stand_once():
    raw = zipped({"a/one": b"first", "a/two": b"other"}).replace(b"a/two", b"a/one")
    with pytest.raises(Malformed, match="two members are named"):
        read(raw)


def shared(count, times):
    """Members that all have the same bytes: of the last, whose header the others quote."""
    stream = zlib.compressobj(9, wbits=-15)
    kernel = stream.compress(bytes(count)) + stream.flush()
    said = {"crc": zlib.crc32(bytes(count)), "stored": len(kernel), "size": count, "method": 8}
    header = struct.pack(
        "<4s5H3L2H", b"PK\3\4", 20, 0, 8, 0, 0x21, *(said[k] for k in ("crc", "stored", "size")),
        1, 0,
    ) + b"a"  # fmt: skip
    directory = entry(b"a", 0, **said) + b"".join(
        entry(bytes([98 + i]), 0, **said) for i in range(times)
    )
    body = header + kernel
    return body + directory + end(times + 1, len(directory), len(body))


def test_members_that_share_bytes_are_refused():
    with pytest.raises(Malformed, match="overlap"):
        read(shared(1000, 5))


def test_quoted_headers_are_refused():
    """Fifield's bomb: each member is a stored block that holds the next one's header."""
    inner = by_hand({"b": b"x" * 40})
    header = inner[: inner.index(b"PK\1\2")]
    body = struct.pack(
        "<4s5H3L2H",
        b"PK\3\4",
        20,
        0,
        0,
        0,
        0x21,
        zlib.crc32(header),
        len(header),
        len(header),
        1,
        0,
    ) + (b"a" + header)
    directory = entry(b"a", 0, zlib.crc32(header), len(header), len(header))
    directory += entry(b"b", 31, zlib.crc32(b"x" * 40), 40, 40)
    with pytest.raises(Malformed, match="overlap"):
        read(body + directory + end(2, len(directory), len(body)))


def test_more_than_the_ratio_is_refused_beyond_what_is_free(monkeypatch):
    monkeypatch.setattr("bake.checkpoint.members.FREE", 1000)
    assert read(deflated({"a": bytes(1000)}))
    with pytest.raises(Malformed, match="more than 50 times"):
        read(deflated({"a": bytes(100_000)}), ParseLimits(ratio=50))


def test_no_more_is_inflated_than_said():
    raw = deflated({"a": bytes(100_000)})
    smaller = raw.replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    larger = raw.replace((100_000).to_bytes(4, "little"), (100_001).to_bytes(4, "little"))
    for lie in (smaller, larger):
        with pytest.raises(Malformed, match="does not inflate to"):
            read(lie)
    with pytest.raises(Malformed, match="of at most 99999"):
        read(raw, ParseLimits(allocation_bytes=99_999))


def test_archives_within_archives_are_only_bytes():
    inner = deflated({"a": bytes(100_000)})
    assert read(deflated({"a.zip": inner})) == {"a.zip": inner}


def test_a_second_end_is_refused():
    first, second = by_hand({"a": b"1"}), by_hand({"b": b"2"})
    for both in (first + second, first + end(0, 0, len(first)), second[:-22] + first):
        with pytest.raises(Malformed):
            read(both)


def test_a_comment_that_could_hold_another_end_is_refused():
    raw = by_hand(two)
    hidden = end(0, 0, len(raw) - 22)
    with pytest.raises(Malformed):
        read(raw[:-2] + struct.pack("<H", len(hidden)) + hidden)


@pytest.mark.parametrize("flag", [0x1, 0x20, 0x40, 0x2000])
def test_what_is_encrypted_is_told(flag):
    raw = struct.pack("<4s5H3L2H", b"PK\3\4", 20, flag, 0, 0, 0x21, 0, 0, 0, 1, 0) + b"a"
    directory = entry(b"a", 0, flags=flag)
    with pytest.raises(Unsupported, match="encrypted"):
        read(raw + directory + end(1, len(directory), len(raw)))


def test_other_compressions_are_told():
    with pytest.raises(Unsupported, match="compression 14"):
        read(xz())


def xz():
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_LZMA) as file:
        file.writestr("a", b"b")
    return made.getvalue()


def test_several_disks_are_told():
    raw = by_hand(two)
    with pytest.raises(Unsupported, match="several disks"):
        read(raw[:-22] + end(2, 110, len(raw) - 132, disk=1))


def test_more_members_than_allowed_are_refused():
    raw = zipped({f"{i}": b"" for i in range(80)})
    assert len(read(raw)) == 80
    with pytest.raises(Malformed, match="80 members"):
        read(raw, ParseLimits(tensors=10))


def wide(raw, **said):
    """An archive with the 64-bit end that ``said`` changes."""
    count, size, begin = struct.unpack("<H2L", raw[-12:-2])
    fields = {"count": count, "size": size, "begin": begin} | said
    at = len(raw) - 22
    return (
        raw[:at]
        + struct.pack(
            "<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0,
            fields["count"], fields["count"], fields["size"], fields["begin"],
        )
        + struct.pack("<4sLQL", b"PK\6\7", 0, fields.get("at", at), 1)
        + end(*fields.get("end", (count, size, begin)))
    )  # fmt: skip


def test_64_bit_ends_are_read():
    assert read(wide(by_hand(two))) == two
    assert read(wide(by_hand(two), end=(0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF))) == two


@pytest.mark.parametrize(
    "lie",
    [
        {"count": 1},
        {"count": 2**63},
        {"size": 2**63, "end": (2, 0xFFFFFFFF, 0xFFFFFFFF)},
        {"begin": 2**64 - 1, "end": (2, 0xFFFFFFFF, 0xFFFFFFFF)},
        {"begin": 0},
        {"at": 0},
        {"at": 2**64 - 1},
        {"end": (1, 0xFFFFFFFF, 0xFFFFFFFF)},
    ],
)
def test_64_bit_ends_that_lie_are_refused(lie):
    with pytest.raises(Malformed):
        read(wide(by_hand(two), **lie))


@pytest.mark.parametrize(
    "extra",
    [
        b"\1\0\x04\0" + bytes(4),
        b"\1\0\x08\0" + b"\xff" * 8,
        b"\1\0\x10\0" + (5).to_bytes(8, "little") + (2**63).to_bytes(8, "little"),
        b"\1\0\x10\0" + (5).to_bytes(8, "little") * 2 + b"\1\0\x10\0" + bytes(16),
        b"\1\0\xff\xff",
        b"\x75\x70\x05\0\1" + bytes(4),
        b"",
    ],
)
def test_64_bit_sizes_that_lie_are_refused(extra):
    raw = by_hand({"a": b"first"})
    body = raw[: raw.index(b"PK\1\2")]
    directory = entry(
        b"a", 0, zlib.crc32(b"first"), 0xFFFFFFFF, 0xFFFFFFFF, extra=extra
    )  # fmt: skip
    with pytest.raises(BAD):
        read(body + directory + end(1, len(directory), len(body)))


def test_64_bit_sizes_that_are_right_are_read():
    raw = by_hand({"a": b"first"})
    body = raw[: raw.index(b"PK\1\2")]
    extra = b"\1\0\x10\0" + (5).to_bytes(8, "little") * 2
    directory = entry(b"a", 0, zlib.crc32(b"first"), 0xFFFFFFFF, 0xFFFFFFFF, extra=extra)
    assert read(body + directory + end(1, len(directory), len(body))) == {"a": b"first"}


def test_a_place_beyond_4_gibibytes_is_read_as_it_is_said():
    """As torch writes what lies beyond: sizes as ever, the place in the 64-bit field, wide sums."""
    body = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 8, 0, 0, 0x21, 0, 0, 0, 1, 0) + b"afirst"
    body += b"PK\7\x08" + struct.pack("<LQQ", zlib.crc32(b"first"), 5, 5)
    said = {"crc": zlib.crc32(b"first"), "stored": 5, "size": 5, "flags": 8}
    for place, works in ((0, True), (1, False), (2**63, False)):
        extra = b"\1\0\x08\0" + place.to_bytes(8, "little")
        directory = entry(b"a", 0xFFFFFFFF, **said, extra=extra)
        raw = body + directory + end(1, len(directory), len(body))
        if works:
            assert read(raw) == {"a": b"first"}
        else:
            with pytest.raises(Malformed):
                read(raw)


@given(st.binary(max_size=100))
def test_no_bytes_do_anything_else_than_fail(raw):
    for whole in (raw, raw + end(1, 60, 0), raw + end(1, len(raw), 0)):
        with contextlib.suppress(*BAD):
            read(whole)
