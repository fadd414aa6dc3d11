"""The folder of a baked root while it is made: one maker at a time, beside the root, then whole.

    R.lock      flock of the maker; stays, as its removal would let two in
    R.part      what is being made: never used by anyone, removed by the next maker
    R.old       the root that is being replaced, for as long as two renames take
    R           what serves

Knows no contents.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from bake.errors import BakeError, Busy
from blob.files import sync

SUFFIXES = (".lock", ".part", ".old")
SEALED_FILE = 0o444
SEALED_FOLDER = 0o555


def beside(root: Path, suffix: str) -> Path:
    """``R.part`` and the like."""
    return root.with_name(root.name + suffix)


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Be the only maker of ``root``; the kernel lets go when this process ends, however it does.

    :raises Busy: another process is making it; its number is named.
    :raises BakeError: where makers work stands what no maker left: it would be removed.
    """
    path = beside(root, ".lock")
    _check_beside(root, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    with os.fdopen(descriptor, "r+") as file:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(root, file.read(20).strip() or "unknown") from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _check_beside(root: Path, lock: Path) -> None:
    """Each maker that ever was here has left its lock."""
    others = [] if lock.exists() else [beside(root, ".part"), beside(root, ".old")]
    for other in others:
        if other.exists() or other.is_symlink():
            raise BakeError(f"{other}: exists, and nothing of ours made it", "move it away first")


def recover(root: Path, *, keep_part: bool = False) -> list[str]:
    """Under the lock: undo what a maker that was killed left behind. Tells what was done.

    ``keep_part``: its maker knows how to go on with it.
    """
    done = []
    part, old = beside(root, ".part"), beside(root, ".old")
    if old.exists():
        if root.exists():
            remove(old)
            done.append(f"removed {old}: it was replaced, but not yet removed")
        else:
            old.rename(root)
            done.append(f"{root} is back: its replacement was interrupted")
    if part.exists() and not keep_part:
        remove(part)
        done.append(f"removed {part}: making it was interrupted")
    return done


def seal(root: Path) -> None:
    """Make every file and folder of ``root`` read-only; what a link leads to is left alone."""
    for folder, _, names in os.walk(root):
        for path in (Path(folder) / name for name in names):
            if not path.is_symlink():
                path.chmod(SEALED_FILE)
        Path(folder).chmod(SEALED_FOLDER)


def put_in_place(root: Path) -> None:
    """Under the lock: ``R.part`` becomes ``R``. What was ``R`` is moved aside, then removed."""
    part, old = beside(root, ".part"), beside(root, ".old")
    if root.exists():
        root.rename(old)
    part.rename(root)
    sync(root.parent)
    remove(old)


def remove(tree: Path) -> None:
    """Remove ``tree``, sealed or not.

    :raises BakeError: it cannot be, or it is a link: what that leads to is not ours.
    """
    if tree.is_symlink():
        raise BakeError(f"{tree} is a link: not removed", f"look where it leads, then rm {tree}")
    if not tree.exists():
        return
    # A name cannot be taken out of a sealed folder, except by root.
    for folder, _, _ in os.walk(tree):
        Path(folder).chmod(0o755)
    try:
        shutil.rmtree(tree)
    except OSError as error:
        raise BakeError(f"{tree}: cannot be removed: {error.strerror}") from error


@contextlib.contextmanager
def unsealed(folder: Path) -> Iterator[None]:
    """Let one file be put into a sealed folder."""
    mode = folder.stat().st_mode & 0o7777
    folder.chmod(mode | 0o200)
    try:
        yield
    finally:
        folder.chmod(mode)
