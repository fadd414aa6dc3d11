"""A folder while it is made: one maker at a time, beside where it will be, then whole.

    .R.preheat.lock     flock of the maker; stays, as its removal would let two in
    .R.preheat.part     what is being made: never used by anyone, removed by the next maker
    .R.preheat.old      what is being replaced, for as long as two renames take
    R                   what was made: a baked root, a checkpoint

Names that nobody else gives: ``R.old`` is somebody's backup, and ``Cargo.lock`` no lock of ours.
Knows no contents.
"""

import contextlib
import fcntl
import io
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from bake.errors import BakeError, Busy
from blob.files import sync

SUFFIXES = (".lock", ".part", ".old")
# All that a maker ever writes into a lock.
HOLDER = re.compile(r"([0-9]{1,20}\n)?")
AWAY = "move it away first"
LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
SEALED_FILE = 0o444
SEALED_FOLDER = 0o555


def beside(root: Path, suffix: str) -> Path:
    """``.R.preheat.part`` and the like."""
    return root.with_name(f".{root.name}.preheat{suffix}")


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Be the only maker of ``root``; the kernel lets go when this process ends, however it does.

    :raises Busy: another process is making it; its number is named.
    :raises BakeError: where makers work stands what no maker left: it would be removed.
    """
    path = beside(root, ".lock")
    _check_beside(root, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "r+b", 0, opener=lambda name, _: os.open(name, LOCK_FLAGS, 0o644)) as file:
        holder = _holder(path, file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(root, holder or "unknown") from error
        file.truncate(0)
        os.pwrite(file.fileno(), f"{os.getpid()}\n".encode(), 0)
        yield


def _holder(path: Path, file: io.FileIO) -> str:
    """Who holds, or last held, the lock: nothing is written to a file that says anything else."""
    plain = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    said = file.read(32).decode("latin-1") if plain else "?"
    if not HOLDER.fullmatch(said):
        raise BakeError(f"{path}: is no lock of ours, and stands where one goes", AWAY)
    return said.strip()


def _check_beside(root: Path, lock: Path) -> None:
    """Each maker that ever was here has left its lock."""
    others = [] if lock.exists() else [beside(root, ".part"), beside(root, ".old")]
    for other in others:
        if other.exists() or other.is_symlink():
            raise BakeError(f"{other}: exists, and nothing of ours made it", AWAY)


def is_in_work_of(path: Path, root: Path) -> bool:
    """Whether ``path`` is, or lies in, what a maker of ``root`` removes or writes to."""
    near = [beside(root, suffix).resolve() for suffix in SUFFIXES]
    return any(one in (path.resolve(), *path.resolve().parents) for one in near)


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


def settle(folder: Path) -> None:
    """Make the files of ``folder`` survive a power cut, and their names: of copies nothing does."""
    for path in (one for one in folder.rglob("*") if one.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync(folder)


def put_in_place(root: Path, made: Path | None = None) -> None:
    """Under the lock: what was made becomes ``R``. What was ``R`` is moved aside, then removed.

    ``made`` is a folder in ``.R.preheat.part``, of which nothing else stays.
    """
    part, old = beside(root, ".part"), beside(root, ".old")
    if root.exists():
        root.rename(old)
    (made or part).rename(root)
    sync(root.parent)
    remove(old)
    if made:
        remove(part)


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
