"""The lock file of a download: one commit, and every file's size and digests.

Knows nothing of networks. The hub tells a sha256 for what lies in LFS and git's own id (sha1 over a
header and the bytes) for the rest; the lock keeps a sha256 of each, so that it can be checked
without the hub.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

SCHEMA = 1
NAME = "download.lock.json"
BLOCK = 2**20


class BadLock(ValueError):
    """A lock file that is none."""


@dataclass(frozen=True)
class Told:
    """One file as the hub tells it: bytes, and its digest, of one of two kinds."""

    path: str
    size: int
    kind: str
    digest: str


@dataclass(frozen=True)
class Held:
    """One file as it lies here; ``told`` is what the hub said of it, as ``kind:digest``."""

    path: str
    size: int
    sha256: str
    told: str


@dataclass(frozen=True)
class Lock:
    """What was downloaded. ``asked`` is the revision that was asked for, ``commit`` what it was."""

    repository: str
    asked: str
    commit: str
    files: tuple[Held, ...]

    def dump(self) -> str:
        """As JSON, ending with a newline."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1) + "\n"


def read(folder: Path) -> Lock | None:
    """The lock in ``folder``; none where there is none.

    :raises BadLock: it cannot be read.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        told: dict[str, Any] = json.loads(path.read_bytes())
        files = tuple(Held(**item) for item in told["files"])
        return Lock(told["repository"], told["asked"], told["commit"], files)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadLock(f"{path}: not a lock file of this command ({error})") from error


def write(lock: Lock, folder: Path) -> Path:
    """Put ``lock`` into ``folder``, whole or not at all."""
    path, part = folder / NAME, folder / f".{NAME}.part"
    with part.open("w", encoding="utf-8") as file:
        file.write(lock.dump())
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    return path


def hold(path: Path, told: Told) -> Held | None:
    """What lies at ``path``, if it is what the hub told; none if it differs."""
    size = path.stat().st_size
    if size != told.size:
        return None
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            sha256.update(block)
            git.update(block)
    here = {"sha256": sha256.hexdigest(), "git-sha1": git.hexdigest()}
    if here[told.kind] != told.digest:
        return None
    return Held(told.path, size, sha256.hexdigest(), f"{told.kind}:{told.digest}")


def digest(path: Path) -> str:
    """SHA-256 of what lies at ``path``."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def merged(old: Lock | None, new: Lock) -> Lock:
    """``new``, with the files that ``old`` holds of the same commit; it keeps ``old``'s name."""
    if old is None or (old.repository, old.commit) != (new.repository, new.commit):
        return new
    files = {item.path: item for item in (*old.files, *new.files)}
    return Lock(new.repository, old.asked, new.commit, tuple(files[path] for path in sorted(files)))


def inside(path: str) -> bool:
    """Whether a name told by a server stays within the folder."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\\" not in path
