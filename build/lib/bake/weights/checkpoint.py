"""A checkpoint that a blob is packed of: plain safetensors with a config, every tensor mapped."""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bake.checkpoint.arrays import array
from bake.checkpoint.folder import (
    CONFIG,
    check_index,
    check_safetensors,
    find,
    located,
    open_shards,
    read_object,
)
from bake.checkpoint.settings import settings_of
from bake.errors import BakeError
from blob.files import opened
from blob.manifest import NAME
from blob.rows import cores


@dataclass(frozen=True)
class Array:
    """One tensor of a checkpoint, over the mapped file; BF16 is held as its bits."""

    dtype: str
    array: NDArray[Any]


@dataclass(frozen=True)
class Checkpoint:
    """A folder that vLLM could serve."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Array]
    shards: tuple[Path, ...]
    files: Mapping[str, Path]


def open_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``; tensors are not read yet.

    :raises BakeError: no such folder, no config, no shards, one that is missing, or one that is not
        plain safetensors.
    """
    if not folder.is_dir():
        raise BakeError(f"{folder}: no such folder", "give the folder of a checkpoint")
    if (folder / NAME).exists():
        raise BakeError(f"{folder}: is a blob already", "pack the checkpoint it was made of")
    config = read_object(folder / CONFIG)
    _check_config(folder, config)
    found = find(folder)
    shards = open_shards(found)
    check_safetensors(shards, folder)
    there = located(shards)
    check_index(found, there)
    tensors = {
        name: Array(tensor.dtype, array(shard.source, tensor))
        for name, (shard, tensor) in there.items()
    }
    return Checkpoint(folder, config, tensors, found.weights, found.files)


def digests(checkpoint: Checkpoint) -> dict[str, str]:
    """SHA-256 of each shard and of the config: what a blob says it was made of."""

    def digest(path: Path) -> str:
        with opened(path.resolve()) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    paths = [checkpoint.folder / CONFIG, *checkpoint.shards]
    with ThreadPoolExecutor(cores()) as pool:
        return dict(zip([path.name for path in paths], pool.map(digest, paths), strict=True))


def _check_config(folder: Path, config: Mapping[str, Any]) -> None:
    if not isinstance(config.get("architectures"), list):
        raise BakeError(f"{folder / CONFIG}: no 'architectures': not a checkpoint")
    if quantization := settings_of(config):
        told = quantization if isinstance(quantization, dict) else {}
        method = str(told.get("quant_method", "unknown"))[:40]
        raise BakeError(
            f"{folder}: is quantized already ({method})",
            f"make plain weights of it first: preheat bake convert {folder} NEW-FOLDER",
        )
