"""Files that are whole or not there: written beside, synced, renamed; plain ones only are read."""

import errno
import hashlib
import io
import os
import re
import stat
from pathlib import Path

MAX_PATH_BYTES = 1024
MAX_NAME_BYTES = 255
MAX_TENSOR_NAME_BYTES = 512
# Stays in a core's second-level cache between being read and being hashed.
CHUNK_BYTES = 256 * 1024
# Below this a name could move a terminal's cursor; a backslash is a separator elsewhere.
FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")
# A link is refused, not followed; a pipe that took a file's name does not block us.
OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def check_path(path: str) -> str:
    """``path`` if it is a plain one below a root.

    :raises ValueError: saying what about it is not allowed.
    """
    try:
        raw = path.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{path!r} is not UTF-8") from error
    if FORBIDDEN.search(path):
        raise ValueError(f"{path!r} holds a control character or a backslash")
    if len(raw) > MAX_PATH_BYTES:
        raise ValueError(f"{path[:40]!r}… is longer than {MAX_PATH_BYTES} bytes")
    for part in path.split("/"):
        if part in ("", ".", ".."):
            raise ValueError(f"{path!r} is not a plain path below its root")
        if len(part.encode()) > MAX_NAME_BYTES:
            raise ValueError(f"{part[:40]!r}… is longer than {MAX_NAME_BYTES} bytes")
    return path


def check_name(name: str, most: int = MAX_TENSOR_NAME_BYTES) -> str:
    """``name`` if a tensor may have it: none that could be taken for a path, of ``most`` bytes.

    :raises ValueError: saying what about it is not allowed.
    """
    if not name or name.startswith(".") or "/" in name or ".." in name or FORBIDDEN.search(name):
        raise ValueError(f"{name[:60]!r} is no name of a tensor: empty, or like a path")
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"{name[:60]!r} is no name of a tensor: not UTF-8") from error
    if size > most:
        raise ValueError(f"{name[:40]!r}… is longer than {most} bytes")
    return name


def printable(text: object, most: int = 200) -> str:
    """``text`` of anybody's for a terminal: what is no printable character stands as an escape."""
    return repr(str(text)[:most])[1:-1]


def opened(path: Path) -> io.FileIO:
    """A plain file, unbuffered.

    :raises OSError: it cannot be opened, is a link, or no plain file.
    """
    file = io.FileIO(path, opener=lambda name, _: os.open(name, OPEN_FLAGS))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a plain file")
    return file


def digest(path: Path, most: int) -> tuple[str, int]:
    """SHA-256 and size of a plain file; one larger than ``most`` is not read at all.

    :raises OSError: as ``opened``.
    """
    with opened(path) as file:
        if (there := os.fstat(file.fileno()).st_size) > most:
            return "", there
        sha256, buffer, total = hashlib.sha256(), bytearray(CHUNK_BYTES), 0
        # The interpreter's lock is off while a chunk is read and while it is hashed.
        while got := file.readinto(buffer):
            sha256.update(memoryview(buffer)[:got])
            total += got
    return sha256.hexdigest(), total


def replace(path: Path, raw: bytes, mode: int = 0o444) -> None:
    """Write ``path`` so that it holds ``raw`` or what it held before, even after a power cut."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(folder: Path) -> None:
    """Make the names in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
