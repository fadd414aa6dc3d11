"""The manifest of a baked root: which files it is made of, and whether it still is.

    manifest.json   {"files":[{"path":…,"sha256":…,"size":…},…],"schema":1}

One manifest has one spelling: sorted keys, no spaces, a trailing newline, files in the order of
their paths. The reader takes that spelling and no other, so that equal files mean equal bytes
and a signature over the bytes is one over the meaning. Every file of the root stands in it but
itself and its signature; a link or anything else that is no plain file stands in none.

A compile cache is pickles and shared libraries: code. So ``verify`` also says who else could write
to it (``serve.writers``). It knows nothing of vLLM, nor of what the files are for.
"""

import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from blob.files import FORBIDDEN, check_path, digest, opened, replace
from blob.spelling import canonical, strict
from serve import writers
from serve.errors import ServeError

SCHEMA: Literal[1] = 1
NAME = "manifest.json"
SIGNATURE = "manifest.sig"
# The two that cannot stand in it.
OWN = (NAME, SIGNATURE)

# Far above any compile cache seen (12,000 files), far below what would hurt.
MAX_BYTES = 64 * 1024**2
MAX_FILES = 200_000
MAX_FILE_BYTES = 64 * 1024**3


class ManifestError(ServeError):
    """A manifest cannot be read or made."""


class Kind(StrEnum):
    """How a file can differ from what its manifest says."""

    MANIFEST = "manifest"
    MISSING = "missing"
    UNLISTED = "unlisted"
    EMPTY = "empty"
    SIZE = "size"
    DIGEST = "digest"
    LINK = "link"
    SPECIAL = "special"
    UNREADABLE = "unreadable"
    WRITABLE = "writable"


@dataclass(frozen=True, order=True)
class Violation:
    """One thing that is wrong with a root, and where."""

    path: str
    kind: Kind
    detail: str

    def __str__(self) -> str:
        return f"{self.path}: {self.detail}"


def _listed(path: str) -> str:
    if path in OWN:
        raise ValueError(f"{path} cannot stand in a manifest")
    return check_path(path)


class Entry(BaseModel):
    """One file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    path: Annotated[str, AfterValidator(_listed)]
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0, le=MAX_FILE_BYTES)


class Manifest(BaseModel):
    """Every file of a root, sorted by path."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    files: Annotated[list[Entry], Field(max_length=MAX_FILES)]
    # "schema" is taken by pydantic; on disk the name is the shorter one.
    version: Literal[1] = Field(SCHEMA, alias="schema")

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)


def dump(manifest: Manifest) -> bytes:
    """The one spelling of ``manifest``."""
    return canonical(manifest.model_dump(mode="json", by_alias=True))


def parse(raw: bytes) -> Manifest:
    """The manifest that is spelled ``raw``.

    :raises ManifestError: saying what is wrong; nothing is repaired or passed over.
    """
    if len(raw) > MAX_BYTES:
        raise ManifestError(f"{NAME}: {len(raw)} bytes, at most {MAX_BYTES} are allowed")
    try:
        manifest = Manifest.model_validate(strict(raw))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ManifestError(f"{NAME}: {where}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{NAME}: {error}") from error
    _check_order(manifest)
    if dump(manifest) != raw:
        raise ManifestError(f"{NAME}: not in canonical form")
    return manifest


def read(root: Path) -> bytes:
    """The bytes of the root's manifest: to check a signature and to parse, once.

    :raises ManifestError: there is none, it is no plain file, or too large.
    """
    return read_small(root / NAME, MAX_BYTES)


def read_small(path: Path, most: int) -> bytes:
    """The bytes of a plain file.

    :raises ManifestError: there is none, it is no plain file, or larger than ``most``.
    """
    try:
        with opened(path) as file:
            raw = file.read(most + 1) or b""
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > most:
        raise ManifestError(f"{path}: larger than {most} bytes")
    return raw


def make(root: Path, threads: int | None = None) -> Manifest:
    """The manifest of the files that stand in ``root`` now.

    :raises ManifestError: a file that no manifest can list: a link, a pipe, a name not UTF-8.
    """
    found = walk(root)
    if found.violations:
        raise ManifestError(f"{root}: {found.violations[0]}")
    paths = sorted(path for path in found.files if path not in OWN)

    def entry(path: str) -> Entry:
        sha256, size = digest(root / path, MAX_FILE_BYTES)
        return Entry(path=path, sha256=sha256, size=size)

    try:
        with ThreadPoolExecutor(threads or hashers()) as pool:
            return Manifest(files=list(pool.map(entry, paths)), schema=SCHEMA)
    except (OSError, ValueError) as error:
        raise ManifestError(f"{root}: {error}") from error


def write(root: Path, threads: int | None = None) -> Manifest:
    """Make the root's manifest and put it there, whole or not at all.

    Folders without a file are removed first: no manifest lists them, so no copy would have them.
    """
    for folder, _, _ in os.walk(root, topdown=False):
        if folder != str(root) and not os.listdir(folder):  # noqa: PTH208
            Path(folder).rmdir()
    manifest = make(root, threads)
    replace(root / NAME, dump(manifest))
    return manifest


def verify(root: Path, threads: int | None = None) -> list[Violation]:
    """All that is wrong with ``root``, sorted by path; empty when it is what was baked."""
    try:
        manifest = parse(read(root))
    except ManifestError as error:
        return [Violation(NAME, Kind.MANIFEST, error.what)]
    return compare(root, manifest, threads)


def compare(root: Path, manifest: Manifest, threads: int | None = None) -> list[Violation]:
    """How the files of ``root`` differ from ``manifest``, and who else could write to them."""
    found = walk(root)
    listed = {entry.path: entry for entry in manifest.files}
    # Not a file, but already told why: neither missing nor unlisted.
    told = {violation.path for violation in found.violations if violation.kind in NOT_FILES}
    violations = list(found.violations)
    for path in sorted(found.files.keys() - listed.keys() - set(OWN)):
        violations.append(Violation(path, Kind.UNLISTED, "is not in the manifest"))
    for path in sorted(listed.keys() - found.files.keys() - told):
        violations.append(Violation(path, Kind.MISSING, "is missing"))
    # The largest first, so that no thread is left alone with one at the end.
    there = sorted((e for p, e in listed.items() if p in found.files), key=lambda e: -e.size)
    with ThreadPoolExecutor(threads or hashers()) as pool:
        violations += [v for v in pool.map(lambda entry: _differs(root, entry), there) if v]
    return sorted(violations)


def hashers() -> int:
    """Threads to hash with: two a core, so that one hashes while the other waits for the disk."""
    return 2 * len(os.sched_getaffinity(0))


@dataclass
class Found:
    """What stands in a root: plain files and their sizes, and what is wrong with the rest."""

    files: dict[str, int] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)


NOT_FILES = (Kind.LINK, Kind.SPECIAL)


def walk(root: Path) -> Found:
    """Every name in ``root``; links are not followed."""
    found = Found()
    try:
        found.violations += _open_to_others(root, ".", os.lstat(root))
    except OSError as error:
        found.violations.append(Violation(".", Kind.UNREADABLE, f"{error.strerror}"))
        return found
    # Not by recursion: somebody may have nested a thousand folders.
    folders = [""]
    while folders:
        folders += _look_into(root, folders.pop(), found)
    return found


def _look_into(root: Path, below: str, found: Found) -> list[str]:
    """Sort in the names of one folder; those of the folders in it are returned."""
    shown = _shown(below.rstrip("/")) or "."
    try:
        with os.scandir(root / below) as entries:
            seen = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    except OSError as error:
        found.violations.append(Violation(shown, Kind.UNREADABLE, f"{error.strerror}"))
        return []
    if below and not seen:
        found.violations.append(Violation(shown, Kind.EMPTY, "is an empty folder"))
    for name, status in seen:
        _sort_in(root, below + name, status, found)
    return [f"{below}{name}/" for name, status in seen if stat.S_ISDIR(status.st_mode)]


def _sort_in(root: Path, path: str, status: os.stat_result, found: Found) -> None:
    shown = _shown(path)
    if stat.S_ISLNK(status.st_mode):
        found.violations.append(Violation(shown, Kind.LINK, "is a link"))
        return
    found.violations += _open_to_others(root / path, shown, status)
    if stat.S_ISREG(status.st_mode):
        try:
            found.files[check_path(path)] = status.st_size
        except ValueError as error:
            found.violations.append(Violation(shown, Kind.UNLISTED, f"no possible name: {error}"))
    elif not stat.S_ISDIR(status.st_mode):
        found.violations.append(Violation(shown, Kind.SPECIAL, "is neither file nor folder"))


def _open_to_others(path: Path, shown: str, status: os.stat_result) -> list[Violation]:
    why = writers.others(status)
    return [Violation(shown, Kind.WRITABLE, f"{why}: {writers.fix(status, path)}")] if why else []


def _differs(root: Path, entry: Entry) -> Violation | None:
    try:
        sha256, size = digest(root / entry.path, entry.size)
    except OSError as error:
        return Violation(entry.path, Kind.UNREADABLE, f"cannot be read: {error.strerror}")
    if size != entry.size:
        detail = f"size differs (expected {entry.size}, got {size})"
        return Violation(entry.path, Kind.SIZE, detail)
    if sha256 != entry.sha256:
        detail = f"sha256 differs (expected {entry.sha256[:12]}…, got {sha256[:12]}…)"
        return Violation(entry.path, Kind.DIGEST, detail)
    return None


def _shown(path: str) -> str:
    """A name that can be printed, whatever bytes it is made of."""
    harmless = FORBIDDEN.sub(lambda found: repr(found[0])[1:-1], path)
    return os.fsencode(harmless).decode(errors="backslashreplace")


def _check_order(manifest: Manifest) -> None:
    before = ""
    for entry in manifest.files:
        if entry.path <= before:
            raise ManifestError(f"{NAME}: {entry.path} is out of order or stands twice")
        before = entry.path
    names = {entry.path for entry in manifest.files}
    for path in names:
        for above in _folders(path):
            if above in names:
                raise ManifestError(f"{NAME}: {above} is both a file and a folder")


def _folders(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path
