"""What an interrupted conversion has finished: kept beside its folder, and taken over by a run that
would write the very same bytes.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import blob
from bake import tree
from bake.checkpoint.folder import Shard
from bake.checkpoint.writing import Planned
from blob.files import replace
from serve import __version__

STAMP = ".conversion.json"
# Whose code says what a tensor becomes.
CODE = (Path(__file__).parent, Path(blob.__file__).parent)


def identity(
    shards: Iterable[Shard], settings: Mapping[str, Any], dtype: str, files: Sequence[Planned]
) -> bytes:
    """One digest of all that decides what a run writes: its source as it lies on the disk, the
    config it is read by, names, shapes and types of what it becomes, and our own code.

    A file's times and number are in it, as its size alone stays when a number in it changes.
    """
    told = {
        "code": code(),
        "config": settings,
        "dtype": dtype,
        "headers": [hashlib.sha256(file.header).hexdigest() for file in files],
        "preheat": __version__,
        "sources": sorted([str(one.path.resolve()), *one.source.stamp] for one in shards),
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest().encode()


@cache
def code() -> str:
    """Digest of every module that a number goes through: between two releases it changes too."""
    digest = hashlib.sha256()
    for path in (one for folder in CODE for one in sorted(folder.rglob("*.py"))):
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def begin(dst: Path, same: bytes) -> Path:
    """Under the lock: the folder to write to, with what an earlier run of the ``same`` identity has
    finished; empty otherwise.
    """
    part = tree.beside(dst, ".part")
    stamp = part / STAMP
    ours = not part.is_symlink() and not stamp.is_symlink() and stamp.is_file()
    keep = ours and stamp.read_bytes() == same
    tree.recover(dst, keep_part=keep)
    if not keep:
        part.mkdir(parents=True)
        replace(stamp, same)
    return part


def finish(dst: Path) -> None:
    """Under the lock: the folder is whole, and takes its place. Its stamp goes last: a run that is
    killed here leaves what the next one takes over, or the folder in its place.
    """
    tree.put_in_place(dst)
    (dst / STAMP).unlink(missing_ok=True)
