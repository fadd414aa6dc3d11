"""Where a conversion may write: what stands there, and what the system said when it could not."""

import errno
from collections.abc import Mapping
from pathlib import Path

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


def _check_there(dst: Path, *, force: bool) -> None:
    if not dst.exists() and not dst.is_symlink():
        return
    if not (dst / RECORD).is_file() or dst.is_symlink():
        raise BakeError(
            f"{dst}: exists, and no conversion made it", "choose another folder, or move it away"
        )
    if not force:
        raise BakeError(f"{dst}: there is a converted folder already", "say --force to replace it")
