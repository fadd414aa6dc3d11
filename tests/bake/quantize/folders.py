"""Checkpoints to quantize, made of the tiny model, and children that import torch for a test."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bake.checkpoint.folder import find, located, open_shards, reader
from blob.codecs import bfloat16
from serve.settings import REPOSITORY

TINY = REPOSITORY / "weights" / "tiny"
KINDS = {"BF16": np.uint16, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32}
Arrays = dict[str, tuple[str, NDArray[Any]]]


def tensors(folder: Path) -> Arrays:
    """All tensors of a folder: their dtype and stored numbers."""
    there = located(open_shards(find(folder)))
    read = reader(there)
    return {name: (there[name][1].dtype, read(name)) for name in there}


def numbers(folder: Path) -> dict[str, NDArray[np.float32]]:
    """All BF16 tensors of a folder as float32."""
    found = tensors(folder).items()
    return {name: bfloat16.to_float32(array) for name, (kind, array) in found if kind == "BF16"}


def write(folder: Path, arrays: Arrays, config: Mapping[str, Any] | None = None) -> Path:
    """A checkpoint of ``arrays`` with the tiny model's tokenizer and config."""
    folder.mkdir()
    header, raw = {}, b""
    for name, (kind, array) in arrays.items():
        data = np.ascontiguousarray(array, KINDS[kind]).tobytes()
        place = [len(raw), len(raw) + len(data)]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": place}
        raw += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + raw)
    was = json.loads((TINY / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**was, **(config or {})}))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).write_bytes((TINY / name).read_bytes())
    return folder


def changed(folder: Path, change: Callable[[Arrays], object], **config: Any) -> Path:
    """The tiny model with something changed."""
    arrays = dict(tensors(TINY))
    change(arrays)
    return write(folder, arrays, config)


# PyPI's torchvision is a CUDA build: beside torch for CPUs its import fails, and all that needs it.
FIRST = """
from serve.plugin import torchvision_ops
if torchvision_ops.needed():
    torchvision_ops.apply()
"""


def child(code: str, *words: object, threads: int = 1) -> str:
    """What a process of its own prints: torch and transformers are not for this one."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST + code, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
