"""Everything that can be wrong with a blob, and what differs between two.

``verify`` reads every byte: files and shards against their SHA-256, each tensor given back and
compared. It goes on after the first fault, so that a person sees how much is lost.
"""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import local

from blob.blob import Blob
from blob.errors import BlobError, Damaged
from blob.files import printable
from blob.manifest import NAME, File, Manifest, Shard, Tensor, file_fault
from blob.proof import Clock, differs, in_order
from blob.restore import flat, restore, scratch_for
from blob.rows import cores

# Bytes done of bytes in all, of what tensors give back.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a blob; ``where`` names a tensor or a file."""

    where: str
    detail: str

    def __str__(self) -> str:
        return f"{self.where}: {self.detail}"


def verify(folder: Path, progress: Progress, threads: int | None = None) -> list[Fault]:
    """All that is wrong with the blob in ``folder``, sorted; empty when it is what was written.

    :raises BlobError: there is no blob to look at, or a newer preheat made it.
    """
    try:
        blob = Blob.open(folder)
    except Damaged as error:
        return [Fault(error.where, error.detail)]
    faults = [Fault(printable(name), "is not in the manifest") for name in _unlisted(blob)]
    tensors = sorted(blob.manifest.tensors, key=lambda tensor: -tensor.size)
    done, total, mine = 0, blob.manifest.size, local()

    def tensor_fault(tensor: Tensor) -> Fault | None:
        if not hasattr(mine, "scratch"):
            mine.scratch = scratch_for(tensors)
        try:
            restore(blob, tensor, Clock(), None, mine.scratch)
            _check_sha256(blob, tensor)
        except Damaged as error:
            return Fault(error.where, error.detail)
        return None

    with ThreadPoolExecutor(threads or cores()) as pool:
        faults += [
            f
            for f in pool.map(lambda file: _file_fault(folder, file), blob.manifest.everything)
            if f
        ]
        for tensor, fault in zip(tensors, pool.map(tensor_fault, tensors), strict=True):
            done += tensor.size
            progress(done, total)
            faults += [fault] if fault else []
    return sorted(faults, key=str)


def _unlisted(blob: Blob) -> Iterator[str]:
    listed = {file.path for file in blob.manifest.everything}
    for path in sorted(blob.folder.rglob("*")):
        name = str(path.relative_to(blob.folder))
        if not path.is_dir() and name not in listed and name != NAME:
            yield name


def _check_sha256(blob: Blob, tensor: Tensor) -> None:
    digest, parts = hashlib.sha256(), blob.parts(tensor)
    for key in in_order(parts):
        digest.update(flat(parts[key]))
    if digest.hexdigest() != tensor.stored_sha256:
        expected, got = tensor.stored_sha256, digest.hexdigest()
        raise differs(tensor.name, "stored bytes: sha256", expected, got)


def _file_fault(folder: Path, listed: File | Shard) -> Fault | None:
    found = file_fault(folder, listed)
    return Fault(listed.path, found) if found else None


@dataclass(frozen=True)
class Change:
    """What became of one tensor or file from one blob to the other."""

    name: str
    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.name}: {self.kind}{f': {self.detail}' if self.detail else ''}"


def diff(a: Manifest, b: Manifest) -> list[Change]:
    """What differs between two blobs, by tensor; pure, from their manifests."""
    return [*_fields(a, b), *_files(a, b), *_tensors(a, b)]


def _fields(a: Manifest, b: Manifest) -> Iterator[Change]:
    for what in ("recipe", "encoder", "source"):
        before, after = getattr(a, what), getattr(b, what)
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key):
                detail = f"{before.get(key, 'none')} → {after.get(key, 'none')}"
                yield Change(f"{what}.{key}", "changed", detail)
    if a.rank != b.rank:
        yield Change("rank", "changed", f"{_ranked(a)} → {_ranked(b)}")


def _ranked(one: Manifest) -> str:
    return f"{one.rank.rank} of {one.rank.world}" if one.rank else "none"


def _files(a: Manifest, b: Manifest) -> Iterator[Change]:
    before = {file.path: file.sha256 for file in a.files}
    after = {file.path: file.sha256 for file in b.files}
    for path in sorted({*before, *after}):
        if before.get(path) != after.get(path):
            yield Change(path, _kind(path in before, path in after), "")


def _tensors(a: Manifest, b: Manifest) -> Iterator[Change]:
    before = {tensor.name: tensor for tensor in a.tensors}
    after = {tensor.name: tensor for tensor in b.tensors}
    for name in sorted({*before, *after}):
        one, other = before.get(name), after.get(name)
        if one is None or other is None:
            there = one or other
            detail = f"{there.dtype} {there.shape} as {there.codec}" if there else ""
            yield Change(name, _kind(one is not None, other is not None), detail)
        elif told := ", ".join(_differences(one, other)):
            yield Change(name, "changed", told)


def _differences(one: Tensor, other: Tensor) -> Iterator[str]:
    for what in ("shape", "dtype", "codec", "params"):
        if (before := getattr(one, what)) != (after := getattr(other, what)):
            yield f"{what} {before} → {after}"
    if one.sha256 != other.sha256:
        yield f"weights {one.sha256[:12]}… → {other.sha256[:12]}…"
    elif one.stored_sha256 != other.stored_sha256:
        yield "stored otherwise, the same weights"


def _kind(before: bool, after: bool) -> str:
    return "changed" if before and after else "removed" if before else "added"


def require_sound(faults: list[Fault], folder: Path) -> None:
    """Stop if there are faults.

    :raises BlobError: naming the first, and how many there are.
    """
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise BlobError(f"{folder}: {faults[0]}{more}", "look at all: preheat bake verify")
