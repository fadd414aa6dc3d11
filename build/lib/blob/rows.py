"""One matrix on several threads: its rows are split, and the bytes are those of one thread.

For a single large tensor. A whole blob is spread by tensors instead (``blob.reconstruct``).
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from blob.codecs import Bfloats, Floats, Parts, RowCodec
from blob.numpy_types import NUMPY

# Numbers in a piece: its F32 input or BF16 output stays in a core's second-level cache.
PIECE = 128 * 1024


def cores() -> int:
    """Threads that can run at once here."""
    return len(os.sched_getaffinity(0))


def pieces(rows: int, cols: int, numbers: int = PIECE) -> Iterator[slice]:
    """Slices of at most ``numbers`` numbers, and of one row at least."""
    step = max(1, numbers // max(1, cols))
    return (slice(begin, min(begin + step, rows)) for begin in range(0, rows, step))


def empty_parts(codec: RowCodec, rows: int, cols: int) -> Parts:
    """Arrays for ``codec.encode`` to fill, and its constants."""
    made = {
        key: np.empty(part.shape, NUMPY[part.dtype])
        for key, part in codec.parts(rows, cols).items()
    }
    return {**made, **codec.constants(rows, cols)}


def of_rows(codec: RowCodec, parts: Parts, cols: int) -> Parts:
    """The parts that have a row for each row of the matrix: all but the constants."""
    return {key: parts[key] for key in codec.parts(1, cols)}


def sliced(parts: Parts, rows: slice) -> Parts:
    """Some rows of each part."""
    return {key: array[rows] for key, array in parts.items()}


def encode(codec: RowCodec, values: Floats, threads: int = 1) -> Parts:
    """``values`` (rows × cols) as stored parts."""
    out = empty_parts(codec, *values.shape)
    rowwise = of_rows(codec, out, values.shape[1])

    def some(rows: slice) -> None:
        codec.encode(values[rows], sliced(rowwise, rows))

    each(some, (len(values), values.shape[1]), threads)
    return out


def decode(codec: RowCodec, parts: Parts, out: Bfloats, threads: int = 1) -> None:
    """Stored ``parts`` as BF16 bits into ``out`` (rows × cols)."""
    rowwise = of_rows(codec, parts, out.shape[1])

    def some(rows: slice) -> None:
        codec.decode(sliced(rowwise, rows), out[rows])

    each(some, (len(out), out.shape[1]), threads)


def each(
    work: Callable[[slice], None], shape: tuple[int, int], threads: int, numbers: int = PIECE
) -> None:
    """``work`` on slices of the rows of a matrix of ``shape``, about ``numbers`` numbers each.

    An exception of ``work`` comes out, when the slices begun are done.
    """
    todo = list(pieces(*shape, numbers))
    if threads <= 1 or len(todo) <= 1:
        for rows in todo:
            work(rows)
        return
    with ThreadPoolExecutor(min(threads, len(todo))) as pool:
        # list() lets an exception of a thread out.
        list(pool.map(work, todo))
