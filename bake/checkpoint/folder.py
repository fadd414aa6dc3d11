"""A checkpoint as it lies on a disk: one file, or a folder with shards, an index and a config.

Finds the files and reads what describes them. Knows no format and opens no tensor.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bake.checkpoint.contents import Contents, Tensor
from bake.checkpoint.formats import parse
from bake.checkpoint.limits import DEFAULT, ParseLimits
from bake.checkpoint.source import Bytes, mapped
from bake.errors import BakeError, Malformed
from blob.files import check_path, opened

CONFIG = "config.json"


@dataclass(frozen=True)
class Kind:
    """Suffixes of the weights of one kind, and what an index of them is called."""

    suffixes: tuple[str, ...]
    index: str = ""


# Where several stand side by side, the first that is there is the checkpoint.
KINDS = (
    Kind((".safetensors",), "model.safetensors.index.json"),
    Kind((".bin", ".pth", ".pt"), "pytorch_model.bin.index.json"),
    Kind((".gguf",)),
    Kind((".npz",)),
)
WEIGHTS = tuple(suffix for kind in KINDS for suffix in kind.suffixes)
INDEXES = tuple(kind.index for kind in KINDS if kind.index)
# What a model folder may hold that serving it does not need.
LEFT_OUT = (*WEIGHTS, ".h5", ".msgpack", ".onnx", ".md", ".npy")
MAX_FILE_BYTES = 256 * 1024**2
# What belongs to a single file of weights among whatever else lies beside it.
MODEL = re.compile(
    r"^(config|generation_config|tokenizer(_config)?|special_tokens_map|added_tokens|vocab"
    r"|preprocessor_config|processor_config)\.json$"
    r"|^(merges\.txt|tokenizer\.model|chat_template\.(jinja|json))$"
)
# Of torch's own folders, and not weights.
NOT_WEIGHTS = (
    "training_args.bin",
    "optimizer.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
)


@dataclass(frozen=True)
class Shard:
    """One file of weights, mapped, and what is in it."""

    path: Path
    source: Bytes
    contents: Contents


Located = Mapping[str, tuple[Shard, Tensor]]


@dataclass(frozen=True)
class Found:
    """The files of a checkpoint, none of them opened but the index and the config.

    ``listed`` is the index: which file holds a tensor. ``beside`` are files of weights that were
    passed over for these. ``files`` are small ones that go with it: tokenizer, templates.
    """

    path: Path
    weights: tuple[Path, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    index: str = ""
    listed: Mapping[str, str] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    files: Mapping[str, Path] = field(default_factory=dict)

    @property
    def missing(self) -> tuple[str, ...]:
        """Files of the index that are not there."""
        there = {path.name for path in self.weights}
        return tuple(sorted(set(self.listed.values()) - there))


def find(path: Path) -> Found:
    """The files of the checkpoint at ``path``.

    :raises BakeError: nothing is there, or no weights.
    :raises Malformed: an index or a config that is none.
    """
    if path.is_file():
        beside = {name: one for name, one in files_of(path.parent).items() if MODEL.match(name)}
        return Found(path, (path,), _config(path.parent), files=beside)
    if not path.is_dir():
        raise BakeError(f"{path}: no such file or folder", "give a file of weights or a folder")
    every = {suffix: _with(path, suffix) for suffix in WEIGHTS}
    for kind in KINDS:
        listed = _listed(path, kind.index)
        there = [one for suffix in kind.suffixes for one in every[suffix]]
        if there or listed:
            # Others can hold the same under other names: vLLM takes those that the index lists.
            named = set(listed.values())
            weights = tuple(one for one in there if not named or one.name in named)
            others = {one.name for some in every.values() for one in some}
            return Found(
                path,
                weights,
                _config(path),
                kind.index if listed else "",
                listed,
                tuple(sorted(others - {one.name for one in weights})),
                files_of(path),
            )
    raise BakeError(f"{path}: no weights: none of {', '.join(WEIGHTS)}", "is it the right folder?")


def open_shards(found: Found, limits: ParseLimits = DEFAULT) -> tuple[Shard, ...]:
    """Every file of weights, mapped and parsed.

    :raises BakeError: one cannot be read, or is missing.
    :raises Malformed: one is not what its format says.
    """
    if found.missing:
        raise BakeError(
            f"{found.path}: {found.missing[0]} is in the index and not in the folder "
            f"({len(found.missing)} missing)",
            "fetch the missing shards",
        )
    return tuple(open_shard(path, limits) for path in found.weights)


def open_shard(path: Path, limits: ParseLimits = DEFAULT) -> Shard:
    """One file of weights, mapped and parsed; errors as ``open_shards``."""
    with mapped(path) as source:
        return Shard(path, source, parse(source, limits))


def located(shards: Sequence[Shard]) -> dict[str, tuple[Shard, Tensor]]:
    """Where each tensor is.

    :raises Malformed: one stands in two files.
    """
    found: dict[str, tuple[Shard, Tensor]] = {}
    for shard in shards:
        for tensor in shard.contents.tensors:
            if tensor.name in found:
                other = found[tensor.name][0].path.name
                raise Malformed(shard.path.name, f"{tensor.name} stands in {other} too")
            found[tensor.name] = (shard, tensor)
    return found


def reader(there: Located) -> Callable[[str], NDArray[Any]]:
    """Reads a stored tensor by its name."""
    from bake.checkpoint.arrays import array

    def read(name: str) -> NDArray[Any]:
        shard, tensor = there[name]
        return array(shard.source, tensor)

    return read


def check_index(found: Found, there: Mapping[str, Any]) -> None:
    """Whether each tensor of the index is in some file.

    :raises BakeError: naming the first that is not.
    """
    if missing := sorted(found.listed.keys() - there.keys()):
        raise BakeError(
            f"{found.path}: {len(missing)} tensors of the index are in no shard, first "
            f"{missing[0]} ({found.listed[missing[0]]})",
            "fetch the missing shards",
        )


def files_of(folder: Path) -> dict[str, Path]:
    """Config, tokenizer and the like: small plain files of the folder itself.

    :raises BakeError: one with a name that no folder of ours could hold.
    """
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in INDEXES or path.suffix in LEFT_OUT:
            continue
        if path.is_file() and path.stat().st_size <= MAX_FILE_BYTES:
            try:
                # A link of a download cache is followed: what it leads to is what is meant.
                found[check_path(path.name)] = path.resolve()
            except ValueError as error:
                raise BakeError(f"{folder}: {error}") from error
    return found


def read_object(path: Path, most: int = DEFAULT.json_bytes) -> dict[str, Any]:
    """A JSON object of ``most`` bytes at most.

    :raises BakeError: it cannot be read.
    :raises Malformed: it is something else.
    """
    try:
        with opened(path.resolve()) as file:
            raw = file.read(most + 1) or b""
    except OSError as error:
        raise BakeError(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > most:
        raise Malformed(str(path), f"is larger than {most} bytes")
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Malformed(str(path), f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Malformed(str(path), f"expected a JSON object, got {type(value).__name__}")
    return value


def _with(folder: Path, suffix: str) -> list[Path]:
    return sorted(one for one in folder.glob(f"*{suffix}") if one.name not in NOT_WEIGHTS)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    return read_object(path) if path.is_file() else {}


def _listed(folder: Path, index: str) -> dict[str, str]:
    if not index or not (folder / index).is_file():
        return {}
    listed = read_object(folder / index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(v, str) for v in listed.values()):
        raise Malformed(str(folder / index), "no 'weight_map' of tensors and files")
    for name in listed.values():
        if "/" in name or name in ("", ".", ".."):
            raise Malformed(str(folder / index), f"{name!r:.80} is no file of the folder")
    return listed
