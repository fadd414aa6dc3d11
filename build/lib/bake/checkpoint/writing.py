"""safetensors files, written while their tensors are made: header first, then one after the other.

A file has its name only when it is whole and on the disk; until then it is ``<name>.tmp``.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bake.checkpoint.output import Output
from blob.dtypes import WIDTH
from blob.files import sync
from blob.numpy_types import NUMPY
from blob.restore import flat

SHARD_BYTES = 2 * 1024**3
INDEX = "model.safetensors.index.json"
# As the library pads its headers: what follows can be mapped as numbers.
ALIGNMENT = 8


@dataclass(frozen=True)
class Planned:
    """One file to be: its name, tensors in order, and where it says they are."""

    name: str
    outputs: tuple[Output, ...]
    header: bytes
    size: int


def nbytes(output: Output, dtype: str) -> int:
    """Bytes of ``output``, where its numbers become ``dtype``."""
    return prod(output.shape) * WIDTH[output.kept or dtype]


def planned(outputs: Sequence[Output], dtype: str, most: int = SHARD_BYTES) -> tuple[Planned, ...]:
    """Files of at most ``most`` bytes, or of one tensor."""
    groups: list[list[Output]] = [[]]
    room = most
    for output in sorted(outputs, key=lambda one: one.name):
        size = nbytes(output, dtype)
        if size > room and groups[-1]:
            groups.append([])
            room = most
        groups[-1].append(output)
        room -= size
    count = len(groups)
    return tuple(
        _planned(_name(at, count), tuple(group), dtype) for at, group in enumerate(groups, 1)
    )


def index_of(files: Sequence[Planned]) -> bytes:
    """The index of several files, as transformers and vLLM read it."""
    total = sum(file.size - len(file.header) for file in files)
    listed = {output.name: file.name for file in files for output in file.outputs}
    tree = {"metadata": {"total_size": total}, "weight_map": dict(sorted(listed.items()))}
    return (json.dumps(tree, indent=2) + "\n").encode()


def is_whole(path: Path, file: Planned) -> bool:
    """Whether an earlier run has finished ``file``."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    with path.open("rb") as there:
        return there.read(len(file.header)) == file.header


class Buffers:
    """Two pieces of memory in turn: one is filled while the other is written. Of the largest
    tensor each, and taken from the machine as they are touched.
    """

    def __init__(self, most: int) -> None:
        self._buffers = [np.empty(most, np.uint8) for _ in range(2)]
        self._writing: list[Future[int] | None] = [None, None]
        self._pool = ThreadPoolExecutor(1)
        self._turn = 0

    def __enter__(self) -> "Buffers":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True)

    def empty(self, output: Output, dtype: str) -> NDArray[Any]:
        """An array for ``output``; waits until what was there is written.

        :raises OSError: what was there could not be written.
        """
        self._turn = 1 - self._turn
        self._settle(self._turn)
        size = nbytes(output, dtype)
        numbers = self._buffers[self._turn][:size].view(NUMPY[output.kept or dtype])
        return numbers.reshape(output.shape)

    def write(self, file: BinaryIO, array: NDArray[Any]) -> None:
        """Begin to write the array that ``empty`` gave last."""
        self._writing[self._turn] = self._pool.submit(_all, file, array)

    def settle(self) -> None:
        """Wait until everything is written.

        :raises OSError: something could not be.
        """
        for turn in range(2):
            self._settle(turn)

    def _settle(self, turn: int) -> None:
        if (future := self._writing[turn]) is not None:
            self._writing[turn] = None
            future.result()


def write(
    folder: Path, file: Planned, dtype: str, buffers: Buffers
) -> Iterator[tuple[Output, Any]]:
    """Make ``file`` in ``folder``: gives each output with the array that is to be filled.

    :raises OSError: the disk is full, or the folder cannot be written.
    """
    unfinished = folder / f"{file.name}.tmp"
    with unfinished.open("wb", buffering=0) as out:
        _all(out, file.header)
        for output in file.outputs:
            array = buffers.empty(output, dtype)
            yield output, array
            buffers.write(out, array)
        buffers.settle()
        os.fsync(out.fileno())
    unfinished.rename(folder / file.name)
    sync(folder)


def _all(file: Any, raw: bytes | NDArray[Any]) -> int:
    """``raw`` wholly: a single write of the kernel's ends at 2 GiB."""
    view = memoryview(raw) if isinstance(raw, bytes) else flat(raw)
    done = 0
    while done < len(view):
        done += file.write(view[done:])
    return done


def _name(at: int, count: int) -> str:
    return f"model-{at:05}-of-{count:05}.safetensors" if count > 1 else "model.safetensors"


def _planned(name: str, outputs: tuple[Output, ...], dtype: str) -> Planned:
    tree: dict[str, Mapping[str, Any]] = {"__metadata__": {"format": "pt"}}
    position = 0
    for output in outputs:
        end = position + nbytes(output, dtype)
        tree[output.name] = {
            "dtype": output.kept or dtype,
            "shape": list(output.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(tree, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    return Planned(name, outputs, header, len(header) + position)
