"""Any checkpoint → a Hugging Face folder of plain BF16 (or F32) that vLLM serves.

    find, parse ─► outputs ─► files of at most 2 GiB ─► DST.part ─► whole ─► DST

Tensor by tensor: one is made while the last is written. What an interrupted run has finished is
kept beside the folder, and taken over by the next if it would write the same.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bake import tree
from bake.checkpoint import families, schemes
from bake.checkpoint.arrays import array
from bake.checkpoint.folder import (
    CONFIG,
    Found,
    Located,
    Shard,
    check_index,
    find,
    located,
    open_shards,
    read_object,
    reader,
)
from bake.checkpoint.limits import DEFAULT, ParseLimits
from bake.checkpoint.output import Output
from bake.checkpoint.settings import without_settings
from bake.checkpoint.writing import (
    INDEX,
    SHARD_BYTES,
    Buffers,
    Planned,
    index_of,
    is_whole,
    nbytes,
    planned,
    write,
)
from bake.errors import BakeError, Unsupported
from blob.errors import BlobError
from blob.files import check_name, replace
from blob.rows import cores
from serve import __version__

# What a folder that was made here says of its making; only such a one is ever replaced.
RECORD = "conversion.json"
DTYPES: Mapping[str, str] = {"BF16": "bfloat16", "F32": "float32"}
Progress = Callable[[int, int], None]
ROOM = "make room, or choose another folder; what is done is kept, and taken over"


@dataclass(frozen=True)
class Job:
    """What is to be written, decided: nothing is looked up after this."""

    outputs: tuple[Output, ...]
    inputs: Located
    files: Mapping[str, Path | bytes]
    source: Mapping[str, Any]
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Converted:
    """What was made; ``resumed`` counts the files that an earlier run had finished."""

    folder: Path
    tensors: int
    bytes: int
    files: int
    resumed: int
    dropped: tuple[str, ...]
    seconds: float
    source: Mapping[str, Any] = field(default_factory=dict)


def convert(  # noqa: PLR0913 - what, where, and how
    src: Path,
    dst: Path,
    dtype: str = "BF16",
    progress: Progress = lambda _done, _total: None,
    *,
    config: Path | None = None,
    force: bool = False,
    threads: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    limits: ParseLimits = DEFAULT,
) -> Converted:
    """Make the folder ``dst`` of the checkpoint at ``src``, whole or not at all.

    :raises Malformed: a file is not what its format says.
    :raises Unsupported: something in it is not known; the message names it.
    :raises BakeError: something stands at ``dst``, or the disk is full.
    """
    began = time.monotonic()
    _check_there(dst, src, force=force)
    job = plan(src, config, limits)
    files = planned(job.outputs, dtype, shard_bytes)
    try:
        with tree.locked(dst):
            _check_there(dst, src, force=force)
            part = _begin(dst, _identity(job, dtype, files))
            resumed = _write(part, files, dtype, job, progress, threads or cores())
            _finish(part, files, job, dtype)
            tree.put_in_place(dst)
    except OSError as error:
        where = error.filename or dst
        raise BakeError(f"{where}: cannot be written: {error.strerror}", ROOM) from error
    total = sum(nbytes(output, dtype) for output in job.outputs)
    seconds = round(time.monotonic() - began, 3)
    return Converted(
        dst, len(job.outputs), total, len(files), resumed, job.dropped, seconds, job.source
    )


def plan(src: Path, config: Path | None = None, limits: ParseLimits = DEFAULT) -> Job:
    """Every tensor that a conversion of ``src`` would write; no number is read yet.

    :raises Malformed: a file is not what its format says.
    :raises Unsupported: something in it is not known.
    """
    found = find(src)
    shards = open_shards(found, limits)
    about = {
        "format": shards[0].contents.format,
        "files": {shard.path.name: shard.source.size for shard in shards},
    }
    if shards[0].contents.format == "gguf":
        return _checked(_of_gguf(found, shards, about))
    there = located(shards)
    check_index(found, there)
    return _checked(_of_folder(found, there, about, config))


def _of_gguf(found: Found, shards: Sequence[Shard], about: Mapping[str, Any]) -> Job:
    if len(shards) > 1:
        names = ", ".join(shard.path.name for shard in shards[:4])
        raise Unsupported(
            f"{found.path}: holds {len(shards)} GGUF files ({names})",
            "give one of them; join a split one with llama-gguf-split --merge first",
        )
    made = families.plan(shards[0].contents, shards[0].source)
    return Job(tuple(made.outputs), located(shards), made.files, about)


def _of_folder(found: Found, there: Located, about: Mapping[str, Any], given: Path | None) -> Job:
    config = read_object(given) if given else dict(found.config)
    if not config:
        raise Unsupported(
            f"{found.path}: no {CONFIG} beside the weights, and nothing in them says the model's",
            f"put it there, or give it with --config {CONFIG}",
        )
    tensors = {name: tensor for name, (_, tensor) in there.items()}
    outputs = tuple(schemes.plan(tensors, config, reader(there)))
    told = {**about, "quantization": schemes.detect(tensors, config)}
    plain = json.dumps(without_settings(config)).encode()
    files: dict[str, Path | bytes] = {**found.files, CONFIG: plain}
    return Job(outputs, there, files, told, tuple(schemes.dropped(tensors, config)))


def _checked(job: Job) -> Job:
    names: set[str] = set()
    for output in job.outputs:
        try:
            check_name(output.name)
        except ValueError as error:
            raise Unsupported(f"a tensor's name cannot be kept: {error}") from error
        if output.name in names:
            raise Unsupported(f"{output.name}: two stored tensors would become it")
        names.add(output.name)
    return job


def _identity(job: Job, dtype: str, files: Sequence[Planned]) -> bytes:
    """What a run would write, in few words: another source, release or dtype begins anew."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.header)
    stamps = sorted(
        {
            (str(s.path.resolve()), s.source.size, s.path.stat().st_mtime_ns)
            for s, _ in job.inputs.values()
        }
    )
    told = {"preheat": __version__, "dtype": dtype, "headers": digest.hexdigest(), "files": stamps}
    return json.dumps(told, sort_keys=True).encode()


def _begin(dst: Path, identity: bytes) -> Path:
    """``DST.part``, with what an earlier run of the same has finished; empty otherwise."""
    part = tree.beside(dst, ".part")
    stamp = part / f".{RECORD}"
    same = stamp.is_file() and not stamp.is_symlink() and stamp.read_bytes() == identity
    tree.recover(dst, keep_part=same)
    if not same:
        part.mkdir(parents=True)
        replace(stamp, identity)
    return part


def _write(  # noqa: PLR0913 - where, what, and how
    part: Path,
    files: Sequence[Planned],
    dtype: str,
    job: Job,
    progress: Progress,
    threads: int,
) -> int:
    """Every file that is not there yet. Gives how many were."""
    total = sum(file.size for file in files)
    done = resumed = 0
    most = max((nbytes(output, dtype) for output in job.outputs), default=0)
    with Buffers(most) as buffers:
        for file in files:
            if is_whole(part / file.name, file):
                resumed += 1
                done += file.size
                progress(done, total)
                continue
            for output, empty in write(part, file, dtype, buffers):
                _fill(output, empty, job.inputs, threads)
                done += empty.nbytes
                progress(done, total)
    return resumed


def _fill(output: Output, empty: Any, inputs: Located, threads: int) -> None:
    stored = [inputs[name] for name in output.inputs]
    try:
        # A scale that overflows, or a number that is none, stays what it is: verify tells of it.
        with np.errstate(all="ignore"):
            output.fill([array(shard.source, tensor) for shard, tensor in stored], empty, threads)
    except BlobError as error:
        raise BakeError(f"{output.name}: {error}") from error
    for shard, tensor in stored:
        shard.source.forget(tensor.offset, tensor.offset + (tensor.deflated or tensor.nbytes))


def _finish(part: Path, files: Sequence[Planned], job: Job, dtype: str) -> None:
    made = dict(job.files)
    made[CONFIG] = _typed(made[CONFIG], dtype)
    if len(files) > 1:
        made[INDEX] = index_of(files)
    told = {"preheat": __version__, "dtype": dtype, "source": job.source, "dropped": job.dropped}
    made[RECORD] = (json.dumps(told, indent=2) + "\n").encode()
    for name, content in made.items():
        raw = content if isinstance(content, bytes) else content.read_bytes()
        replace(part / name, raw, 0o644)
    (part / f".{RECORD}").unlink()


def _typed(config: Path | bytes, dtype: str) -> bytes:
    """The config with the dtype that its tensors have now."""
    raw = config if isinstance(config, bytes) else config.read_bytes()
    told = json.loads(raw)
    for inner in (told, told.get("text_config")):
        if isinstance(inner, dict):
            key = "dtype" if "dtype" in inner else "torch_dtype"
            if inner is told or key in inner:
                inner[key] = DTYPES[dtype]
    return (json.dumps(told, indent=2) + "\n").encode()


def _check_there(dst: Path, src: Path, *, force: bool) -> None:
    if src.resolve() in (dst.resolve(), *dst.resolve().parents):
        raise BakeError(f"{dst}: is in the source {src}", "choose another folder")
    if dst.resolve() in src.resolve().parents:
        raise BakeError(f"{dst}: holds the source {src}", "choose another folder")
    if not dst.exists() and not dst.is_symlink():
        return
    if not (dst / RECORD).is_file() or dst.is_symlink():
        raise BakeError(
            f"{dst}: exists, and no conversion made it", "choose another folder, or move it away"
        )
    if not force:
        raise BakeError(f"{dst}: there is a converted folder already", "say --force to replace it")
