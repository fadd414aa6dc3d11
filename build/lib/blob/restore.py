"""One tensor, from its stored parts to its bytes, decoded and hashed in pieces.

A piece is decoded, hashed and left: it stays in the core's second-level cache for as long as
anybody needs it. ``out`` takes the whole tensor; without it a piece takes the place of the last.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blob.blob import Blob
from blob.codecs import ByteCodec, Parts, RowCodec
from blob.errors import Damaged
from blob.manifest import Tensor
from blob.proof import DECODE, VERIFY, Clock, Proof, in_order
from blob.registry import codec_of
from blob.rows import of_rows, pieces, sliced

Bytes = NDArray[np.uint8]

PIECE_BYTES = 512 * 1024


@dataclass(frozen=True)
class Restoring:
    """One tensor on its way."""

    tensor: Tensor
    parts: Parts
    proof: Proof
    clock: Clock
    out: Bytes | None
    scratch: Bytes | None

    def rows(self, codec: RowCodec) -> None:
        """Of a quantized matrix, each row by itself."""
        rows, cols = self.tensor.rows_and_cols
        rowwise = of_rows(codec, self.parts, cols)
        *small, largest = in_order(self.parts)
        if largest not in rowwise:
            # A matrix smaller than its constants.
            small, largest = [*small, largest], ""
        at = time.perf_counter()
        for key in small:
            self.proof.stored(flat(self.parts[key]))
        for some in pieces(rows, cols, PIECE_BYTES // 2):
            piece = self._place(some.start * cols * 2, some.stop * cols * 2)
            at = self.clock.lap(VERIFY, at)
            codec.decode(sliced(rowwise, some), piece.view(np.uint16).reshape(-1, cols))
            at = self.clock.lap(DECODE, at)
            if largest:
                self.proof.stored(flat(self.parts[largest][some]))
            self.proof.weights(piece.data)
        self.clock.lap(VERIFY, at)

    def raw(self) -> None:
        """Of what is stored as it is: there is nothing to decode, and nothing is copied.

        One digest says it all here: the stored bytes are the weights.
        """
        at, stored = time.perf_counter(), flat(self.parts[""])
        for begin in range(0, len(stored), PIECE_BYTES):
            self.proof.weights(stored[begin : begin + PIECE_BYTES])
        self.clock.lap(VERIFY, at)

    def chunks(self, codec: ByteCodec) -> None:
        """Of compressed bytes.

        :raises Damaged: a chunk cannot be decoded.
        """
        at = time.perf_counter()
        # Before decoding: a C library is not to see what nobody wrote.
        for key in in_order(self.parts):
            self.proof.stored(flat(self.parts[key]))
        self.proof.check_stored(self.tensor)
        for index, begin in enumerate(range(0, self.tensor.size, codec.chunk)):
            piece = self._place(begin, min(begin + codec.chunk, self.tensor.size))
            at = self.clock.lap(VERIFY, at)
            try:
                codec.decode(self.parts, index, piece.data)
            except ValueError as error:
                raise Damaged(self.tensor.name, f"chunk {index}: {error}") from error
            at = self.clock.lap(DECODE, at)
            for start in range(0, piece.nbytes, PIECE_BYTES):
                self.proof.weights(piece[start : start + PIECE_BYTES].data)
        self.clock.lap(VERIFY, at)

    def _place(self, begin: int, end: int) -> Bytes:
        if self.out is not None:
            return self.out[begin:end]
        if self.scratch is None or self.scratch.nbytes < end - begin:
            return np.empty(end - begin, np.uint8)
        return self.scratch[: end - begin]


def restore(
    blob: Blob, tensor: Tensor, clock: Clock, out: Bytes | None, scratch: Bytes | None = None
) -> None:
    """Decode ``tensor`` into ``out`` (its bytes), or through ``scratch``, and check its digests.

    :raises Damaged: it is not what was written.
    """
    codec = codec_of(tensor.codec, tensor.params, tensor.name)
    proof = Proof()
    restoring = Restoring(tensor, blob.parts(tensor), proof, clock, out, scratch)
    if isinstance(codec, RowCodec):
        restoring.rows(codec)
        proof.check_stored(tensor)
    elif "" in tensor.parts:
        restoring.raw()
    else:
        restoring.chunks(codec)
    proof.check_weights(tensor)


def scratch_for(tensors: Iterable[Tensor]) -> Bytes:
    """Memory for ``restore`` without ``out``: a piece, or the longest row of ``tensors``."""
    # A tensor without rows can claim any number of columns.
    rows = [min(t.size, 2 * t.rows_and_cols[1]) for t in tensors if t.codec != "raw"]
    return np.empty(max([PIECE_BYTES, *rows]), np.uint8)


def flat(array: NDArray[Any]) -> memoryview:
    """The bytes of an array."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
