"""Bytes as they are: what is too small to gain, or must stay exact and readable by anything."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blob.codecs import Parts

CHUNK = 2**20


@dataclass(frozen=True)
class Raw:
    """No codec at all."""

    @property
    def name(self) -> str:
        """As the manifest says it."""
        return "raw"

    @property
    def chunk(self) -> int:
        """Bytes of a chunk; the last may be shorter."""
        return CHUNK

    def encode(self, raw: memoryview) -> dict[str, NDArray[Any]]:
        """``raw`` itself, as one part without a name; nothing is copied."""
        return {"": np.frombuffer(raw, np.uint8)}

    def decode(self, parts: Parts, index: int, out: memoryview) -> None:
        """Chunk ``index`` into ``out``, which has exactly its size.

        :raises ValueError: what is stored has no such chunk.
        """
        stored = np.ascontiguousarray(parts[""]).reshape(-1).view(np.uint8)
        target = np.frombuffer(out, np.uint8)
        piece = stored[index * CHUNK : (index + 1) * CHUNK] if index >= 0 else stored[:0]
        if piece.size != target.size:
            raise ValueError(f"chunk {index} has {piece.size} bytes, expected {target.size}")
        np.copyto(target, piece)
