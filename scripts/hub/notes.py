"""huggingface_hub's notes beside what it downloads: when they may be removed, and which.

They lie in ``.cache/huggingface`` of the folder that is filled. In a home directory the library's
own cache and the user's token have that very name, so nothing is removed that was not made here.
"""

from collections.abc import Iterable
from pathlib import Path

NOTES = Path(".cache") / "huggingface"
SUFFIXES = (".metadata", ".lock")
# What the library puts into the folder itself.
MARKS = {".gitignore", ".gitignore.lock", "CACHEDIR.TAG"}


def foreign(folder: Path) -> Path | None:
    """What shows that the notes would lie in the library's own cache; none where they would not."""
    from huggingface_hub import constants

    notes = folder / NOTES
    if notes.resolve() in {
        Path(constants.HF_HOME).resolve(),
        Path(constants.HF_HUB_CACHE).resolve(),
    }:
        return notes
    others = notes.iterdir() if notes.is_dir() else ()
    return next((one for one in others if one.name not in MARKS | {"download"}), None)


def clear(folder: Path, paths: Iterable[str]) -> None:
    """Remove the notes on ``paths``, and the folders that are empty then."""
    notes = folder / NOTES
    for path in paths:
        note = notes / "download" / path
        for suffix in SUFFIXES:
            note.with_name(note.name + suffix).unlink(missing_ok=True)
    inner = sorted((p for p in (notes / "download").rglob("*") if p.is_dir()), reverse=True)
    for empty in (*inner, notes / "download", notes, notes.parent):
        if (
            empty.is_symlink()
            or not empty.is_dir()
            or not {p.name for p in empty.iterdir()} <= MARKS
        ):
            continue
        if empty.is_relative_to(notes):
            for mark in empty.iterdir():
                mark.unlink()
        elif any(empty.iterdir()):
            continue
        empty.rmdir()
