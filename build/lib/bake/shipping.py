"""Takes baked roots to another machine: checks them before they are packed and after they arrive.

Nothing that was not compared with its manifest ever gets the name of a root, and where a signature
is asked for, the manifest is signed. Owns the order of the steps; ``bake.archive`` owns the form.
"""

import contextlib
import errno
import hashlib
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from bake import tree
from bake.archive import DEPTH, BadArchive, Limits, Stream, members, pack
from bake.errors import BakeError
from bake.progress import silent
from blob.files import check_path, sync
from serve import manifest, signature
from serve.signature import Keys, NotSigned

WRITABLE = "the folder must be writable here; PREHEAT_BAKED_ROOT names that of baked roots"
SIGNED = "sign it where it was baked: preheat bake sign ROOT --key FILE; or unset the keys"

# Bytes done of bytes in all.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Shipped:
    """What an archive was made of."""

    file: Path
    size: int
    sha256: str
    roots: tuple[str, ...]
    files: int
    unpacked: int


@dataclass(frozen=True)
class Terms:
    """On which an archive is let in: ``keys`` of which one must have signed, unless there are none;
    ``force`` replaces roots that stand there.
    """

    keys: Keys = field(default_factory=dict)
    force: bool = False
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Kind:
    """What is shipped: ``depth`` folders of a name are its root. ``check_place`` stops where a root
    may not go, ``check`` stops when what became of its work folder is not what it should be.
    """

    depth: int
    check_place: Callable[[Path], None]
    check: Callable[[Path], None]


@dataclass(frozen=True)
class Arrived:
    """What an archive brought; ``done`` tells what was cleared away before."""

    roots: tuple[Path, ...]
    files: int
    unpacked: int
    done: tuple[str, ...]


def export(baked: Path, names: Sequence[str], out: Path, progress: Progress = silent) -> Shipped:
    """Pack the roots ``names`` (``target/model/variant``) below ``baked`` into ``out``.

    :raises BakeError: a root is missing or not what its manifest says; no space.
    """
    identities, listed, total = [], [], 0
    for name in sorted(set(names)):
        raw, paths, size = _sound(baked, name)
        identities.append((baked / name, raw))
        listed += paths
        total += size
    listed.sort()
    with replacing(out) as file:
        pack(told(listed, total, progress), file)
        for root, raw in identities:
            if manifest.read(root) != raw:
                raise BakeError(f"{root}: was replaced while it was exported", "export it again")
        size, digest = sized(file)
    return Shipped(out, size, digest, tuple(sorted(set(names))), len(listed), total)


def _sound(baked: Path, name: str) -> tuple[bytes, list[tuple[str, Path]], int]:
    """The root's manifest, its files by their names in an archive, and their bytes."""
    root = baked / name
    if not root.is_dir():
        raise BakeError(f"no baked root {root}", "bake it first: preheat bake cache VARIANT")
    try:
        raw = manifest.read(root)
        stood = manifest.parse(raw)
    except manifest.ManifestError as error:
        raise BakeError(f"{root}: {error.what}", "bake it again") from error
    if violations := manifest.compare(root, stood):
        raise BakeError(f"{root}: not exported: {violations[0]}", "bake it again")
    signed = (root / manifest.SIGNATURE).exists()
    own = [manifest.NAME, manifest.SIGNATURE] if signed else [manifest.NAME]
    try:
        paths = [check_path(f"{name}/{p}") for p in (*(e.path for e in stood.files), *own)]
    except ValueError as error:
        raise BakeError(f"{root}: {error}") from error
    return raw, [(path, baked / path) for path in paths], stood.total_bytes


def told(
    files: Sequence[tuple[str, Path]], total: int, progress: Progress
) -> Iterator[tuple[str, Path]]:
    """``files``, with their bytes told to ``progress`` as they are done."""
    done = 0
    for name, path in files:
        yield name, path
        done += path.stat().st_size
        progress(min(done, total), total)


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[IO[bytes]]:
    """A file that becomes ``out`` when all went well, and is gone when not."""
    try:
        with tempfile.NamedTemporaryFile(
            dir=out.parent, prefix=f".{out.name}.", suffix=".part", delete=False
        ) as file:
            part = Path(file.name)
            try:
                yield file.file
                file.flush()
                os.fsync(file.fileno())
                # Made for us alone; what is shipped may be read by all that may read the folder.
                os.fchmod(file.fileno(), 0o644)
                part.replace(out)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        sync(out.parent)
    except OSError as error:
        raise failed(error, out) from error


def sized(file: IO[bytes]) -> tuple[int, str]:
    """Bytes and SHA-256 of what was written to a named file."""
    file.flush()
    with Path(file.name).open("rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
    return Path(file.name).stat().st_size, digest


def receive(file: Path, baked: Path, terms: Terms, progress: Progress = silent) -> Arrived:
    """Unpack, check and put in place every root of the archive ``file`` below ``baked``.

    :raises BakeError: the archive or a root in it is not sound or against the ``terms``, or
        another process is making that root, or there is no space. No root has changed.
    """
    kind = Kind(
        DEPTH,
        lambda root: _check_place(root, force=terms.force),
        lambda root: _check(root, terms.keys),
    )
    return unpack(file, baked, terms, kind, progress)


def names(file: Path, limits: Limits) -> tuple[str, ...]:
    """The roots that the archive ``file`` holds, read through to its end; nothing is written.

    :raises BakeError: the archive is not sound.
    """
    found: dict[str, None] = {}
    try:
        with file.open("rb") as opened:
            for member, content in members(Stream(opened, limits), limits, DEPTH):
                found[member.root] = None
                deque(content, maxlen=0)
    except BadArchive as error:
        raise BadArchive(f"{file}: {error.what}", error.hint) from error
    except OSError as error:
        raise failed(error, file) from error
    return tuple(found)


def unpack(file: Path, below: Path, terms: Terms, kind: Kind, progress: Progress) -> Arrived:
    """Unpack the roots of ``file``, check what became of each work folder, put them in place.

    :raises BakeError: as ``receive``; or what the checks of ``kind`` raise. No root has changed.
    """
    roots: list[Path] = []
    done: list[str] = []
    files = 0
    try:
        size = file.stat().st_size
        with ExitStack() as held, file.open("rb") as opened:
            stream = Stream(opened, terms.limits)
            for member, content in members(stream, terms.limits, kind.depth):
                if (root := below / member.root) not in roots[-1:]:
                    done += _begin(root, held, kind.check_place)
                    roots.append(root)
                _write(tree.beside(root, ".part") / member.path, content)
                files += 1
                progress(stream.read_bytes, size)
            if not roots:
                raise BadArchive("holds no root")
            for root in roots:
                kind.check(root)
            for root in roots:
                tree.put_in_place(root)
    except BadArchive as error:
        raise BadArchive(f"{file}: {error.what}", error.hint) from error
    except OSError as error:
        raise failed(error, file if error.filename == str(file) else below) from error
    return Arrived(tuple(roots), files, stream.made_bytes, tuple(done))


def _begin(root: Path, held: ExitStack, check_place: Callable[[Path], None]) -> list[str]:
    """Lock ``root`` and clear the place for its work folder, which is gone when ``held`` ends."""
    # Before a lock is put there; and again when what was interrupted is undone.
    check_place(root)
    held.enter_context(tree.locked(root))
    done = tree.recover(root)
    check_place(root)
    part = tree.beside(root, ".part")
    held.callback(tree.remove, part)
    part.mkdir(mode=0o755)
    return done


def _check_place(root: Path, *, force: bool) -> None:
    if root.exists() and not force:
        raise BakeError(f"{root} exists", "say --force to replace it")


def _write(path: Path, content: Iterator[bytes]) -> None:
    """Write ``path``, which must not be there; for us alone, until its root is sealed."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(path, "wb", opener=lambda name, _: os.open(name, flags, 0o600)) as file:
        for data in content:
            file.write(data)


def _check(root: Path, keys: Keys) -> None:
    """The work folder is what its manifest says, and the manifest is what a trusted key signed."""
    part = tree.beside(root, ".part")
    tree.seal(part)
    try:
        raw = manifest.read(part)
        stood = manifest.parse(raw)
    except manifest.ManifestError as error:
        raise BadArchive(f"{root.name}: {error.what}") from error
    if keys and isinstance(said := signature.check(raw, part, keys), NotSigned):
        raise BakeError(f"{root}: not imported: {said.reason}", SIGNED)
    if violations := manifest.compare(part, stood):
        raise BadArchive(f"{root.name}: {violations[0]}", "get it again, or bake it here")


def failed(error: OSError, at: Path) -> BakeError:
    """What the system refused, in words, and the next step."""
    hints = {
        errno.ENOSPC: "make room, then try again: nothing was changed",
        errno.EDQUOT: "make room, then try again: nothing was changed",
        errno.EFBIG: "raise the limit on file sizes (ulimit -f), then try again",
        errno.EROFS: WRITABLE,
        errno.EACCES: WRITABLE,
    }
    where = error.filename or at
    return BakeError(f"{where}: {error.strerror or error}", hints.get(error.errno or 0, ""))
