"""Families of models: what GGUF calls their parts, and the folder they become.

metadata ─► config ─► rows (name, shape, change) ─► outputs
└─► tokenizer.json, chat template
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bake.checkpoint.contents import Contents, Tensor
from bake.checkpoint.families.changes import Filling
from bake.checkpoint.families.decoder import DIVISORS
from bake.checkpoint.families.file import File
from bake.checkpoint.families.gemma3 import GEMMA3
from bake.checkpoint.families.llama import LLAMA
from bake.checkpoint.families.metadata import Metadata
from bake.checkpoint.families.qwen import QWEN2, QWEN3
from bake.checkpoint.families.qwen35 import QWEN35
from bake.checkpoint.families.table import Config, Family, Wanted, wanted
from bake.checkpoint.families.tokenizer import tokenizer_files
from bake.checkpoint.output import Output
from bake.checkpoint.source import Source
from bake.errors import Malformed, Misset, Unsupported

FAMILIES = (LLAMA, QWEN2, QWEN3, QWEN35, GEMMA3)
BY_ARCHITECTURE = {family.architecture: family for family in FAMILIES}
BY_KIND = {kind: family for family in FAMILIES for kind in family.kinds}
# How the text part is named in a folder that was made for pictures too.
INNER = "model.language_model."
# Names in a message; a file may be wrong in thousands.
NAMED = 6


@dataclass(frozen=True)
class Planned:
    """Tensors to make, and the files beside them by name."""

    outputs: list[Output]
    files: Mapping[str, bytes]


def known() -> tuple[str, ...]:
    """The words that GGUF has for the families converted here."""
    return tuple(BY_ARCHITECTURE)


def plan(contents: Contents, source: Source) -> Planned:
    """What a GGUF becomes. Numbers are not read yet.

    :raises Unsupported: its family, or something of its model or tokenizer, is not known here.
    :raises Malformed: tensors are missing, or are not of the shape that the metadata says.
    """
    metadata = Metadata(source, contents.metadata)
    family = _family(contents, metadata)
    tensors = contents.by_name()
    config = family.config(File(metadata, tensors))
    try:
        model = family.model(config)
    except Misset as error:
        # This config is ours, made of the file's metadata.
        raise Malformed(source.name, error.detail) from error
    rows = wanted(family, model)
    _check(rows, tensors, source.name)
    ids, files = tokenizer_files(metadata, config["vocab_size"], config["max_position_embeddings"])
    outputs = [
        Output(
            row.name,
            row.shape,
            (row.gguf,),
            Filling(tensors[row.gguf].dtype, row.change, model.dims),
        )
        for row in rows
    ]
    told = json.dumps({**config, **ids}, indent=2) + "\n"
    return Planned(outputs, {"config.json": told.encode(), **files})


def expected(config: Config) -> Mapping[str, tuple[int, ...]] | None:
    """Every tensor that a folder with this config holds, and its shape, as it is without
    quantization. ``None``: the family is not known, or it is not all text.

    :raises Malformed: a number that shapes are made of is missing, or is none.
    """
    inner = config.get("text_config")
    prefixed = isinstance(inner, dict)
    kind = (inner if prefixed else config).get("model_type")  # type: ignore[union-attr]
    family = BY_KIND.get(kind) if isinstance(kind, str) else None
    if family is None or any(key.endswith(("vision_config", "audio_config")) for key in config):
        return None
    text: dict[str, Any] = {**config, **inner} if isinstance(inner, dict) else dict(config)
    rows = wanted(family, family.model(text))
    return {_placed(row.name, prefixed): row.shape for row in rows}


def misfits(
    expected: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[str]:
    """What of ``expected`` is missing among ``shapes``, or has another shape; by name."""
    for name, shape in expected.items():
        if name not in shapes:
            yield f"{name} is missing"
        elif tuple(shapes[name]) != tuple(shape):
            yield f"{name}: expected {list(shape)}, got {list(shapes[name])}"


def _placed(name: str, prefixed: bool) -> str:
    return name.replace("model.", INNER, 1) if prefixed and name.startswith("model.") else name


def _family(contents: Contents, metadata: Metadata) -> Family:
    if contents.format != "gguf":
        raise Unsupported(f"{metadata.where}: is {contents.format}, only GGUF tells its family")
    name = metadata.text("general.architecture")
    if name not in BY_ARCHITECTURE:
        raise Unsupported(
            f"{metadata.where}: architecture {name[:40]!r} is not converted",
            f"known: {', '.join(known())}",
        )
    if metadata.natural("split.count", 1) > 1:
        raise Unsupported(
            f"{metadata.where}: is a part of a split model",
            "join the parts with llama-gguf-split --merge first",
        )
    return BY_ARCHITECTURE[name]


def _check(rows: list[Wanted], tensors: Mapping[str, Tensor], where: str) -> None:
    """Whether each tensor is there, is wanted, and is of its shape and a type that is known."""
    names = {row.gguf for row in rows}
    if missing := [row.gguf for row in rows if row.gguf not in tensors]:
        raise Malformed(where, f"tensors are missing: {_some(missing)}")
    if unknown := sorted(set(tensors) - names - {DIVISORS}):
        raise Unsupported(f"{where}: tensors that are not known here: {_some(unknown)}")
    for row in rows:
        _check_one(row, tensors[row.gguf], where)


def _check_one(row: Wanted, tensor: Tensor, where: str) -> None:
    from bake.checkpoint.dequant import ggml, plain

    if tensor.shape != row.stored:
        raise Malformed(where, f"{row.gguf} is {tensor.shape}, the metadata says {row.stored}")
    blocks = tensor.dtype not in plain.FLOATS
    if blocks and (tensor.dtype not in ggml.BLOCKS or tensor.big_endian):
        raise Unsupported(f"{where}: {row.gguf} is {tensor.dtype}, which is not converted")
    if blocks and row.change.rows and len(tensor.shape) == 1:
        raise Unsupported(f"{where}: {row.gguf} is a vector in blocks of {tensor.dtype}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(name[:80] for name in names[:NAMED]) + more
