"""A content-addressed store beside blobs: equal files of any number of blobs take their bytes once.

    <store>/<2 hex>/<62 hex>    a file, named by its SHA-256; blobs hold hard links to it
    <store>/lock                shared while a blob is written, exclusive while unused files go

A file gets its name when all of it is on the disk, and is read again before it is shared: links of
it are the same bytes, and what became of them in one blob would else be what all later ones get.
A blob on another file system gets copies.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from blob.errors import BlobError
from blob.files import opened, sync

CHUNK_BYTES = 2**20
SEALED = 0o444
# Another file system, one without links, or as many as there can be.
NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK)


@dataclass(frozen=True)
class Kept:
    """A file of the store."""

    sha256: str
    size: int


class Store:
    """Keeps files by what they hold."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, raw: memoryview | bytes) -> Kept:
        """Keep ``raw``.

        :raises BlobError: it cannot be written, as on a full disk; nothing of it stays.
        """
        kept = Kept(hashlib.sha256(raw).hexdigest(), len(raw))
        if not self._holds(kept):
            with self._arriving(kept) as file:
                view = memoryview(raw)
                while view:
                    view = view[os.write(file, view) :]
        return kept

    def put_file(self, path: Path) -> Kept:
        """Keep a copy of a plain file.

        :raises BlobError: it cannot be read, or the copy not be written.
        """
        try:
            with opened(path) as file:
                raw = file.readall()
        except OSError as error:
            raise BlobError(f"{path}: cannot be read: {error.strerror}") from error
        return self.put(raw)

    def link(self, kept: Kept, path: Path) -> None:
        """Give a blob the file, at ``path``.

        :raises BlobError: it cannot be; a whole file or none stands there.
        """
        source = self._path(kept.sha256)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, path)
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                _copy(source, path)
        except OSError as error:
            raise BlobError(f"{path}: cannot be written: {error.strerror}") from error

    def adopt(self, kept: Kept, path: Path) -> None:
        """Share a file whose digest was checked: keep it, or link it to what is kept already.

        :raises BlobError: as ``link``.
        """
        source = self._path(kept.sha256)
        try:
            source.parent.mkdir(parents=True, exist_ok=True)
            if self._holds(kept):
                path.unlink()
                self.link(kept, path)
                return
            with contextlib.suppress(FileExistsError):
                # Another put it there just now; then this one stays by itself.
                source.unlink(missing_ok=True)
                os.link(path, source)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise BlobError(f"{path}: cannot be shared: {error.strerror}") from error

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Nothing is swept meanwhile."""
        with self._locked(fcntl.LOCK_SH):
            yield

    def sweep(self) -> int:
        """Remove what no blob links to, and what writers left that were killed; tells the bytes."""
        freed = 0
        with self._locked(fcntl.LOCK_EX):
            for path in self.root.glob("??/*"):
                status = path.lstat()
                if status.st_nlink == 1:
                    freed += status.st_size
                    path.unlink()
        return freed

    def _holds(self, kept: Kept) -> bool:
        """Whether the file is there and is what its name says: a damaged one is no file of ours."""
        try:
            with opened(self._path(kept.sha256)) as file:
                if os.fstat(file.fileno()).st_size != kept.size:
                    return False
                return hashlib.file_digest(file, "sha256").hexdigest() == kept.sha256
        except OSError:
            return False

    def _path(self, sha256: str) -> Path:
        return self.root / sha256[:2] / sha256[2:]

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self.root / "lock", flags, 0o644)
        except OSError as error:
            raise BlobError(f"{self.root}: no store: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, how)
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _arriving(self, kept: Kept) -> Iterator[int]:
        """A file to be filled, which then takes its name; two at once make the same one."""
        path = self._path(kept.sha256)
        damaged = os.path.lexists(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=".arriving-", dir=path.parent)
        except OSError as error:
            raise BlobError(f"{path.parent}: cannot be written: {error.strerror}") from error
        try:
            yield descriptor
            os.fchmod(descriptor, SEALED)
            os.fsync(descriptor)
            if (size := os.fstat(descriptor).st_size) != kept.size:
                raise BlobError(f"{name}: expected {kept.size} bytes, wrote {size}")
            if not damaged:
                _name(Path(name), path)
            else:
                Path(name).replace(path)
            sync(path.parent)
        except OSError as error:
            Path(name).unlink(missing_ok=True)
            hint = "make room, then pack again: what is whole is used again"
            raise BlobError(f"{path}: cannot be written: {error.strerror}", hint) from error
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)


def _name(file: Path, path: Path) -> None:
    """Call ``file`` ``path``, unless another has just put the same there: blobs then share that."""
    try:
        with contextlib.suppress(FileExistsError):
            os.link(file, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        file.replace(path)
        return
    file.unlink()


def _copy(source: Path, path: Path) -> None:
    """``source`` as a new file at ``path``, on the disk as a whole, or none."""
    try:
        with opened(source) as file, path.open("xb") as copy:
            shutil.copyfileobj(file, copy, CHUNK_BYTES)
            copy.flush()
            os.fchmod(copy.fileno(), SEALED)
            os.fsync(copy.fileno())
    except FileExistsError:
        raise
    except BaseException:
        path.unlink(missing_ok=True)
        raise
