"""A tensor as it is: nothing to encode, nothing to decode."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from blob.codecs import Parts


@dataclass(frozen=True)
class Raw:
    """Bytes as they came, in a part without a name of its own."""

    name: ClassVar[str] = "raw"
    chunk: ClassVar[int] = 2**20

    def encode(self, raw: memoryview) -> dict[str, NDArray[Any]]:
        """``raw``, as bytes."""
        return {"": np.frombuffer(raw, np.uint8)}

    def decode(self, parts: Parts, index: int, out: memoryview) -> None:
        """Chunk ``index``, copied."""
        begin = index * self.chunk
        out[:] = parts[""].reshape(-1).view(np.uint8)[begin : begin + len(out)].data
