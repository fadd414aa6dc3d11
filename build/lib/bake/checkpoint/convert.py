"""Any checkpoint → a Hugging Face folder of plain BF16 (or F32) that vLLM serves.

    find, parse ─► outputs ─► files of at most 2 GiB ─► a folder beside ─► whole ─► DST

Tensor by tensor: one is made while the last is written. What an interrupted run has finished is
kept beside the folder, and taken over by the next if it would write the same.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bake import tree
from bake.checkpoint import families, resume, schemes, standing, whole
from bake.checkpoint.arrays import array
from bake.checkpoint.digests import Digests
from bake.checkpoint.folder import (
    CONFIG,
    MAX_CONFIG_BYTES,
    MAX_FILE_BYTES,
    Found,
    Located,
    Shard,
    check_index,
    check_numbers,
    find,
    located,
    open_shards,
    read_object,
    read_whole,
    reader,
    strays,
)
from bake.checkpoint.limits import DEFAULT, ParseLimits
from bake.checkpoint.output import Output
from bake.checkpoint.settings import without_settings
from bake.checkpoint.standing import RECORD
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
from bake.errors import BakeError, Malformed, Unsupported
from bake.progress import silent
from blob.errors import BlobError
from blob.files import check_name, replace
from blob.rows import cores
from serve import __version__

DTYPES: Mapping[str, str] = {"BF16": "bfloat16", "F32": "float32"}
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """What is to be written, decided: nothing is looked up after this."""

    outputs: tuple[Output, ...]
    shards: tuple[Shard, ...]
    inputs: Located
    files: Mapping[str, Path | bytes]
    source: Mapping[str, Any]
    # The config by which stored numbers are read; empty where they say it themselves.
    settings: Mapping[str, Any] = field(default_factory=dict)
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
    progress: Progress = silent,
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
    standing.check(dst, src, force=force)
    job = plan(src, config, limits)
    for shard in job.shards:
        standing.check_apart(dst, shard.path)
    files = planned(job.outputs, dtype, shard_bytes)
    try:
        with tree.locked(dst), Digests(job.shards) as digests:
            standing.check(dst, src, force=force)
            part = resume.begin(dst, resume.identity(job.shards, job.settings, dtype, files))
            resumed = _write(part, files, dtype, job, progress, threads or cores())
            _finish(part, files, job, dtype, digests.all())
            for shard in job.shards:
                shard.source.check()
            resume.finish(dst)
    except OSError as error:
        raise standing.unwritten(error, dst) from error
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
    check_numbers(found)
    shards = open_shards(found, limits)
    about = _about(shards)
    if about["format"] == "gguf":
        return _checked(_of_gguf(found, shards, about), found)
    there = located(shards)
    check_index(found, there)
    return _checked(_of_folder(found, shards, about, config), found)


def _about(shards: Sequence[Shard]) -> dict[str, Any]:
    about: dict[str, Any] = {
        "format": shards[0].contents.format,
        "files": {shard.path.name: shard.source.size for shard in shards},
    }
    # What is no part of the state dict, as an optimizer's.
    if others := sum(shard.contents.metadata.get("pth.other_tensors", 0) for shard in shards):
        about["other_tensors"] = others
    return about


def _of_gguf(found: Found, shards: tuple[Shard, ...], about: Mapping[str, Any]) -> Job:
    if len(shards) > 1:
        names = ", ".join(shard.path.name for shard in shards[:4])
        raise Unsupported(
            f"{found.path}: holds {len(shards)} GGUF files ({names})",
            "give one of them; join a split one with llama-gguf-split --merge first",
        )
    made = families.plan(shards[0].contents, shards[0].source)
    return Job(tuple(made.outputs), shards, located(shards), made.files, about)


def _of_folder(
    found: Found, shards: tuple[Shard, ...], about: Mapping[str, Any], given: Path | None
) -> Job:
    config = read_object(given, MAX_CONFIG_BYTES) if given else dict(found.config)
    if not config:
        raise Unsupported(
            f"{found.path}: no {CONFIG} beside the weights, and nothing in them says the model's",
            f"put it there, or give it with --config {CONFIG}",
        )
    _check_links(found)
    there = located(shards)
    tensors = {name: tensor for name, (_, tensor) in there.items()}
    outputs = tuple(schemes.plan(tensors, config, reader(there)))
    whole.check(found.path, config, {output.name: output.shape for output in outputs})
    told = {**about, "quantization": schemes.detect(tensors, config)}
    plain = json.dumps(without_settings(config)).encode()
    files: dict[str, Path | bytes] = {**found.files, CONFIG: plain}
    dropped = tuple(schemes.dropped(tensors, config))
    return Job(outputs, shards, there, files, told, config, dropped)


def _check_links(found: Found) -> None:
    """Whether no file of the model is missing because it is a link out of its folder."""
    folder = found.path if found.path.is_dir() else found.path.parent
    if names := strays(folder):
        raise BakeError(
            f"{folder}: {names[0]} is a link that leads out of it, which is not followed",
            "put the file itself there, or take the link away",
        )


def _checked(job: Job, found: Found) -> Job:
    if not job.outputs:
        raise Malformed(str(found.path), "holds no tensor")
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


def _write(  # noqa: PLR0913 - where, what, and how
    part: Path,
    files: Sequence[Planned],
    dtype: str,
    job: Job,
    progress: Progress,
    threads: int,
) -> int:
    """Every file that is not there yet. Gives how many were."""
    sizes = {file.name: file.size - len(file.header) for file in files}
    total = sum(sizes.values())
    done = resumed = 0
    most = max((nbytes(output, dtype) for output in job.outputs), default=0)
    with Buffers(most) as buffers:
        for file in files:
            if is_whole(part / file.name, file):
                resumed += 1
                done += sizes[file.name]
                progress(done, total)
                continue
            for output, empty in write(part, file, dtype, buffers):
                _fill(output, empty, job.inputs, threads)
                done += empty.nbytes
                progress(done, total)
    return resumed


def _fill(output: Output, empty: Any, inputs: Located, threads: int) -> None:
    stored = [inputs[name] for name in output.inputs]
    sources = {id(shard): shard.source for shard, _ in stored}.values()
    # Before: of a file that was cut off nothing can be read. After: it may have been meanwhile.
    for source in sources:
        source.check()
    try:
        # A scale that overflows, or a number that is none, stays what it is: verify tells of it.
        with np.errstate(all="ignore"):
            output.fill([array(shard.source, tensor) for shard, tensor in stored], empty, threads)
    except BlobError as error:
        raise BakeError(f"{output.name}: {error}") from error
    for source in sources:
        source.check()
    for shard, tensor in stored:
        shard.source.forget(tensor.offset, tensor.offset + (tensor.deflated or tensor.nbytes))


def _finish(
    part: Path, files: Sequence[Planned], job: Job, dtype: str, digests: Mapping[str, str]
) -> None:
    made = dict(job.files)
    made[CONFIG] = _typed(_content(made[CONFIG]), dtype)
    if len(files) > 1:
        made[INDEX] = index_of(files)
    sizes = {shard.path.name: shard.source.size for shard in job.shards}
    listed = {name: {"bytes": sizes[name], "sha256": digests[name]} for name in sizes}
    source = {**job.source, "files": listed}
    told = {"preheat": __version__, "dtype": dtype, "source": source, "dropped": job.dropped}
    made[RECORD] = (json.dumps(told, indent=2) + "\n").encode()
    for name, content in made.items():
        replace(part / name, _content(content), 0o644)


def _content(file: Path | bytes) -> bytes:
    return file if isinstance(file, bytes) else read_whole(file, MAX_FILE_BYTES)


def _typed(config: bytes, dtype: str) -> bytes:
    """The config with the dtype that its tensors have now."""
    told = json.loads(config)
    for inner in (told, told.get("text_config")):
        if isinstance(inner, dict):
            key = "dtype" if "dtype" in inner else "torch_dtype"
            if inner is told or key in inner:
                inner[key] = DTYPES[dtype]
    return (json.dumps(told, indent=2) + "\n").encode()
