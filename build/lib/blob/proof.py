"""The digests of one tensor, taken piece by piece while the pieces are in a core's cache.

The stored bytes are taken part by part, from the smallest to the largest: scales are hashed at
once and the numbers as they are decoded, and each is read from memory once.
"""

import hashlib
import time
from collections.abc import Mapping
from typing import Any

from blake3 import blake3
from numpy.typing import NDArray

from blob.errors import Damaged
from blob.manifest import Tensor

# What a thread's time went to; the rest of it is Python.
DECODE, VERIFY = "decode", "verify"


class Clock:
    """Seconds of one thread, by phase."""

    def __init__(self) -> None:
        self.seconds = {DECODE: 0.0, VERIFY: 0.0}

    def lap(self, phase: str, since: float) -> float:
        """Add what passed since ``since`` to ``phase``; the time now, for the next lap."""
        now = time.perf_counter()
        self.seconds[phase] += now - since
        return now


class Proof:
    """Takes in what a tensor gives back, and what is stored of it."""

    def __init__(self) -> None:
        self._weights = hashlib.sha256()
        self._stored = blake3()

    def weights(self, piece: memoryview) -> None:
        """The next bytes of the tensor."""
        self._weights.update(piece)

    def stored(self, piece: memoryview) -> None:
        """The next stored bytes, in the order of ``in_order``."""
        self._stored.update(piece)

    @property
    def sha256(self) -> str:
        """Of the weights."""
        return self._weights.hexdigest()

    @property
    def blake3(self) -> str:
        """Of the stored bytes."""
        return self._stored.hexdigest()

    def check_stored(self, tensor: Tensor) -> None:
        """Whether the stored bytes are those that were written.

        :raises Damaged: they are not.
        """
        if self.blake3 != tensor.stored_blake3:
            raise differs(tensor.name, "stored bytes: blake3", tensor.stored_blake3, self.blake3)

    def check_weights(self, tensor: Tensor) -> None:
        """Whether what it gave back is what was packed.

        :raises Damaged: it is not.
        """
        if self.sha256 != tensor.sha256:
            raise differs(tensor.name, "weights: sha256", tensor.sha256, self.sha256)


def differs(name: str, what: str, expected: str, got: str) -> Damaged:
    """Two digests that should be one."""
    return Damaged(name, f"{what} differs (expected {expected[:12]}…, got {got[:12]}…)")


def in_order(parts: Mapping[str, NDArray[Any]]) -> list[str]:
    """Keys of ``parts`` as their bytes are digested: small ones first, then by name."""
    return sorted(parts, key=lambda key: (parts[key].nbytes, key))
