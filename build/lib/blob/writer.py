"""Makes a blob of tensors: encodes them, proves each by decoding it again, writes shards.

One shard for each layer and kind: what a recipe leaves as it is lies apart from what it quantizes,
so that blobs of one model share those files in the store. Shards are made side by side, each by
one thread, tensor by tensor. The manifest comes last, and without it a folder is no blob.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from blake3 import blake3
from numpy.typing import NDArray

from blob import manifest
from blob.codecs import Bfloats, ByteCodec, Floats, Parts, RowCodec
from blob.codecs.bfloat16 import to_float32
from blob.dtypes import DTYPES
from blob.errors import BlobError
from blob.files import check_name, replace
from blob.layout import read_header, stored_name
from blob.manifest import File, Manifest, Rank, Shard, Stored, Tensor, check_file
from blob.proof import in_order
from blob.recipe import Choice
from blob.registry import params_of
from blob.restore import PIECE_BYTES, flat
from blob.rows import cores, empty_parts, of_rows, pieces, sliced
from blob.store import Kept, Store

# What the bytes of a codec could depend on.
ENCODERS = ("preheat", "numpy", "numba", "llvmlite", "zipnn", "safetensors")
LARGEST_HALF = 65504
# Of a BF16 that is infinite or no number.
EXPONENT = np.uint16(0x7F80)
LAYER = re.compile(r"^(.*?\.\d+)\.")
# Bytes done of bytes in all, of the source.
Progress = Callable[[int, int], None]


def silent(_done: int, _total: int) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class Plain:
    """A tensor to be written; BF16 is held as its bits."""

    name: str
    dtype: str
    array: NDArray[Any]
    choice: Choice


@dataclass(frozen=True)
class About:
    """What a manifest says of a blob besides its tensors; ``files`` go in by the names given."""

    recipe: Mapping[str, str | int]
    source: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path | bytes] = field(default_factory=dict)
    rank: Rank | None = None


@dataclass(frozen=True)
class _Encoded:
    """One tensor, not yet in a shard: its entry lacks where it lies."""

    entry: dict[str, Any]
    arrays: dict[str, tuple[str, NDArray[Any]]]


def write(  # noqa: PLR0913 - what, where, and how
    folder: Path,
    tensors: Sequence[Plain],
    store: Store,
    about: About,
    progress: Progress = silent,
    threads: int | None = None,
) -> Manifest:
    """Write a blob of ``tensors`` into ``folder``, which has no manifest yet.

    :raises BlobError: a tensor that its codec cannot hold (named), a full disk, or a folder that
        holds a blob. Without a manifest, whatever stands in ``folder`` is no blob.
    """
    if (folder / manifest.NAME).exists():
        raise BlobError(f"{folder}: there is a blob already", "remove it, or choose another folder")
    groups = _grouped(tensors)
    total, done = sum(plain.array.nbytes for plain in tensors), 0
    with store.in_use(), ThreadPoolExecutor(threads or cores()) as pool:
        shards: list[Shard] = []
        entries: list[Tensor] = []
        making = [pool.submit(_shard, group, store) for group in groups]
        try:
            for group, future in zip(groups, making, strict=True):
                kept, placed = future.result()
                shards.append(Shard(sha256=kept.sha256, size=kept.size))
                entries += placed
                done += sum(plain.array.nbytes for plain in group)
                progress(done, total)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        files = [_file(store, folder, *item) for item in sorted(about.files.items())]
        for shard in shards:
            store.link(Kept(shard.sha256, shard.size), folder / shard.path)
        made = manifest.make(
            recipe=dict(about.recipe),
            encoder=encoder(),
            source=dict(about.source),
            rank=about.rank,
            files=files,
            shards=shards,
            tensors=entries,
        )
        _put(folder, made)
    return made


def encoder() -> dict[str, str]:
    """The build that encodes: releases of all that its bytes could depend on."""
    found = {}
    for name in ENCODERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _put(folder: Path, made: Manifest) -> None:
    try:
        replace(folder / manifest.NAME, manifest.dump(made))
    except OSError as error:
        raise BlobError(f"{folder}: cannot be written: {error.strerror}") from error


def _grouped(tensors: Iterable[Plain]) -> list[list[Plain]]:
    groups: dict[tuple[str, bool], list[Plain]] = {}
    names: set[str] = set()
    for plain in sorted(tensors, key=lambda plain: plain.name):
        _check(plain, names)
        layer = LAYER.match(plain.name)
        key = (layer[1] if layer else "", isinstance(plain.choice.codec, RowCodec))
        groups.setdefault(key, []).append(plain)
    # The largest first, so that no thread is left alone with one at the end.
    return sorted(groups.values(), key=lambda group: -sum(plain.array.nbytes for plain in group))


def _check(plain: Plain, names: set[str]) -> None:
    try:
        check_name(plain.name)
    except ValueError as error:
        raise BlobError(str(error)) from error
    if plain.name in names:
        raise BlobError(f"{plain.name}: stands twice")
    names.add(plain.name)


def _shard(group: Sequence[Plain], store: Store) -> tuple[Kept, list[Tensor]]:
    encoded = [_encode(plain) for plain in group]
    arrays = {name: item for one in encoded for name, item in one.arrays.items()}
    if len(arrays) != sum(len(one.arrays) for one in encoded):
        raise BlobError(f"{group[0].name}: its parts have the names of other tensors")
    raw = _serialized(arrays)
    kept = store.put(raw)
    header = read_header(memoryview(raw), len(raw), kept.sha256)
    return kept, [_placed(one, kept.sha256, header.arrays) for one in encoded]


def _serialized(arrays: Mapping[str, tuple[str, NDArray[Any]]]) -> bytes:
    contiguous = {name: (dtype, np.ascontiguousarray(a)) for name, (dtype, a) in arrays.items()}
    specs = {
        name: safetensors.TensorSpec(
            dtype=DTYPES[dtype].library,
            # ascontiguousarray makes a vector of a number.
            shape=list(arrays[name][1].shape),
            data_ptr=array.ctypes.data,
            data_len=array.nbytes,
        )
        for name, (dtype, array) in contiguous.items()
    }
    return bytes(safetensors.serialize(specs, None))


def _placed(one: _Encoded, shard: str, arrays: Mapping[str, Stored]) -> Tensor:
    parts = {
        key: arrays[stored_name(one.entry["name"], key)].model_dump() for key in one.entry["parts"]
    }
    return manifest.sealed({**one.entry, "shard": shard, "parts": parts})


def _encode(plain: Plain) -> _Encoded:
    codec = plain.choice.codec
    if isinstance(codec, RowCodec):
        parts, digest = _quantized(codec, plain)
        dtypes = {key: part.dtype for key, part in codec.parts(1, codec.block).items()}
        dtype = "BF16"
    else:
        parts, digest = _kept(codec, plain)
        dtypes = {key: plain.dtype if key == "" else "U8" for key in parts}
        dtype = plain.dtype
    stored_sha256, stored_blake3 = hashlib.sha256(), blake3()
    for key in in_order(parts):
        stored_sha256.update(flat(parts[key]))
        stored_blake3.update(flat(parts[key]))
    entry = {
        "name": plain.name,
        "shape": list(plain.array.shape),
        "dtype": dtype,
        "codec": codec.name,
        "params": params_of(codec),
        "parts": dict.fromkeys(parts),
        "sha256": digest,
        "stored_sha256": stored_sha256.hexdigest(),
        "stored_blake3": stored_blake3.hexdigest(),
    }
    # What a codec adds besides rows of bytes are offsets and shapes.
    named = {
        stored_name(plain.name, key): ("I64" if array.dtype == np.int64 else dtypes[key], array)
        for key, array in parts.items()
    }
    return _Encoded(entry, named)


def _kept(codec: ByteCodec, plain: Plain) -> tuple[Parts, str]:
    raw = flat(plain.array)
    digest = hashlib.sha256(raw).hexdigest()
    if codec.name == "raw":
        return {"": plain.array}, digest
    return codec.encode(raw), digest


def _quantized(codec: RowCodec, plain: Plain) -> tuple[Parts, str]:
    cols = plain.array.shape[-1] if plain.array.ndim else 1
    if plain.array.ndim < 2 or not cols or cols % codec.block:
        why = f"{codec.name} takes matrices with columns in multiples of {codec.block}"
        raise BlobError(f"{plain.name}: {why}, got shape {list(plain.array.shape)}")
    matrix = plain.array.reshape(prod(plain.array.shape[:-1]), cols)
    parts = empty_parts(codec, *matrix.shape)
    rowwise = of_rows(codec, parts, cols)
    if matrix.size == 0:
        return parts, hashlib.sha256().hexdigest()
    scratch: Bfloats = np.empty((max(1, PIECE_BYTES // 2 // cols), cols), np.uint16)
    digest = hashlib.sha256()
    for some in pieces(*matrix.shape, PIECE_BYTES // 2):
        values = as_floats(matrix[some], plain.dtype)
        if not np.isfinite(values).all():
            raise BlobError(_not_finite(plain.name, values, some.start))
        stored, back = sliced(rowwise, some), scratch[: len(values)]
        codec.encode(values, stored)
        codec.decode(stored, back)
        digest.update(flat(back))
        if lost := _lost(values, back) or _not_given_back(back):
            place = f"{values[lost]} at [{some.start + lost[0]}, {lost[1]}]"
            raise BlobError(f"{plain.name}: {place}: too large for the scales of {codec.name}")
    return parts, digest.hexdigest()


def as_floats(array: NDArray[Any], dtype: str) -> Floats:
    """F32 numbers of an array in F32, F16 or BF16 (its bits).

    :raises BlobError: another type.
    """
    if dtype == "BF16":
        return to_float32(array)
    if dtype in ("F16", "F32"):
        return np.ascontiguousarray(array, np.float32)
    raise BlobError(f"{dtype} is no type that can be quantized")


def _not_finite(name: str, values: Floats, first_row: int) -> str:
    row, column = (int(place[0]) for place in np.nonzero(~np.isfinite(values)))
    return f"{name}: {values[row, column]} at [{first_row + row}, {column}]: cannot be quantized"


def _not_given_back(back: Bfloats) -> tuple[int, int] | None:
    """Where what comes back is infinite or no number: a scale, or a minimum, overflowed."""
    wrong = (back & EXPONENT) == EXPONENT
    if not wrong.any():
        return None
    row, column = np.unravel_index(int(wrong.argmax()), wrong.shape)
    return int(row), int(column)


def _lost(values: Floats, back: Bfloats) -> tuple[int, int] | None:
    """Where the largest number of a row does not come back, as its scale has no such half.

    It is infinite then, no number, or 0 with all of its group.
    """
    rows = np.arange(len(values))
    columns = np.abs(values).argmax(axis=1)
    largest = values[rows, columns]
    near = np.abs(to_float32(back[rows, columns]) - largest) <= np.abs(largest) / 2
    lost = np.flatnonzero((np.abs(largest) > LARGEST_HALF) & ~near)
    return (int(lost[0]), int(columns[lost[0]])) if lost.size else None


def _file(store: Store, folder: Path, path: str, content: Path | bytes) -> File:
    try:
        check_file(path)
    except ValueError as error:
        raise BlobError(str(error)) from error
    kept = store.put(content) if isinstance(content, bytes) else store.put_file(content)
    store.link(kept, folder / path)
    return File(path=path, size=kept.size, sha256=kept.sha256)
