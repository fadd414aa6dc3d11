"""A checkpoint as it lies on a disk: one file, or a folder with shards, an index and a config.

Finds the files and reads what describes them. Knows no format and opens no tensor.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bake.checkpoint.contents import Contents, Tensor
from bake.checkpoint.formats import parse
from bake.checkpoint.limits import DEFAULT, ParseLimits
from bake.checkpoint.source import PIECE_BYTES, Bytes, mapped
from bake.errors import BakeError, Malformed, Unsupported
from blob.files import check_path, opened
from blob.spelling import unique

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
# A config is of a few kilobytes; what lists its modules by name, of a few hundred.
MAX_CONFIG_BYTES = 4 * 1024**2
# As savers number the files of one checkpoint: from 0 or 1, to the last or to how many.
NUMBERED = re.compile(r"^(.*)-[0-9]+-of-([0-9]{1,9})(\.[a-z]+)$")
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

    :raises BakeError: nothing is there, or no weights, or it may not be read.
    :raises Malformed: an index or a config that is none.
    """
    with asked(path):
        return _find(path)


@contextmanager
def asked(path: Path) -> Iterator[None]:
    """Make what the system says of ``path`` an error in words: a name that is too long, a folder
    that may not be read, a link that leads to itself.

    :raises BakeError: instead of ``OSError``.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise BakeError(f"{where}: cannot be read: {error.strerror or error}") from error
    except RuntimeError as error:
        # As pathlib tells of such a link.
        raise BakeError(f"{path}: cannot be read: {error}") from error


def _find(path: Path) -> Found:
    if path.is_file():
        beside = {name: one for name, one in files_of(path.parent).items() if MODEL.match(name)}
        return Found(path, (path,), _config(path.parent), files=beside)
    if not path.is_dir():
        raise _not_there(path)
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


def _not_there(path: Path) -> BakeError:
    if re.match(r"https?:/", str(path), re.IGNORECASE):
        return BakeError(
            f"{path}: is an address, and only inspect reads those", "download it, and give the file"
        )
    if path.exists():
        return BakeError(
            f"{path}: neither a plain file nor a folder", "give a file of weights or a folder"
        )
    if path.is_symlink():
        return BakeError(f"{path}: a link that leads nowhere", "give a file of weights or a folder")
    return BakeError(f"{path}: no such file or folder", "give a file of weights or a folder")


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


def check_safetensors(shards: Sequence[Shard], folder: Path) -> None:
    """Refuse files of weights in any other format.

    :raises Unsupported: naming the first, and how it is converted.
    """
    if others := [one for one in shards if one.contents.format != "safetensors"]:
        raise Unsupported(
            f"{others[0].path}: is {others[0].contents.format}, not safetensors",
            f"convert it first: preheat bake convert {folder} NEW-FOLDER",
        )


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


def check_numbers(found: Found) -> None:
    """Whether of files that are numbered ``-1-of-2`` all are there, where no index tells it.

    :raises BakeError: naming what is there of how many.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for path in () if found.listed else found.weights:
        if path.suffix != ".gguf" and (numbered := NUMBERED.match(path.name)):
            groups.setdefault(numbered.groups(), []).append(path.name)
    for (_, count, _), names in groups.items():
        if len(names) < int(count):
            raise BakeError(
                f"{found.path}: {len(names)} of {int(count)} shards ({', '.join(names[:4])})",
                "give the folder that holds all; fetch the missing shards",
            )


def files_of(folder: Path) -> dict[str, Path]:
    """Config, tokenizer and the like: small plain files of the folder itself. A link is one only
    where a download cache has it: anything of this machine could become part of a model.

    :raises BakeError: one with a name that no folder of ours could hold.
    """
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in INDEXES or path.suffix in LEFT_OUT:
            continue
        if path.is_file() and path.stat().st_size <= MAX_FILE_BYTES:
            try:
                if is_own(path):
                    found[check_path(path.name)] = path.resolve()
            except ValueError as error:
                raise BakeError(f"{folder}: {error}") from error
    return found


def is_own(path: Path) -> bool:
    """Whether a file's bytes lie in its folder, or in the ``blobs`` beside a cache's snapshots."""
    if not path.is_symlink():
        return True
    folder = path.parent.resolve()
    own = [folder]
    if folder.parent.name == "snapshots":
        own.append(folder.parent.parent / "blobs")
    return any(path.resolve().is_relative_to(one) for one in own)


def strays(folder: Path) -> list[str]:
    """Names that a model's files have, and links out of the folder have here."""
    return sorted(
        path.name for path in folder.iterdir() if MODEL.match(path.name) and not is_own(path)
    )


def read_whole(path: Path, most: int) -> bytes:
    """A plain file of ``most`` bytes at most; links are followed.

    :raises BakeError: it cannot be read.
    :raises Malformed: it is larger.
    """
    with asked(path), opened(path.resolve()) as file:
        raw = bytearray()
        while len(raw) <= most and (some := file.read(min(most + 1 - len(raw), PIECE_BYTES))):
            raw += some
    if len(raw) > most:
        raise Malformed(str(path), f"is larger than {most} bytes")
    return bytes(raw)


def read_object(path: Path, most: int = DEFAULT.json_bytes) -> dict[str, Any]:
    """A JSON object of ``most`` bytes at most, which two readers cannot take for two.

    :raises BakeError: it cannot be read.
    :raises Malformed: it is something else.
    """
    raw = read_whole(path, most)
    try:
        # Infinity is no JSON, and stands in configs (time_step_limit of Mamba).
        value = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise Malformed(str(path), f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Malformed(str(path), f"expected a JSON object, got {type(value).__name__}")
    return value


def _with(folder: Path, suffix: str) -> list[Path]:
    # A glob says nothing of a folder that it may not read.
    there = (one for one in folder.iterdir() if one.name.endswith(suffix))
    return sorted(one for one in there if one.name not in NOT_WEIGHTS)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    return read_object(path, MAX_CONFIG_BYTES) if path.is_file() else {}


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
