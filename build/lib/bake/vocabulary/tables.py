"""The tensors that have a row for each token, and files written with only the rows that stay.

Rows go from the mapped source to the file in pieces of a few MiB, so memory does not grow with a
table.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bake.checkpoint.contents import Tensor
from bake.checkpoint.folder import Located, Shard
from bake.checkpoint.output import Output
from bake.checkpoint.settings import tied
from bake.checkpoint.source import Bytes
from bake.checkpoint.writing import INDEX, SHARD_BYTES, Planned, index_of, planned
from bake.errors import BakeError, Unsupported
from bake.progress import Shown
from blob.dtypes import WIDTH
from blob.files import replace, sync

PIECE_BYTES = 4 * 1024**2
# Last parts of names: the embedding, the head, and the same of drafting layers.
EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in)\.weight$")
HEAD = re.compile(r"(^|\.)(lm_head|shared_head\.head|embed_out)\.(weight|bias)$")
Ids = NDArray[np.int64]


def rows_of(tensors: Mapping[str, Tensor], config: Mapping[str, Any], where: str) -> int:
    """Rows of the model's tables.

    :raises BakeError: they differ, there is none, or a head that the config asks for is missing.
    :raises Unsupported: a tensor that is not known has as many.
    """
    tables = {name: one for name, one in tensors.items() if is_table(name)}
    sizes = {name: one.shape[0] if one.shape else 0 for name, one in tables.items()}
    if not any(EMBEDDING.search(name) for name in tables):
        raise Unsupported(f"{where}: no embedding is found in it (…embed_tokens.weight)")
    rows = max(sizes.values())
    for name, size in sizes.items():
        if size != rows:
            raise BakeError(
                f"{where}: {name} has {size} rows, and another table {rows}",
                "fetch the checkpoint again: its tables must have a row for each token",
            )
    for name, one in tensors.items():
        if rows in one.shape and name not in tables:
            raise Unsupported(
                f"{where}: {name} {list(one.shape)} has a size of {rows}, as the vocabulary, and "
                "is not known to be a table of tokens"
            )
    if tied(config) is False and not any(HEAD.search(name) for name in tables):
        raise BakeError(
            f"{where}: its config says that the head is its own, and no lm_head.weight is there",
            "fetch the missing shards",
        )
    return rows


def is_table(name: str) -> bool:
    """Whether a tensor of this name has a row for each token."""
    return bool(EMBEDDING.search(name) or HEAD.search(name))


def write_all(part: Path, there: Located, kept: Sequence[int], shown: Shown) -> tuple[int, int]:
    """Every tensor into ``part``, tables with only the rows ``kept``. Bytes before, and after.

    :raises OSError: the disk is full, or the folder cannot be written.
    """
    files = planned([_output(tensor, len(kept)) for _, tensor in there.values()], "BF16", most())
    total = sum(file.size for file in files)
    ids = np.asarray(kept, np.int64)
    done = 0
    for file in files:
        unfinished = part / f"{file.name}.tmp"
        with unfinished.open("wb", buffering=0) as out:
            done += _put(out, file.header)
            for output in file.outputs:
                for piece in _pieces(*there[output.name], ids):
                    done += _put(out, piece)
                    shown(done, total)
            os.fsync(out.fileno())
        unfinished.rename(part / file.name)
    if len(files) > 1:
        replace(part / INDEX, index_of(files), 0o644)
    sync(part)
    return sum(tensor.nbytes for _, tensor in there.values()), _data(files)


def most() -> int:
    """Bytes of a file at most."""
    return SHARD_BYTES


def _data(files: Sequence[Planned]) -> int:
    return sum(file.size - len(file.header) for file in files)


def _output(tensor: Tensor, rows: int) -> Output:
    if tensor.dtype not in WIDTH:
        raise Unsupported(f"{tensor.name}: numbers of the type {tensor.dtype} are not copied")
    shape = (rows, *tensor.shape[1:]) if is_table(tensor.name) else tensor.shape
    return Output(tensor.name, shape, (tensor.name,), _never, kept=tensor.dtype)


def _never(_inputs: Any, _out: Any, _threads: int) -> None:
    raise AssertionError("copied in pieces, never filled")


def _pieces(shard: Shard, tensor: Tensor, ids: Ids) -> Iterator[Any]:
    source = shard.source
    source.check()
    pieces = _rows(source, tensor, ids) if is_table(tensor.name) else _whole(source, tensor)
    yield from pieces
    source.check()


def _whole(source: Bytes, tensor: Tensor) -> Iterator[memoryview]:
    end = tensor.offset + tensor.nbytes
    for begin in range(tensor.offset, end, PIECE_BYTES):
        until = min(begin + PIECE_BYTES, end)
        yield source.read(begin, until)
        source.forget(begin, until)


def _rows(source: Bytes, tensor: Tensor, ids: Ids) -> Iterator[NDArray[np.uint8]]:
    """Rows of ``ids``, which rise, some at a time; what is behind them is forgotten."""
    width = tensor.nbytes // tensor.shape[0]
    view = source.read(tensor.offset, tensor.offset + tensor.nbytes)
    table = np.frombuffer(view, np.uint8).reshape(tensor.shape[0], width)
    step = max(1, PIECE_BYTES // width)
    for at in range(0, len(ids), step):
        some = ids[at : at + step]
        yield table[some]
        first, last = int(some[0]), int(some[-1]) + 1
        source.forget(tensor.offset + first * width, tensor.offset + last * width)


def _put(file: BinaryIO | Any, raw: Any) -> int:
    """``raw`` wholly; bytes that were written."""
    view = memoryview(raw).cast("B")
    done = 0
    while done < len(view):
        done += file.write(view[done:])
    return done
