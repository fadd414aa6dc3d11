"""Finds the head's matrix in a folder of safetensors."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

# Untied first; a tied head is the embedding.
NAMES = (
    "lm_head.weight",
    "model.embed_tokens.weight",
    "model.language_model.embed_tokens.weight",
    "language_model.model.embed_tokens.weight",
)
PLAIN = ("lm_head.weight", "lm_head.bias")


class NoHead(ValueError):
    """No head in this folder; the text says what is there."""


def read_head(folder: Path) -> tuple[str, Tensor]:
    """Name and matrix of the head, float32 of shape (vocabulary, hidden).

    :raises NoHead: there is none to be read.
    """
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise NoHead(f"{folder}: no *.safetensors: give a checkpoint folder (make fetch)")
    try:
        where = {name: shard for shard in shards for name in _names(shard)}
        if other := next((n for n in where if n.startswith("lm_head.") and n not in PLAIN), None):
            raise NoHead(
                f"{folder}: the head is quantized ({other}): give the folder that it was made of"
            )
        name = next((n for n in NAMES if n in where), None)
        if name is None:
            raise NoHead(f"{folder}: no head: expected one of {json.dumps(NAMES)}")
        with safe_open(where[name], "pt") as file:
            return name, file.get_tensor(name).float()
    except SafetensorError as error:
        raise NoHead(f"{folder}: {error}: preheat bake verify-checkpoint tells more") from error


def _names(shard: Path) -> list[str]:
    with safe_open(shard, "pt") as file:
        return list(file.keys())
