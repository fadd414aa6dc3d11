"""Where the bytes of a checkpoint are: a mapped file, bytes, anything that seeks, or a server.

A parser asks for ranges and never learns which it is, so each gives the same answer. A range
outside the file is the file's fault, and said so.
"""

import hashlib
import io
import mmap
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from bake.errors import BakeError, Malformed
from blob.files import opened

# Up to here a range of a mapped file is read, not mapped.
SHORT_BYTES = 512
# What is read at once to be digested.
PIECE_BYTES = 1024**2


class Source(Protocol):
    """Bytes that can be asked for by range."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def size(self) -> int:
        """Bytes in all."""

    def read(self, begin: int, end: int) -> memoryview:
        """Exactly the bytes from ``begin`` to ``end``; without a copy where that is possible.

        :raises Malformed: the range is not within the source.
        :raises BakeError: it cannot be read.
        """


class Bytes:
    """Bytes in memory, a mapped file among them."""

    def __init__(self, raw: bytes | bytearray | memoryview | mmap.mmap, name: str = "") -> None:
        self.name = name or "bytes"
        self.view = memoryview(raw)
        self.size = len(self.view)

    def read(self, begin: int, end: int) -> memoryview:
        """A view, nothing is copied."""
        check_range(self, begin, end)
        return self.view[begin:end]

    def forget(self, begin: int, end: int) -> None:
        """Bytes that were used up; these are nobody's to give back."""

    @property
    def stamp(self) -> tuple[int, ...]:
        """What changes with the bytes: size, times and number of a file; nothing of memory."""
        return ()

    def check(self) -> None:
        """Whether the bytes are still those that were there first.

        :raises BakeError: they are not.
        """

    def sha256(self, stopped: Callable[[], bool]) -> str:
        """Digest of all bytes; read once more, and given up as soon as ``stopped``."""
        digest = hashlib.sha256()
        for begin in range(0, self.size, PIECE_BYTES):
            if stopped():
                return ""
            digest.update(self._piece(begin, min(begin + PIECE_BYTES, self.size)))
        return digest.hexdigest()

    def _piece(self, begin: int, end: int) -> memoryview | bytes:
        return self.view[begin:end]


class Mapped(Bytes):
    """A plain file, mapped. Short ranges are read instead: where few bytes are wanted here and
    there, as of a ZIP's local headers, a read costs a third of a fault on a page of a new map.
    """

    def __init__(self, whole: mmap.mmap, descriptor: int, name: str) -> None:
        super().__init__(whole, name)
        self._whole = whole
        self._descriptor = os.dup(descriptor)
        self._stamp = _stamp(self._descriptor)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, begin: int, end: int) -> memoryview:
        """A view, or a copy of a short range."""
        if end - begin > SHORT_BYTES:
            return super().read(begin, end)
        check_range(self, begin, end)
        if len(got := os.pread(self._descriptor, end - begin, begin)) != end - begin:
            raise Malformed(self.name, f"ends at {begin + len(got)}, was {self.size} long")
        return memoryview(got)

    @property
    def stamp(self) -> tuple[int, ...]:
        """Size, times of the last change and number, as they were when it was mapped."""
        return self._stamp

    def check(self) -> None:
        """Whether nobody has written to it: what a map of it shows would be neither old nor new,
        and beyond the end of one that was cut off lies no error, but the end of this process.
        """
        if _stamp(self._descriptor) != self._stamp:
            raise BakeError(
                f"{self.name}: changed while it was read", "start again when nobody writes to it"
            )

    def _piece(self, begin: int, end: int) -> bytes:
        # Not by the map: its pages would count as memory of ours.
        return os.pread(self._descriptor, end - begin, begin)

    def forget(self, begin: int, end: int) -> None:
        """Bytes that were used up stop counting as memory of ours."""
        first, end = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, min(end, self.size)
        if first < end:
            self._whole.madvise(mmap.MADV_DONTNEED, first, end - first)


class Seekable:
    """A file that seeks; bytes are copied."""

    def __init__(self, file: BinaryIO | io.RawIOBase, name: str = "") -> None:
        self.name = name or "file"
        self.file = file
        self.size = file.seek(0, os.SEEK_END)

    def read(self, begin: int, end: int) -> memoryview:
        """As many reads as it takes."""
        check_range(self, begin, end)
        self.file.seek(begin)
        got = bytearray()
        while len(got) < end - begin:
            some = self.file.read(end - begin - len(got))
            if not some:
                raise Malformed(self.name, f"ends at {begin + len(got)}, was {self.size} long")
            got += some
        return memoryview(got)


@contextmanager
def mapped(path: Path) -> Iterator[Bytes]:
    """A plain file, mapped: nothing is read before it is looked at. Links are followed.

    :raises BakeError: it cannot be opened, or is no plain file.
    """
    try:
        # Resolving asks for each folder on the way, and mostly there is no link.
        with opened(path.resolve() if path.is_symlink() else path) as file:
            if not (size := os.fstat(file.fileno()).st_size):
                yield Bytes(b"", str(path))
                return
            # Not closed: arrays over it may be alive, and it goes when the last of them does.
            whole = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
            source = Mapped(whole, file.fileno(), str(path))
    except OSError as error:
        raise BakeError(f"{path}: cannot be read: {error.strerror}") from error
    except RuntimeError as error:
        # As pathlib tells of a link to itself.
        raise BakeError(f"{path}: cannot be read: {error}") from error
    yield source


def _stamp(descriptor: int) -> tuple[int, ...]:
    told = os.fstat(descriptor)
    return (told.st_size, told.st_mtime_ns, told.st_ctime_ns, told.st_ino, told.st_dev)


def check_range(source: Source, begin: int, end: int) -> None:
    """Whether there are bytes from ``begin`` to ``end``.

    :raises Malformed: there are not.
    """
    if not 0 <= begin <= end <= source.size:
        raise Malformed(
            source.name, f"wants bytes {begin} to {end} of a file of {source.size}", begin
        )
