"""A blob that is there to be read: its manifest, and its shards mapped and checked by header.

Nothing of a tensor is read here: ``blob.reconstruct`` gives tensors back, proven, and
``blob.verify`` proves files. A file that changes after it was checked is not defended against:
who can write to a blob can write to what reads it.
"""

import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blob import manifest
from blob.errors import BlobError, Damaged
from blob.files import opened
from blob.layout import Header, check_parts, check_shard, header_limit, read_header
from blob.manifest import Manifest, Shard, Stored, Tensor
from blob.numpy_types import NUMPY


@dataclass(frozen=True)
class Blob:
    """The blob in ``folder``."""

    folder: Path
    manifest: Manifest
    _shards: Mapping[str, tuple[memoryview, Header]]

    @classmethod
    def open(cls, folder: Path) -> "Blob":
        """Read the manifest, map the shards, and compare their headers with it.

        :raises BlobError: no blob, one that a newer preheat made, or one that is damaged.
        """
        read = manifest.read(folder)
        tensors: dict[str, list[Tensor]] = {shard.sha256: [] for shard in read.shards}
        for tensor in read.tensors:
            check_parts(tensor)
            tensors[tensor.shard].append(tensor)
        shards = {}
        for shard in read.shards:
            inside = tensors[shard.sha256]
            raw = _map(folder, shard, inside)
            where = f"{shard.path}{_holds(inside)}"
            header = read_header(raw, len(raw), where, header_limit(inside))
            check_shard(header, inside, shard.path)
            shards[shard.sha256] = (raw, header)
        return cls(folder, read, shards)

    def raw(self, tensor: Tensor, part: Stored) -> memoryview:
        """The stored bytes of one part."""
        raw, header = self._shards[tensor.shard]
        return raw[header.start + part.begin : header.start + part.end]

    def ask_for(self, tensor: Tensor) -> None:
        """Have the kernel read a tensor's parts ahead: one thread alone would wait for a disk."""
        raw, header = self._shards[tensor.shard]
        mapped = raw.obj
        for part in tensor.parts.values():
            begin = (header.start + part.begin) // mmap.PAGESIZE * mmap.PAGESIZE
            if part.size and isinstance(mapped, mmap.mmap):
                mapped.madvise(mmap.MADV_WILLNEED, begin, header.start + part.end - begin)

    def part(self, tensor: Tensor, key: str) -> NDArray[Any]:
        """One part as an array over the mapped file; not checked."""
        part = tensor.parts[key]
        return np.frombuffer(self.raw(tensor, part), NUMPY[part.dtype]).reshape(part.shape)

    def parts(self, tensor: Tensor) -> dict[str, NDArray[Any]]:
        """All parts, in the order of their names, which is the one that digests are made in."""
        return {key: self.part(tensor, key) for key in sorted(tensor.parts)}


def _map(folder: Path, shard: Shard, tensors: list[Tensor]) -> memoryview:
    holds = _holds(tensors)
    try:
        with opened(folder / shard.path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != shard.size:
                detail = f"expected {shard.size} bytes, got {size}{holds}"
                raise Damaged(shard.path, detail)
            if size == 0:
                raise Damaged(shard.path, f"is empty{holds}")
            # Private and writable in memory, never in the file: torch warns of read-only arrays.
            return memoryview(mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE))
    except FileNotFoundError as error:
        raise Damaged(shard.path, f"is missing{holds}") from error
    except OSError as error:
        what = f"{folder / shard.path}{holds}: cannot be read: {error.strerror}"
        raise BlobError(what) from error


def _holds(tensors: list[Tensor]) -> str:
    return f" (it holds {tensors[0].name} and {len(tensors) - 1} more)" if tensors else ""
