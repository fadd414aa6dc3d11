"""A content-addressed store beside blobs: equal files of any number of blobs take their bytes once.

    <store>/<2 hex>/<62 hex>    a file, named by its SHA-256; blobs hold hard links to it
    <store>/lock                shared while a blob is written, exclusive while unused files go;
                                what it holds says that this is a store: no other is touched

A file gets its name when all of it is on the disk, and is read again before it is shared: links of
it are the same bytes, and what became of them in one blob would else be what all later ones get.
A blob on another file system gets copies.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from blob.errors import BlobError
from blob.files import opened, sync

CHUNK_BYTES = 2**20
LOCK = "lock"
MARK = b"preheat blob store 1\n"
# What writers make in a store; whatever else stands there is somebody else's.
FOLDER = re.compile(r"[0-9a-f]{2}")
ARRIVING = ".arriving-"
OURS = re.compile(r"[0-9a-f]{62}|\.arriving-.+")
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

        :raises BlobError: it cannot be written, as on a full disk; nothing of it stays. Or the
            store is a folder of somebody else's.
        """
        self._claim()
        kept = Kept(hashlib.sha256(raw).hexdigest(), len(raw))
        if not self._holds(kept):
            with self._arriving(kept) as file:
                _write(file, raw)
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

    def take(self, kept: Kept, pieces: Iterable[bytes]) -> bool:
        """Keep a file that arrives in pieces; of one that is there, none is asked for.

        :returns: whether it arrived now.
        :raises BlobError: as ``put``; or the pieces make another file, of which nothing stays.
        """
        self._claim()
        if self._holds(kept):
            return False
        hashed = hashlib.sha256()
        with self._arriving(kept) as file:
            for piece in pieces:
                hashed.update(piece)
                _write(file, piece)
            if hashed.hexdigest() != kept.sha256:
                raise BlobError(f"{kept.sha256[:12]}…: what arrived has another SHA-256")
        return True

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

        Whoever links at the same time finds the one or the other, never none.

        :raises BlobError: as ``link`` and ``put``.
        """
        self._claim()
        source = self._path(kept.sha256)
        try:
            source.parent.mkdir(parents=True, exist_ok=True)
            if self._holds(kept):
                _replace_by_link(source, path)
            elif os.path.lexists(source):
                _replace_by_link(path, source)
            else:
                with contextlib.suppress(FileExistsError):
                    # Another put it there just now; then this one stays by itself.
                    os.link(path, source)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise BlobError(f"{path}: cannot be shared: {error.strerror}") from error

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Nothing is swept meanwhile.

        :raises BlobError: there can be no store, or the folder is somebody else's.
        """
        self._claim()
        with self._locked(fcntl.LOCK_SH):
            yield

    def sweep(self) -> int:
        """Remove what no blob links to, and what writers left that were killed; tells the bytes.

        :raises BlobError: no store, or one from which nothing can be removed.
        """
        if not self._marked():
            raise _foreign(self.root)
        freed = 0
        with self._locked(fcntl.LOCK_EX):
            try:
                for path in self._files():
                    status = path.lstat()
                    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                        path.unlink()
                        freed += status.st_size
            except OSError as error:
                where = error.filename or self.root
                raise BlobError(f"{where}: cannot be swept: {error.strerror}") from error
        return freed

    def _files(self) -> Iterator[Path]:
        for folder in sorted(self.root.iterdir()):
            if FOLDER.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
                yield from (path for path in folder.iterdir() if OURS.fullmatch(path.name))

    def _marked(self) -> bool:
        """Whether the folder says that it is a store."""
        try:
            with opened(self.root / LOCK) as file:
                return file.read(len(MARK) + 1) == MARK
        except OSError:
            return False

    def _claim(self) -> None:
        """Make a store of an empty folder, or of none; two at once write the same."""
        if self._marked():
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            # Listed before the mark is looked for again: who puts a file here, marks first.
            others = any(path.name != LOCK for path in self.root.iterdir())
            if self._marked():
                return
            if others:
                raise _foreign(self.root)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(self.root / LOCK, flags, 0o644)
            try:
                # A writer that was killed here, or a disk that was full, left a part of it.
                if not MARK.startswith(os.pread(descriptor, len(MARK) + 1, 0)):
                    raise _foreign(self.root)
                os.pwrite(descriptor, MARK, 0)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise BlobError(f"{self.root}: no store: {error.strerror}") from error

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
        # Over a network only who could write may lock out others.
        access = os.O_RDWR if how == fcntl.LOCK_EX else os.O_RDONLY
        try:
            descriptor = os.open(self.root / LOCK, access | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise BlobError(f"{self.root}: no store: {error.strerror}") from error
        try:
            try:
                fcntl.flock(descriptor, how)
            except OSError as error:
                raise BlobError(f"{self.root}: cannot be locked: {error.strerror}") from error
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
            descriptor, name = tempfile.mkstemp(prefix=ARRIVING, dir=path.parent)
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


def _write(file: int, raw: memoryview | bytes) -> None:
    """All of ``raw``, in as many writes as the system takes."""
    view = memoryview(raw)
    while view:
        view = view[os.write(file, view) :]


def _foreign(root: Path) -> BlobError:
    what = f"{root}: no store: there is no {LOCK} of ours in it"
    return BlobError(what, "choose another folder with --store")


def _replace_by_link(source: Path, path: Path) -> None:
    """Let ``path`` be a link to ``source``, at no time missing.

    :raises OSError: it cannot be; ``path`` is what it was.
    """
    # Where a sweep finds it, if it stays in a store.
    beside = path.with_name(f"{ARRIVING}{os.getpid()}-{threading.get_ident()}")
    beside.unlink(missing_ok=True)
    try:
        os.link(source, beside)
        beside.replace(path)
    finally:
        # Links of one file: renaming one to the other does nothing.
        beside.unlink(missing_ok=True)


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
