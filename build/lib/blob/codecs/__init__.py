"""How the numbers of one tensor are stored: pure arithmetic, no files.

Two kinds. A ``RowCodec`` quantizes a matrix, each row by itself, and gives back BF16: rows can be
split over threads at any place and the bytes stay the same. A ``ByteCodec`` keeps the bytes of
any tensor, in chunks. Every codec has a plain reference, which says what the bytes are, and a fast
path that must make the same.

BF16 numbers are held as their bits, in uint16 arrays: NumPy has no such type.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bfloats = NDArray[np.uint16]
Parts = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Part:
    """One stored array of a tensor; ``dtype`` is safetensors' name for it (``U8``, ``I32``, …)."""

    dtype: str
    shape: tuple[int, ...]


@runtime_checkable
class RowCodec(Protocol):
    """Quantizes a matrix row by row. Frozen; its fields are the codec's parameters."""

    @property
    def name(self) -> str:
        """As the manifest says it."""

    @property
    def block(self) -> int:
        """The columns of a matrix must be a multiple of this."""

    def parts(self, rows: int, cols: int) -> dict[str, Part]:
        """What ``encode`` fills: one row of each part for one row of the matrix."""

    def constants(self, rows: int, cols: int) -> dict[str, NDArray[Any]]:
        """Parts that follow from the shape alone and are not split by rows."""

    def encode(self, values: Floats, out: Parts) -> None:
        """Quantize finite ``values`` (rows × cols) into the rows of ``out``; one thread, no GIL."""

    def decode(self, parts: Parts, out: Bfloats) -> None:
        """Rows of ``parts`` as BF16 bits into ``out`` (rows × cols); one thread, no GIL."""

    def encode_reference(self, values: Floats) -> dict[str, NDArray[Any]]:
        """The same as ``encode``, plainly."""

    def decode_reference(self, parts: Parts) -> Floats:
        """What ``decode`` gives, before it is rounded to BF16 (to nearest, ties to even)."""


@runtime_checkable
class ByteCodec(Protocol):
    """Keeps bytes, in chunks that can be had one by one. Frozen; its fields are its parameters."""

    @property
    def name(self) -> str:
        """As the manifest says it."""

    @property
    def chunk(self) -> int:
        """Bytes of a chunk before it is stored; the last may be shorter."""

    def encode(self, raw: memoryview) -> dict[str, NDArray[Any]]:
        """The stored parts of ``raw``."""

    def decode(self, parts: Parts, index: int, out: memoryview) -> None:
        """Chunk ``index`` into ``out``, which has exactly its size; the GIL is off.

        :raises ValueError: what is stored is no such chunk.
        """
