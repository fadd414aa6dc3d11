"""Blobs of the tiny model, whole and not so, made as ``preheat bake pack`` makes them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bake.weights.pack import pack
from blob.recipe import Recipe
from blob.store import Store
from serve.settings import REPOSITORY

TINY = REPOSITORY / "weights" / "tiny"


def blob(folder: Path, codec: str = "raw", checkpoint: Path = TINY) -> Path:
    pack(checkpoint, Recipe(codec), folder, Store(folder.parent / "store"))
    return folder


def checkpoint(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The tiny checkpoint after ``change`` had its tensors."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(TINY, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def damage(blob: Path, name: str) -> None:
    """Flip one bit in the middle of the stored bytes of tensor ``name``."""
    from blob.blob import Blob

    opened = Blob.open(blob)
    tensor = next(one for one in opened.manifest.tensors if one.name == name)
    path = blob / f"{tensor.shard}.safetensors"
    raw = bytearray(path.read_bytes())
    stored = bytes(opened.raw(tensor, max(tensor.parts.values(), key=lambda part: part.size)))
    raw[raw.index(stored) + len(stored) // 2] ^= 1
    path.unlink()
    path.write_bytes(raw)
