"""From stored bytes to weights, on all cores, each byte proven before anybody gets it.

A tensor belongs to one thread, which takes it through in pieces (``blob.restore``); threads work
on different tensors. SHA-256 is the limit, as it takes longer than decoding: a thread can give
``1 / (1/decode + 1/sha256)``, and nothing else may take its time.

First touch of a page costs thrice what a copy does: buffers are used again, by ``Buffers``.
"""

import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blob.blob import Blob
from blob.errors import BlobError
from blob.layout import stored_name
from blob.manifest import Tensor
from blob.numpy_types import NUMPY
from blob.proof import VERIFY, Clock, Proof, differs, in_order
from blob.restore import Bytes, flat, restore
from blob.rows import cores

# Most that is decoded ahead of the consumer, unless one tensor alone is larger.
HELD_BYTES = 2**30
# What a disk is asked for before it is needed.
AHEAD_BYTES = 64 * 2**20
# What stock vLLM takes as it is stored.
PACKED = ("int4",)
# References to a buffer that nobody uses: the list's, and getrefcount's own argument.
UNUSED = 2


@dataclass(frozen=True)
class Loaded:
    """A proven array: a tensor, or a stored part of one. BF16 is held as its bits."""

    tensor: Tensor
    name: str
    dtype: str
    array: NDArray[Any]


class Buffers:
    """Memory for tensors, used again when nobody holds an array in it any more.

    Who holds one is asked of the interpreter's own count: arrays over a buffer, torch tensors over
    such arrays, and views of those all keep it. So a consumer may keep what it got: that costs
    memory, and is never overwritten.
    """

    def __init__(self) -> None:
        self._all: list[Bytes] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> Bytes:
        """``size`` bytes of the smallest unused buffer that is large enough, or of a new one."""
        with self._lock:
            unused = [i for i in range(len(self._all)) if sys.getrefcount(self._all[i]) == UNUSED]
            unused.sort(key=lambda i: self._all[i].nbytes)
            for i in unused:
                if self._all[i].nbytes >= size:
                    return self._all[i][:size]
            if unused:
                # Grown, not added to: soon all are as large as the largest tensors.
                del self._all[unused[0]]
            self._all.append(np.empty(size, np.uint8))
            return self._all[-1][:]

    @property
    def nbytes(self) -> int:
        """Memory held now."""
        return sum(buffer.nbytes for buffer in self._all)


class Stream:
    """Tensors of a blob, proven, to be iterated over once; made by ``stream``.

    Afterwards ``seconds`` tells thread-seconds by phase, ``bytes_stored`` and ``bytes_out`` what
    went in and came out, ``buffers.nbytes`` the memory it took.
    """

    def __init__(self, blob: Blob, tensors: list[Tensor], threads: int, packed: bool) -> None:
        self._blob = blob
        self._tensors = tensors
        self._threads = threads
        self._packed = packed
        self._lock = threading.Lock()
        self.buffers = Buffers()
        self.seconds: dict[str, float] = {}
        self.bytes_stored = 0
        self.bytes_out = 0

    def __iter__(self) -> Iterator[Loaded]:
        """Each tensor in the order asked for.

        :raises Damaged: one is not what was written; it is named and not given.
        """
        todo, ahead = deque(self._tensors), iter(self._tensors)
        waiting: deque[tuple[Future[list[Loaded]], int]] = deque()
        asked = 0
        with ThreadPoolExecutor(self._threads, "preheat-blob") as pool:
            try:
                while todo or waiting:
                    while todo and self._room(todo[0], [size for _, size in waiting]):
                        tensor = todo.popleft()
                        asked -= tensor.stored_size
                        while asked < AHEAD_BYTES and (coming := next(ahead, None)):
                            self._blob.ask_for(coming)
                            asked += coming.stored_size
                        waiting.append((pool.submit(self._load, tensor), tensor.size))
                    # By no name: it would keep the buffer while the consumer is at work.
                    yield from waiting.popleft()[0].result()
            finally:
                for future, _ in waiting:
                    future.cancel()

    def _room(self, tensor: Tensor, sizes: Sequence[int]) -> bool:
        """Whether ``tensor`` may be begun while tensors of ``sizes`` are on their way.

        One at work for each thread and one done, so that none waits for a large one, nor for the
        consumer; four times as many took no less time.
        """
        if not sizes:
            return True
        return len(sizes) <= 2 * self._threads and sum(sizes) + tensor.size <= HELD_BYTES

    def _load(self, tensor: Tensor) -> list[Loaded]:
        clock = Clock()
        if self._packed and tensor.codec in PACKED:
            loaded = _as_stored(self._blob, tensor, clock)
        else:
            loaded = [_given_back(self._blob, tensor, clock, self.buffers)]
        with self._lock:
            self.bytes_stored += tensor.stored_size
            self.bytes_out += sum(one.array.nbytes for one in loaded)
            for phase, seconds in clock.seconds.items():
                # A phase that nothing went through is left out.
                if seconds:
                    self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
        return loaded


def stream(
    blob: Blob,
    threads: int | None = None,
    names: Iterable[str] | None = None,
    *,
    packed: bool = False,
) -> Stream:
    """The tensors of ``blob``, or those called ``names``, to iterate over.

    ``packed`` gives tensors that stock vLLM takes quantized as they are stored, part by part.

    :raises BlobError: a name that the blob does not hold.
    """
    tensors = list(blob.manifest.tensors)
    if names is not None:
        by_name = {tensor.name: tensor for tensor in tensors}
        tensors = []
        for name in names:
            if name not in by_name:
                raise BlobError(f"{blob.folder}: no tensor {name} in this blob")
            tensors.append(by_name[name])
    return Stream(blob, tensors, threads or cores(), packed)


def _given_back(blob: Blob, tensor: Tensor, clock: Clock, buffers: Buffers) -> Loaded:
    if "" in tensor.parts:
        restore(blob, tensor, clock, None)
        return Loaded(tensor, tensor.name, tensor.dtype, blob.part(tensor, ""))
    try:
        out = buffers.take(tensor.size)
    except MemoryError as error:
        raise BlobError(f"{tensor.name}: no memory for its {tensor.size} bytes") from error
    restore(blob, tensor, clock, out)
    array = out.view(NUMPY[tensor.dtype]).reshape(tensor.shape)
    return Loaded(tensor, tensor.name, tensor.dtype, array)


def _as_stored(blob: Blob, tensor: Tensor, clock: Clock) -> list[Loaded]:
    parts, proof, at = blob.parts(tensor), Proof(), time.perf_counter()
    for key in in_order(parts):
        # These are what is handed over, so SHA-256 proves them.
        proof.weights(flat(parts[key]))
    clock.lap(VERIFY, at)
    if proof.sha256 != tensor.stored_sha256:
        raise differs(tensor.name, "stored bytes: sha256", tensor.stored_sha256, proof.sha256)
    return [
        Loaded(tensor, stored_name(tensor.name, key), tensor.parts[key].dtype, array)
        for key, array in parts.items()
    ]
