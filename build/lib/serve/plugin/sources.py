"""Where weights come from: a blob, or a checkpoint, which may be quantized on the way (in situ).

Each source names its tensors and streams some of them. In situ is what a blob saves: the same
recipe as ``preheat bake pack``, at every start. Knows no vLLM.
"""

import contextlib
import hashlib
import json
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from blob import manifest, recipe, rows
from blob.blob import Blob
from blob.codecs import RowCodec
from blob.errors import BlobError
from blob.files import printable
from blob.recipe import Recipe
from blob.reconstruct import stream
from blob.restore import flat
from serve.plugin.filling import NAMES, to_array, to_tensor

INDEX = "model.safetensors.index.json"
# A name in one folder: no path, and neither "." nor "..".
PLAIN = re.compile(r"[^/\\\x00-\x1f\x7f]+\.safetensors")
FETCH = "fetch the checkpoint again"
Weights = Iterator[tuple[str, torch.Tensor]]


class Source(Protocol):
    """Weights by the checkpoint's names."""

    kind: str
    seconds: Mapping[str, float]
    bytes_stored: int
    bytes_out: int

    def names(self) -> list[str]:
        """Of every tensor, sorted."""

    def same(self, one: str, other: str) -> bool:
        """Whether two tensors are equal."""

    def fingerprint(self) -> str:
        """As a manifest's: equal weights, equal fingerprint."""

    def stream(self, names: Sequence[str]) -> Weights:
        """The tensors called ``names``, in that order; ``seconds`` and bytes are then told."""


@dataclass
class BlobSource:
    """A blob. ``packed``: int4 is given as it is stored, for vLLM's own kernels."""

    blob: Blob
    packed: bool = False
    threads: int | None = None
    kind: str = "blob"
    seconds: Mapping[str, float] = field(default_factory=dict)
    bytes_stored: int = 0
    bytes_out: int = 0

    def names(self) -> list[str]:
        """Of every tensor, sorted."""
        return [tensor.name for tensor in self.blob.manifest.tensors]

    def same(self, one: str, other: str) -> bool:
        """By the digests in the manifest."""
        digests = {t.name: t.sha256 for t in self.blob.manifest.tensors if t.name in (one, other)}
        return digests[one] == digests[other]

    def fingerprint(self) -> str:
        """The manifest's."""
        return self.blob.manifest.fingerprint

    def stream(self, names: Sequence[str]) -> Weights:
        """The tensors called ``names``, in that order.

        :raises BlobError: one of them is not what the manifest says; it is not given.
        """
        arrays = stream(self.blob, self.threads, names, packed=self.packed)
        try:
            for loaded in arrays:
                name, tensor = loaded.name, to_tensor(loaded.array, loaded.dtype)
                # Its buffer is used again once nobody holds it: nor do we, when we are asked on.
                del loaded
                yield name, tensor
                del tensor
        finally:
            self.seconds = arrays.seconds
            self.bytes_stored, self.bytes_out = arrays.bytes_stored, arrays.bytes_out


@dataclass
class CheckpointSource:
    """An ordinary checkpoint; with a recipe, each linear layer is quantized and given back."""

    folder: Path
    recipe: Recipe | None = None
    threads: int | None = None
    kind: str = field(init=False)
    seconds: Mapping[str, float] = field(default_factory=dict)
    bytes_stored: int = 0
    bytes_out: int = 0

    def __post_init__(self) -> None:
        """:raises BlobError: no checkpoint, a bad index, or a recipe that cannot be followed."""
        if self.recipe:
            recipe.check(self.recipe)
        self.kind = "in situ" if self.recipe else "checkpoint"
        self._shards = _shards(self.folder)

    def names(self) -> list[str]:
        """Of every tensor, sorted."""
        return sorted(self._shards)

    def same(self, one: str, other: str) -> bool:
        """By their bytes: both are read."""
        with self._reading() as read:
            first, second = read(one), read(other)
            alike = first.dtype == second.dtype and first.shape == second.shape
            return bool(alike and np.array_equal(flat(to_array(first)), flat(to_array(second))))

    def fingerprint(self) -> str:
        """Over the bytes of every tensor: the whole checkpoint is read."""
        with self._reading() as read:
            digests = [
                (n, hashlib.sha256(flat(to_array(read(n)))).hexdigest()) for n in self.names()
            ]
        return manifest.fingerprint(digests)

    def stream(self, names: Sequence[str]) -> Weights:
        """The tensors called ``names``, in that order.

        :raises BlobError: a file that cannot be read, or lacks a tensor that the index has there.
        """
        seconds: dict[str, float] = defaultdict(float)
        self.seconds = seconds
        with self._reading() as read:
            for name in names:
                began = time.perf_counter()
                # A copy: pages that are first touched elsewhere would be counted there.
                tensor = read(name).clone()
                seconds["read"] += time.perf_counter() - began
                self.bytes_stored += tensor.nbytes
                if self.recipe:
                    tensor = self._quantized(name, tensor, self.recipe, seconds)
                self.bytes_out += tensor.nbytes
                yield name, tensor
                del tensor

    def _quantized(
        self, name: str, tensor: torch.Tensor, wanted: Recipe, seconds: dict[str, float]
    ) -> torch.Tensor:
        """``tensor`` as it comes out of the codec that the recipe chooses for it."""
        shape = tuple(tensor.shape)
        codec = recipe.choose(name, shape, NAMES[tensor.dtype], wanted).codec
        if not isinstance(codec, RowCodec):
            return tensor
        threads = self.threads or rows.cores()
        began = time.perf_counter()
        parts = rows.encode(codec, tensor.float().reshape(-1, shape[-1]).numpy(), threads)
        encoded = time.perf_counter()
        out = np.empty((tensor.numel() // shape[-1], shape[-1]), np.uint16)
        rows.decode(codec, parts, out, threads)
        seconds["encode"] += encoded - began
        seconds["decode"] += time.perf_counter() - encoded
        return to_tensor(out.reshape(shape), "BF16")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Any]:
        from safetensors import safe_open

        with contextlib.ExitStack() as held:
            files = {}
            for path in sorted(set(self._shards.values())):
                with _told(path):
                    files[path] = held.enter_context(safe_open(path, framework="pt"))

            def read(name: str) -> torch.Tensor:
                path = self._shards[name]
                with _told(path):
                    tensor: torch.Tensor = files[path].get_tensor(name)
                return tensor

            yield read


def _shards(folder: Path) -> dict[str, Path]:
    """Which file of a checkpoint holds each tensor: by its index, or by the files' own headers.

    :raises BlobError: there is none, it cannot be read, or the index leads out of ``folder``.
    """
    from safetensors import safe_open

    index = folder / INDEX
    if index.is_file():
        return {name: folder / file for name, file in _indexed(index).items()}
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with _told(path), safe_open(path, framework="pt") as file:
            found.update(dict.fromkeys(file.keys(), path))
    if not found:
        raise BlobError(f"{folder}: neither a blob nor a checkpoint: no manifest, no safetensors")
    return found


def _indexed(index: Path) -> dict[str, str]:
    """The name of each tensor's file, which lies beside ``index``."""
    try:
        tree = json.loads(index.read_bytes())
    except OSError as error:
        raise BlobError(f"{index}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BlobError(f"{index}: not JSON: {error}", FETCH) from error
    named = tree.get("weight_map") if isinstance(tree, dict) else None
    if not isinstance(named, dict) or not named:
        raise BlobError(f"{index}: no 'weight_map' of tensors and files", FETCH)
    for name, file in named.items():
        if not isinstance(file, str) or not PLAIN.fullmatch(file):
            raise BlobError(
                f"{index}: {printable(name)}: expected the name of a file beside it, "
                f"got {printable(file)}",
                FETCH,
            )
    return named


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """What is wrong with the file ``path``, in the words of this project's errors."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise BlobError(f"{path}: cannot be read: {error}", FETCH) from error
