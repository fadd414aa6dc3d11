"""Puts another MTP head into a copy of a checkpoint: the same bytes, but for those of ``mtp.*``.

    weights/heads/M.safetensors    mtp.* tensors, BF16
    weights/heads/M.json           {"schema": 1, "source": {file: SHA-256}, "head": SHA-256, …}

A head is trained beside one base, and drafts nonsense beside another of the same shape, which no
output would show: what is drafted badly is only rejected. So the base's digests go with it, and
another base is refused.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bake import tree
from bake.checkpoint import standing
from bake.checkpoint.along import along
from bake.checkpoint.contents import Tensor
from bake.checkpoint.folder import (
    Located,
    Shard,
    find,
    located,
    open_shard,
    open_shards,
    read_object,
)
from bake.errors import BakeError, Malformed
from blob.files import digest

SCHEMA = 1
PREFIX = "mtp."
# No checkpoint has a larger file.
LARGEST = 2**50
AGAIN = "make the head again: python -m scripts.redistill_mtp --help"


@dataclass(frozen=True)
class Swapped:
    """What was made: how many tensors were exchanged, and their bytes."""

    tensors: int
    bytes: int

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        return {"tensors": self.tensors, "bytes": self.bytes}


def swap(source: Path, folder: Path, head: Path) -> Swapped:
    """Write ``folder``: ``source`` with the ``mtp.*`` tensors of ``head``. Whole or not at all.

    ``head`` is a safetensors file; what it was trained beside stands in the ``.json`` next to it.

    :raises BakeError: something stands at ``folder``; the head's file is not the one its ``.json``
        tells of, was made for another checkpoint, or has other names, types or shapes.
    :raises Malformed: a file is not what its format says.
    """
    standing.check_free(folder, source)
    found = find(source)
    shards = open_shards(found)
    there = located(shards)
    new = open_shard(head)
    check_provenance(head, {path.name: path for path in found.weights})
    pairs = matched(there, new)
    try:
        with tree.locked(folder):
            standing.free(folder, source)
            part = tree.beside(folder, ".part")
            part.mkdir()
            weights = {path.name: path for path in found.weights}
            _copy(source, part, found.index, {**along(found.files), **weights})
            for old, tensor in pairs:
                _write(part / old[0].path.name, old[1], _bytes(new, tensor))
            tree.settle(part)
            tree.put_in_place(folder)
    except OSError as error:
        raise standing.unwritten(error, folder) from error
    return Swapped(len(pairs), sum(tensor.nbytes for _, tensor in pairs))


def check_provenance(head: Path, weights: Mapping[str, Path]) -> None:
    """Whether ``head`` is the file that its ``.json`` tells of, made for these ``weights``.

    :raises BakeError: it is not; names the file, what was expected and what is there.
    """
    told = head.with_suffix(".json")
    about = read_object(told)
    if not about:
        raise BakeError(f"{told}: is not there: nothing says what the head was made for", AGAIN)
    expected = about.get("source")
    if about.get("schema") != SCHEMA or not isinstance(expected, dict) or not expected:
        raise Malformed(
            str(told), f"expected schema {SCHEMA} and the digests of a source", hint=AGAIN
        )
    _same(head, str(about.get("head")), "the head is not the one that its .json tells of")
    if expected.keys() != weights.keys():
        raise BakeError(
            f"{head}: made for {', '.join(sorted(expected))}, "
            f"and the checkpoint has {', '.join(sorted(weights))}",
            AGAIN,
        )
    for name, sha in sorted(expected.items()):
        _same(weights[name], str(sha), "the head was made for another checkpoint")


def _same(path: Path, expected: str, otherwise: str) -> None:
    got, _ = digest(path.resolve(), LARGEST)
    if got != expected:
        raise BakeError(f"{path}: {otherwise} (sha256 {expected[:12]}…, got {got[:12]}…)", AGAIN)


def matched(there: Located, new: Shard) -> list[tuple[tuple[Shard, Tensor], Tensor]]:
    """Each ``mtp.*`` tensor of the checkpoint with the one that takes its place.

    :raises BakeError: the checkpoint has none, or names, types or shapes differ.
    """
    old = {name: one for name, one in there.items() if name.startswith(PREFIX)}
    given = new.contents.by_name()
    if not old:
        folder = next((str(shard.path.parent) for shard, _ in there.values()), "the checkpoint")
        raise BakeError(f"{folder}: no mtp.* tensors: there is no head to exchange")
    if odd := sorted(old.keys() ^ given.keys()):
        where = "the checkpoint" if odd[0] in given else str(new.path)
        raise BakeError(f"{odd[0]}: is not in {where} ({len(odd)} differ)", AGAIN)
    for name, (_, tensor) in old.items():
        mine = given[name]
        if (mine.dtype, mine.shape) != (tensor.dtype, tensor.shape):
            raise BakeError(
                f"{new.path}: {name} is {mine.dtype} {list(mine.shape)}, "
                f"and {tensor.dtype} {list(tensor.shape)} in the checkpoint",
                AGAIN,
            )
    return [(old[name], given[name]) for name in sorted(old)]


def _copy(source: Path, part: Path, index: str, files: Mapping[str, Path]) -> None:
    if index:
        files = {**files, index: source / index}
    for name, path in files.items():
        shutil.copyfile(path, part / name)
        (part / name).chmod(0o644)


def _bytes(shard: Shard, tensor: Tensor) -> bytes:
    with shard.path.open("rb") as file:
        return os.pread(file.fileno(), tensor.nbytes, tensor.offset)


def _write(path: Path, tensor: Tensor, raw: bytes) -> None:
    """In place: the same type and shape take the same bytes, so no header changes."""
    with path.open("r+b") as file:
        file.seek(tensor.offset)
        file.write(raw)
