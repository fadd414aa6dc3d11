"""What a checkpoint is, told from its headers: no tensor is read, whatever its size."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bake.checkpoint import tokens
from bake.checkpoint.contents import Contents, Tensor
from bake.checkpoint.folder import find, located, open_shards
from bake.checkpoint.formats import parse
from bake.checkpoint.ggml_types import TYPES
from bake.checkpoint.limits import DEFAULT, ParseLimits
from bake.checkpoint.settings import settings_of
from bake.checkpoint.source import Source
from bake.checkpoint.tokens import Tokens
from bake.errors import BakeError

ADDRESS = ("http://", "https://")
# What a checkpoint without a config would show its quantization by.
CODES = {"U8", "I8", "F8_E4M3", "F8_E5M2"}
BLOCKS = {kind.name for kind in TYPES.values() if kind.values > 1}


@dataclass(frozen=True)
class Total:
    """Tensors of one dtype."""

    tensors: int = 0
    elements: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Inspected:
    """``bytes`` are those of the files, ``header_bytes`` those that were looked at."""

    path: str
    format: str
    files: Mapping[str, int]
    tensors: tuple[Tensor, ...]
    totals: Mapping[str, Total]
    header_bytes: int
    family: str
    quantization: str
    tokenizer: Tokens | None
    metadata: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(self.files.values())

    @property
    def elements(self) -> int:
        """Numbers as they are stored: of packed integers, fewer than there are weights."""
        return sum(total.elements for total in self.totals.values())


def inspect(path: str | Path, limits: ParseLimits = DEFAULT) -> Inspected:
    """What is at ``path``: a file, a folder, or an ``http(s)`` address.

    :raises Malformed: a file is not what its format says.
    :raises Unsupported: a format, or something in it, that is not known.
    :raises BakeError: nothing is there, or shards are missing.
    """
    if is_address(str(path)):
        from bake.checkpoint.remote import Ranges

        return inspect_source(Ranges(str(path), limits), limits)
    return _local(Path(path), limits)


def is_address(path: str) -> bool:
    """Whether it is a web server's; how its scheme is written does not matter (RFC 3986, 3.1)."""
    return path[:8].lower().startswith(ADDRESS)


def inspect_source(source: Source, limits: ParseLimits = DEFAULT) -> Inspected:
    """The same of one file, wherever its bytes are."""
    contents = parse(source, limits)
    return Inspected(
        source.name,
        contents.format,
        {source.name: source.size},
        contents.tensors,
        totals(contents.tensors),
        contents.header_bytes,
        _family(contents, {}),
        _quantization(contents.tensors, {}),
        tokens.of_gguf(contents),
        contents.metadata,
    )


def totals(tensors: Iterable[Tensor]) -> dict[str, Total]:
    """Tensors, elements and bytes of each dtype, the most bytes first."""
    counted: dict[str, tuple[int, int, int]] = {}
    for tensor in tensors:
        number, elements, size = counted.get(tensor.dtype, (0, 0, 0))
        counted[tensor.dtype] = number + 1, elements + tensor.count, size + tensor.nbytes
    ordered = sorted(counted.items(), key=lambda item: (-item[1][2], item[0]))
    return {dtype: Total(*three) for dtype, three in ordered}


def _local(path: Path, limits: ParseLimits) -> Inspected:
    found = find(path)
    shards = open_shards(found, limits)
    first = shards[0].contents
    tensors = tuple(tensor for _, tensor in located(shards).values())
    # What lies beside a single file need not belong to it.
    config = found.config if path.is_dir() else {}
    notes = list(_notes(found.beside, config, path))
    tokenizer = tokens.of_gguf(first)
    if tokenizer is None and path.is_dir():
        try:
            tokenizer = tokens.of_folder(found.files)
        except BakeError as error:
            notes.append(error.what)
    return Inspected(
        str(path),
        first.format,
        {shard.path.name: shard.source.size for shard in shards},
        tensors,
        totals(tensors),
        sum(shard.contents.header_bytes for shard in shards),
        _family(first, config),
        _quantization(tensors, config),
        tokenizer,
        first.metadata,
        tuple(notes),
    )


def _notes(beside: Sequence[str], config: Mapping[str, Any], path: Path) -> Iterable[str]:
    if beside:
        yield f"passed over: {', '.join(beside)}"
    if path.is_dir() and not config:
        yield "no config.json: vLLM cannot serve it as it is"


def _family(contents: Contents, config: Mapping[str, Any]) -> str:
    architectures = config.get("architectures")
    if isinstance(architectures, list) and architectures:
        return str(architectures[0])[:80]
    told = config.get("model_type") or contents.metadata.get("general.architecture")
    return str(told)[:80] if told else "unknown"


def _quantization(tensors: Sequence[Tensor], config: Mapping[str, Any]) -> str:
    """ggml's block types as they are; a scheme of Hugging Face folders by its name."""
    dtypes = set(totals(tensors))
    if blocks := [dtype for dtype in totals(tensors) if dtype in BLOCKS]:
        return "ggml: " + ", ".join(blocks)
    # Schemes bring their arithmetic, and that a compiler: not for a checkpoint that has neither.
    if settings_of(config) is None and not dtypes & CODES:
        return ""
    from bake.checkpoint import schemes

    return schemes.detect({tensor.name: tensor for tensor in tensors}, config)
