"""Ships folders: many ↔ one ``tar.zst``, the same bytes for the same folders.

    <target>/<model>/<variant>/<path>    every file of every baked root, in the order of these names
    <blob>/<path>                        every file of a blob

The writer is tarfile's PAX form with all that varies fixed. The reader takes what the writer makes
and nothing else: plain files, in order, each name once. It never holds more than a few megabytes,
writes only below ``.R.preheat.part``, and a root gets its name when all of it was checked. Knows no
manifest: ``bake.shipping`` compares one with what arrived.
"""

import io
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from backports import zstd

from bake import tree
from bake.errors import BakeError
from blob.files import check_path

# Tried by hand on vLLM's caches: 3 makes twice as much, 12 hardly less and takes twice as long.
# Threads make other bytes than none.
LEVEL = 9
# Folders above a baked root in an archive, it included.
DEPTH = 3
OPTIONS: Mapping[int, int] = {
    zstd.CompressionParameter.checksum_flag: 1,
    zstd.CompressionParameter.nb_workers: 0,
}
# 128 MiB is what decoders take by default; level 9 makes windows of 4 MiB.
WINDOW: Mapping[int, int] = {zstd.DecompressionParameter.window_log_max: 27}

BLOCK = tarfile.BLOCKSIZE
CHUNK = 1024**2
FILE_MODE = 0o444
# A size that the header's octal digits can hold, so that no file needs a second form.
MAX_MEMBER_BYTES = 8 * 1024**3 - 1
MAX_PAX_BYTES = 4096
PAX_PATH = re.compile(rb"(\d+) path=([^\n]+)\n")
# The compressor may take this much out of nothing before its ratio is looked at.
RATIO_FROM_BYTES = 64 * 1024**2


class BadArchive(BakeError):
    """The archive is not one that ``cache-export`` writes, or it was damaged."""


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to: more is refused before it is written."""

    total_bytes: int = 64 * 1024**3
    files: int = 200_000
    ratio: int = 200


@dataclass(frozen=True)
class Member:
    """One file of an archive; ``root`` is the folder that was shipped, ``path`` lies in it."""

    root: str
    path: str
    size: int


def pack(files: Iterable[tuple[str, Path]], out: IO[bytes], level: int = LEVEL) -> None:
    """Write ``(name, file)`` pairs, sorted by name, to ``out``.

    :raises BakeError: a file that the form cannot hold.
    :raises OSError: a file cannot be read, or ``out`` not be written.
    """
    options = {**OPTIONS, zstd.CompressionParameter.compression_level: level}
    with (
        zstd.ZstdFile(out, mode="w", options=options) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as tar,
    ):
        for name, path in files:
            with path.open("rb") as file:
                size = file.seek(0, io.SEEK_END)
                file.seek(0)
                if size > MAX_MEMBER_BYTES:
                    raise BakeError(f"{path}: {size} bytes, an archive holds {MAX_MEMBER_BYTES}")
                tar.addfile(_info(name, size), file)


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, FILE_MODE
    return info


class Stream:
    """The decompressed bytes of one zstd frame, counted, and never more of them than asked for.

    :raises BadArchive: damaged, truncated, followed by something else, or larger than ``limits``.
    """

    def __init__(self, file: IO[bytes], limits: Limits) -> None:
        self._file = file
        self._limits = limits
        self._decoder = zstd.ZstdDecompressor(options=WINDOW)
        self.read_bytes = 0
        self.made_bytes = 0

    def read(self, size: int) -> bytes:
        """``size`` bytes, or fewer at the end."""
        parts: list[bytes] = []
        while size and (part := self._some(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def exactly(self, size: int) -> bytes:
        """``size`` bytes."""
        data = self.read(size)
        if len(data) != size:
            raise BadArchive("the archive ends in the middle of a file", "get it again")
        return data

    def _some(self, size: int) -> bytes:
        while not self._decoder.eof:
            data = b""
            if self._decoder.needs_input and not (data := self._file.read(CHUNK)):
                raise BadArchive("the archive is truncated", "get it again")
            self.read_bytes += len(data)
            try:
                part = self._decoder.decompress(data, min(size, CHUNK))
            except zstd.ZstdError as error:
                raise BadArchive(f"not a sound zstd archive: {error}", "get it again") from error
            if part:
                self._count(len(part))
                return part
        if self._decoder.unused_data or self._file.read(1):
            raise BadArchive("something follows the archive")
        return b""

    def _count(self, size: int) -> None:
        self.made_bytes += size
        if self.made_bytes > self._limits.total_bytes:
            raise BadArchive(
                f"unpacks to more than {self._limits.total_bytes} bytes",
                "say --max-bytes if you know where it comes from",
            )
        over = self.made_bytes - RATIO_FROM_BYTES
        if over > self.read_bytes * self._limits.ratio:
            raise BadArchive(f"unpacks to more than {self._limits.ratio} times its size")


def members(
    stream: Stream, limits: Limits, depth: int = DEPTH
) -> Iterator[tuple[Member, Iterator[bytes]]]:
    """Every file in turn, with its bytes; those must be taken before the next.

    The first ``depth`` folders of a name are the root it belongs to.

    :raises BadArchive: anything that ``pack`` does not write.
    """
    before, count = "", 0
    while header := _header(stream):
        count += 1
        if count > limits.files:
            raise BadArchive(f"holds more than {limits.files} files")
        name = _name(header)
        if name <= before:
            raise BadArchive(f"{name!r} stands twice or out of order")
        before = name
        yield _member(name, header.size, depth), _content(stream, header.size)
        stream.exactly(-header.size % BLOCK)


def _header(stream: Stream) -> tarfile.TarInfo | None:
    """The next plain file's header, under its whole name; none at the archive's end."""
    info = _block(stream)
    if info is None:
        _only_zeros(stream)
        return None
    longer = None
    if info.type == tarfile.XHDTYPE:
        longer = _pax_path(stream, info.size)
        info = _block(stream)
    if info is None or info.type != tarfile.REGTYPE:
        what = "nothing" if info is None else f"{info.name!r} of type {info.type!r}"
        raise BadArchive(
            f"expected a plain file, got {what}", "only cache-export's own form is read"
        )
    if not 0 <= info.size <= MAX_MEMBER_BYTES:
        raise BadArchive(f"{info.name!r} claims {info.size} bytes")
    info.name = longer if longer is not None else info.name
    return info


def _block(stream: Stream) -> tarfile.TarInfo | None:
    try:
        return tarfile.TarInfo.frombuf(stream.exactly(BLOCK), "utf-8", "strict")
    except tarfile.HeaderError as error:
        if "end of file header" in str(error):
            return None
        raise BadArchive(f"not a tar archive that we wrote: {error}") from error
    except (ValueError, OverflowError) as error:
        raise BadArchive(f"not a tar archive that we wrote: {error}") from error


def _pax_path(stream: Stream, size: int) -> str:
    """The one record that ``pack`` ever writes: the name that did not fit a header."""
    if not 0 < size <= MAX_PAX_BYTES:
        raise BadArchive(f"an extended header of {size} bytes")
    found = PAX_PATH.fullmatch(stream.exactly(size))
    stream.exactly(-size % BLOCK)
    if not found or int(found[1]) != size:
        raise BadArchive("an extended header that holds more than a name")
    try:
        return found[2].decode()
    except UnicodeDecodeError as error:
        raise BadArchive(f"the name {found[2]!r} is not UTF-8") from error


def _only_zeros(stream: Stream) -> None:
    """The second zero block and the padding, then the end of the frame."""
    while data := stream.read(CHUNK):
        if data.strip(b"\0"):
            raise BadArchive("something follows the last file")


def _name(header: tarfile.TarInfo) -> str:
    try:
        return check_path(header.name)
    except ValueError as error:
        raise BadArchive(f"a name that no root can hold: {error}") from error


def _member(name: str, size: int, depth: int) -> Member:
    parts = name.split("/", depth)
    if len(parts) <= depth:
        form = "<target>/<model>/<variant>/<file>" if depth == DEPTH else "<blob>/<file>"
        raise BadArchive(f"{name!r} is not {form}")
    if any(part.startswith(".") or part.endswith(tree.SUFFIXES) for part in parts[:depth]):
        raise BadArchive(f"{name!r}: no root can have that name")
    return Member("/".join(parts[:depth]), parts[depth], size)


def _content(stream: Stream, size: int) -> Iterator[bytes]:
    while size:
        data = stream.exactly(min(size, CHUNK))
        size -= len(data)
        yield data
