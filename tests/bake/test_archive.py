import io
import tarfile
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from bake import archive
from bake.archive import BadArchive, Limits, Member, Stream, members, pack
from bake.errors import BakeError
from tests.bake.archives import member, packed, tarred, unpacked
from tests.serve.roots import AOT, FILES, fill

SIZES = [0, 1, 511, 512, 513, 1024**2, 1024**2 + 1]
LIMITS = Limits()
LONG = "cpu/tiny/v/" + "x" * 200 + "/" + "é" * 100


def read(raw: bytes, limits: Limits = LIMITS) -> dict[str, bytes]:
    stream = Stream(io.BytesIO(raw), limits)
    return {f"{one.root}/{one.path}": b"".join(content) for one, content in members(stream, limits)}


def written(folder: Path, files: dict[str, bytes]) -> bytes:
    fill(folder, files)
    out = io.BytesIO()
    pack([(name, folder / name) for name in sorted(files)], out)
    return out.getvalue()


def test_what_is_packed_is_read_again_by_us_and_by_tarfile(tmp_path: Path) -> None:
    files = {f"cpu/tiny/v/{path}": content for path, content in FILES.items()}
    files |= {f"cpu/tiny/v/size {size}": b"\1" * size for size in SIZES} | {LONG: b"long"}
    raw = written(tmp_path, files)
    assert read(raw) == files
    assert unpacked(raw) == files


def test_the_same_files_make_the_same_bytes_whoever_made_them_and_when(tmp_path: Path) -> None:
    files = {f"cpu/tiny/v/{path}": content for path, content in FILES.items()}
    first = written(tmp_path / "a", files)
    fill(tmp_path / "b", dict(reversed(files.items())))
    for path in (tmp_path / "b").rglob("*"):
        path.chmod(0o700)
    assert written(tmp_path / "b", files) == first


def test_all_that_could_vary_is_fixed(tmp_path: Path) -> None:
    raw = written(tmp_path, {"cpu/tiny/v/a": b"a", LONG: b""})
    with tarfile.open(fileobj=io.BytesIO(zstd.decompress(raw))) as tar:
        for one in tar:
            assert (one.mode, one.uid, one.gid, one.mtime) == (0o444, 0, 0, 0)
            assert (one.uname, one.gname, one.type) == ("", "", tarfile.REGTYPE)


def test_a_member_is_known_by_its_root_and_its_path_below() -> None:
    stream = Stream(io.BytesIO(packed(tarred(member(f"cpu/tiny/v/{AOT}/model", b"x")))), LIMITS)
    ((one, content),) = ((m, b"".join(c)) for m, c in members(stream, LIMITS))
    assert one == Member("cpu/tiny/v", f"{AOT}/model", 1)
    assert content == b"x"


def test_a_file_that_a_header_cannot_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBER_BYTES", 3)
    with pytest.raises(BakeError, match="4 bytes, an archive holds 3"):
        written(tmp_path, {"cpu/tiny/v/a": b"1234"})


SOUND = member("a/b/c/d", b"x")


def pax(records: bytes) -> tuple[tarfile.TarInfo, bytes]:
    return member("././@PaxHeader", records, tarfile.XHDTYPE)


def sized(size: int) -> tuple[tarfile.TarInfo, bytes]:
    info, _ = member("a/b/c/d")
    info.size = size
    return info, b""


HOSTILE = {
    "a link": tarred(member("a/b/c/d", kind=tarfile.SYMTYPE, linkname="/etc/passwd")),
    "a hard link": tarred(SOUND, member("a/b/c/e", kind=tarfile.LNKTYPE, linkname="a/b/c/d")),
    "a folder": tarred(member("a/b/c", kind=tarfile.DIRTYPE)),
    "a pipe": tarred(member("a/b/c/d", kind=tarfile.FIFOTYPE)),
    "a device": tarred(member("a/b/c/d", kind=tarfile.CHRTYPE, devmajor=1, devminor=3)),
    "a block device": tarred(member("a/b/c/d", kind=tarfile.BLKTYPE, devmajor=8)),
    "a contiguous file": tarred(member("a/b/c/d", kind=tarfile.CONTTYPE)),
    "a sparse file": tarred(
        member("a/b/c/d", kind=tarfile.GNUTYPE_SPARSE), form=tarfile.GNU_FORMAT
    ),
    "an unknown kind": tarred(member("a/b/c/d", kind=b"Z")),
    "an old kind": tarred(member("a/b/c/d", kind=tarfile.AREGTYPE)),
    "absolute": tarred(member("/a/b/c/d")),
    "above": tarred(member("../a/b/c/d")),
    "above, later": tarred(member("a/b/c/../../../../d")),
    "above as the root": tarred(member("../../../d")),
    "a dot": tarred(member("./a/b/c/d")),
    "a root of a dot": tarred(member("a/./c/d")),
    "two slashes": tarred(member("a/b//c/d")),
    "no root": tarred(member("a/b/d")),
    "no name": tarred(member("")),
    "a hidden root": tarred(member("a/b/.c/d")),
    "the place of another import": tarred(member("a/b/c.part/d")),
    "the lock of another": tarred(member("a/b/c.lock/d")),
    "a newline": tarred(member("a/b/c/d\n")),
    "a backslash": tarred(member("a/b/c/..\\d")),
    "not UTF-8": tarred(member("a/b/c/\udcff")),
    "twice": tarred(SOUND, SOUND),
    "out of order": tarred(member("a/b/c/e"), SOUND),
    "a global header": tarred(member("g", b"11 path=a/b\n", tarfile.XGLTYPE), SOUND),
    "a GNU long name": tarred(
        member("././@LongLink", b"a/b/c/d\0", tarfile.GNUTYPE_LONGNAME), SOUND
    ),
    "two extended headers": tarred(pax(b"16 path=a/b/c/d\n"), pax(b"16 path=a/b/c/d\n"), SOUND),
    "an extended header of more": tarred(pax(b"16 path=a/b/c/d\n9 size=9\n"), SOUND),
    "an extended header of else": tarred(pax(b"9 size=9\n"), SOUND),
    "an extended header of a link": tarred(pax(b"12 linkpath=a\n"), SOUND),
    "an extended header cut": tarred(pax(b"99 path=a/b/c/d\n"), SOUND),
    "an extended header empty": tarred(pax(b""), SOUND),
    "an extended header of a megabyte": tarred(pax(b"x" * 2**20), SOUND),
    "an extended header not UTF-8": tarred(pax(b"16 path=a/b/c/\xff\n"), SOUND),
    "an extended header that leads out": tarred(pax(b"16 path=../../d\n"), SOUND),
    "an extended header alone": tarred(pax(b"16 path=a/b/c/d\n")),
    "a huge size": tarred(sized(2**60), form=tarfile.GNU_FORMAT),
    "a negative size": tarred(sized(-1), form=tarfile.GNU_FORMAT),
    "a size beyond the end": tarred(sized(4096)),
    "no end": tarred(SOUND, end=b""),
    "half an end": tarred(SOUND, end=b"\0" * 511),
    "more after the end": tarred(SOUND, end=b"\0" * 1024 + b"x" * 512),
    "a second archive": tarred(SOUND) + tarred(SOUND),
    "nothing": b"",
    "no tar": b"x" * 2048,
    "a bad checksum": bytes([1]) + tarred(SOUND)[1:],
}


@pytest.mark.parametrize("tar", HOSTILE.values(), ids=HOSTILE)
def test_what_pack_does_not_write_is_refused(tar: bytes) -> None:
    with pytest.raises(BadArchive):
        read(packed(tar))


SOUND_ARCHIVE = packed(tarred(member("a/b/c/d", bytes(range(256)) * 40), member("a/b/c/e")))


@pytest.mark.parametrize("size", range(len(SOUND_ARCHIVE)))
def test_an_archive_cut_anywhere_is_refused(size: int) -> None:
    with pytest.raises(BadArchive, match="truncated"):
        read(SOUND_ARCHIVE[:size])


@pytest.mark.parametrize("more", [b"\0", SOUND_ARCHIVE, b"x" * 2**21])
def test_an_archive_that_is_followed_by_anything_is_refused(more: bytes) -> None:
    with pytest.raises(BadArchive, match="something follows the archive"):
        read(SOUND_ARCHIVE + more)


ZEROS = packed(tarred(member("a/b/c/d", bytes(80 * 1024**2))))


def test_a_bomb_is_refused_by_its_ratio() -> None:
    assert len(ZEROS) * 1000 < 80 * 1024**2
    with pytest.raises(BadArchive, match="more than 200 times its size"):
        read(ZEROS)
    assert read(ZEROS, Limits(ratio=100_000))


def test_an_archive_that_unpacks_to_more_than_the_limit_is_refused() -> None:
    with pytest.raises(BadArchive, match=r"more than 1000 bytes\nhint: say --max-bytes"):
        read(SOUND_ARCHIVE, Limits(total_bytes=1000))


def test_an_archive_of_too_many_files_is_refused() -> None:
    with pytest.raises(BadArchive, match="more than 1 files"):
        read(SOUND_ARCHIVE, Limits(files=1))


def test_a_window_that_would_fill_memory_is_refused() -> None:
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 28})
    raw = compressor.compress(tarred(SOUND)) + compressor.flush()
    assert zstd.decompress(raw, options={zstd.DecompressionParameter.window_log_max: 28})
    with pytest.raises(BadArchive, match="not a sound zstd archive"):
        read(raw)


@given(st.binary(max_size=2000))
def test_random_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(BadArchive):
        read(raw)


@given(st.binary(max_size=2000))
def test_random_bytes_in_a_sound_frame_are_refused(tar: bytes) -> None:
    with pytest.raises(BadArchive):
        read(packed(tar))


LONG_TAR = tarred(member("a/b/c/d", b"content"), member("a/b/c/" + "e" * 120, b"more"))


@given(st.integers(0, len(LONG_TAR) - 1), st.binary(min_size=1, max_size=8))
def test_a_changed_tar_is_refused_or_holds_only_what_a_root_may(at: int, put: bytes) -> None:
    tar = LONG_TAR[:at] + put + LONG_TAR[at + len(put) :]
    try:
        found = read(packed(tar))
    except BadArchive:
        return
    for name in found:
        assert not name.startswith("/")
        assert ".." not in name.split("/")
