"""A checkpoint folder as it is downloaded: safetensors, config, tokenizer. Mapped, not read."""

import hashlib
import io
import json
import mmap
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bake.errors import BakeError
from blob.errors import Damaged
from blob.files import check_path, opened
from blob.layout import read_header
from blob.manifest import NAME
from blob.numpy_types import NUMPY
from blob.rows import cores

INDEX = "model.safetensors.index.json"
# What a model folder may hold that serving it does not need.
LEFT_OUT = (".safetensors", ".bin", ".pth", ".pt", ".gguf", ".h5", ".msgpack", ".onnx", ".md")
MAX_FILE_BYTES = 256 * 1024**2


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

    :raises BakeError: no such folder, no config, no shards, or one that is missing.
    :raises Damaged: a shard that is not safetensors, or could be read in two ways.
    """
    if not folder.is_dir():
        raise BakeError(f"{folder}: no such folder", "give the folder of a checkpoint")
    if (folder / NAME).exists():
        raise BakeError(f"{folder}: is a blob already", "pack the checkpoint it was made of")
    config = _json(folder / "config.json")
    if not isinstance(config.get("architectures"), list):
        raise BakeError(f"{folder / 'config.json'}: no 'architectures': not a checkpoint")
    if quantization := config.get("quantization_config"):
        told = quantization if isinstance(quantization, dict) else {}
        method = str(told.get("quant_method", "unknown"))[:40]
        raise BakeError(f"{folder}: is quantized already ({method})", "pack the original weights")
    listed = _listed(folder)
    shards = _shards(folder, listed)
    if not shards:
        raise BakeError(f"{folder}: no *.safetensors", "other formats are not packed yet")
    tensors: dict[str, Array] = {}
    for shard in shards:
        for name, array in _arrays(shard).items():
            if name in tensors:
                raise BakeError(f"{shard.name}: {name} stands in another shard too")
            tensors[name] = array
    _check_index(folder, listed, tensors)
    return Checkpoint(folder, config, tensors, shards, files_of(folder))


def digests(checkpoint: Checkpoint) -> dict[str, str]:
    """SHA-256 of each shard and of the config: what a blob says it was made of."""

    def digest(path: Path) -> str:
        with _opened(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    paths = [checkpoint.folder / "config.json", *checkpoint.shards]
    with ThreadPoolExecutor(cores()) as pool:
        return dict(zip([path.name for path in paths], pool.map(digest, paths), strict=True))


def _arrays(shard: Path) -> dict[str, Array]:
    try:
        with _opened(shard) as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise Damaged(str(shard), "is empty")
            raw = memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))
    except OSError as error:
        raise BakeError(f"{shard}: cannot be read: {error.strerror}") from error
    header = read_header(raw, size, str(shard))
    return {
        name: Array(
            item.dtype,
            np.frombuffer(
                raw[header.start + item.begin : header.start + item.end], NUMPY[item.dtype]
            ).reshape(item.shape),
        )
        for name, item in header.arrays.items()
    }


def _opened(path: Path) -> io.FileIO:
    """A plain file; a link of a download cache is followed, a pipe blocks nobody.

    :raises OSError: it cannot be opened, or leads to no plain file.
    """
    return opened(path.resolve())


def _listed(folder: Path) -> dict[str, str]:
    """Which file holds each tensor, by the index; empty where there is none.

    :raises BakeError: it is not what an index is.
    """
    if not (folder / INDEX).is_file():
        return {}
    listed = _json(folder / INDEX).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(v, str) for v in listed.values()):
        raise BakeError(f"{folder / INDEX}: no 'weight_map' of tensors and files")
    return listed


def _shards(folder: Path, listed: Mapping[str, str]) -> tuple[Path, ...]:
    """Those that the index lists, as vLLM takes them: others can hold the same under other names.

    One that is missing shows by its tensors.
    """
    every = sorted(folder.glob("*.safetensors"))
    named = set(listed.values())
    return tuple(path for path in every if not named or path.name in named)


def _check_index(folder: Path, listed: Mapping[str, str], tensors: Mapping[str, Array]) -> None:
    if missing := sorted(listed.keys() - tensors.keys()):
        raise BakeError(
            f"{folder}: {len(missing)} tensors of the index are in no shard, first {missing[0]} "
            f"({listed[missing[0]]})",
            "fetch the missing shards",
        )


def files_of(folder: Path) -> dict[str, Path]:
    """Config, tokenizer and the like: small plain files of the folder itself."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in (INDEX, NAME) or path.suffix in LEFT_OUT:
            continue
        if path.is_file() and path.stat().st_size <= MAX_FILE_BYTES:
            try:
                # A link of a download cache is followed: what it leads to is what is meant.
                found[check_path(path.name)] = path.resolve()
            except ValueError as error:
                raise BakeError(f"{folder}: {error}") from error
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        with _opened(path) as file:
            value = json.loads(file.readall())
    except OSError as error:
        raise BakeError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BakeError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BakeError(f"{path}: expected a JSON object")
    return value
