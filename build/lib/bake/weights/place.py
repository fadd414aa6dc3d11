"""Where a blob may go: what stands there is replaced when it is a blob, and never a store."""

from pathlib import Path

from bake import tree
from bake.errors import BakeError
from blob.manifest import NAME

ELSEWHERE = "choose another folder with --out or --root, or another store with --store"


def check(folder: Path, store: Path, *, force: bool) -> None:
    """Whether a blob may be made, or put, at ``folder``.

    :raises BakeError: as ``check_apart``; or what stands there is no blob, or a blob without
        ``force``.
    """
    check_apart(folder, store)
    try:
        _check_there(folder, force=force)
    except OSError as error:
        raise BakeError(f"{folder}: cannot be read: {error.strerror}", ELSEWHERE) from error


def check_apart(folder: Path, store: Path) -> None:
    """Whether ``folder``, and what its maker puts beside it, is neither in a store nor around one.

    :raises BakeError: it is; making a blob there would remove files of others.
    """
    root = store.resolve()
    for suffix in ("", *tree.SUFFIXES):
        near = (tree.beside(folder, suffix) if suffix else folder).resolve()
        if near == root or root in near.parents or near in root.parents:
            raise BakeError(f"{folder}: is not apart from the store {store}", ELSEWHERE)


def _check_there(folder: Path, *, force: bool) -> None:
    if not folder.exists() and not folder.is_symlink():
        return
    # Only what a pack made is ever replaced: --out, or an archive, could name anything.
    if not (folder / NAME).is_file() or folder.is_symlink():
        raise BakeError(f"{folder}: exists and is no blob", "choose another folder")
    if not force:
        raise BakeError(f"{folder}: there is a blob already", "say --force to replace it")
