"""Where a conversion may write: what stands there, and what the system said when it could not."""

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile

from bake import tree
from bake.checkpoint.folder import asked
from bake.errors import BakeError

# What a folder that was made here says of its making; only such a one is ever replaced.
RECORD = "conversion.json"
ELSEWHERE = "choose another folder"
ROOM = "make room, or choose another folder; what is done is kept, and taken over"
HINTS: Mapping[int, str] = {
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
    errno.EFBIG: "raise the limit on file sizes (ulimit -f); what is done is kept, and taken over",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
}


def unwritten(error: OSError, dst: Path) -> BakeError:
    """What the system refused, in words, and the next step."""
    said = error.strerror or str(error)
    hint = HINTS.get(error.errno or 0, ELSEWHERE)
    return BakeError(f"{error.filename or dst}: cannot be written: {said}", hint)


def check(dst: Path, src: Path, *, force: bool) -> None:
    """Whether ``dst`` may be made, or replaced.

    :raises BakeError: it may not: it is in the source, or holds it, or is somebody's.
    """
    with asked(src):
        src.resolve()
    try:
        check_apart(dst, src)
        _check_there(dst, force=force)
    except OSError as error:
        raise unwritten(error, dst) from error
    except RuntimeError as error:
        # As pathlib tells of a link to itself.
        raise BakeError(f"{dst}: {error}", ELSEWHERE) from error


def check_apart(dst: Path, src: Path) -> None:
    """Whether making ``dst`` neither removes nor changes anything at ``src``.

    :raises BakeError: it would.
    """
    if src.resolve() in (dst.resolve(), *dst.resolve().parents):
        raise BakeError(f"{dst}: is in the source {src}", ELSEWHERE)
    if dst.resolve() in src.resolve().parents:
        raise BakeError(f"{dst}: holds the source {src}", ELSEWHERE)
    if tree.is_in_work_of(src, dst):
        raise BakeError(f"{dst}: its maker works in {src}, and would remove the source", ELSEWHERE)


def check_free(dst: Path, src: Path, done: Sequence[str] = ()) -> None:
    """Whether ``dst`` may be made, and nothing has to be replaced for it. ``done`` is why it might
    be there.

    :raises BakeError: something is there, it is in the source, or holds it, or nothing can be
        written there.
    """
    if os.path.lexists(dst):
        told = "; ".join([f"{dst}: exists already", *done])
        raise BakeError(told, "choose another folder, or move it away")
    try:
        check_apart(dst, src)
    except (OSError, RuntimeError) as error:
        raise BakeError(f"{dst}: {error}", ELSEWHERE) from error
    _check_writable(dst)


def _check_writable(dst: Path) -> None:
    """What is found in an hour's search is not to be lost for want of a place."""
    above = next(one for one in dst.absolute().parents if one.exists())
    try:
        with TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise unwritten(OSError(error.errno, error.strerror), dst) from error


def free(dst: Path, src: Path) -> None:
    """Under the lock: undo what a killed maker left, and only then see whether ``dst`` is free.

    :raises BakeError: as ``check_free``; what came back by that is told.
    """
    check_free(dst, src, tree.recover(dst))


def _check_there(dst: Path, *, force: bool) -> None:
    if not dst.exists() and not dst.is_symlink():
        return
    if not (dst / RECORD).is_file() or dst.is_symlink():
        raise BakeError(
            f"{dst}: exists, and no conversion made it", "choose another folder, or move it away"
        )
    if not force:
        raise BakeError(f"{dst}: there is a converted folder already", "say --force to replace it")
