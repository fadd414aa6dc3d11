"""One row says all of one tensor: its name in GGUF, its name in a Hugging Face folder, its shape
in words of the config, and what was done to it on its way into the GGUF.

A family's rows drive both the conversion and what a folder of that family must hold.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bake.checkpoint.families.changes import AS_IS, Change
from bake.checkpoint.families.file import File
from bake.errors import Misset

Config = Mapping[str, Any]
Dims = Mapping[str, int]
Shape = tuple[str, ...]
# As many as llama.cpp reads (LLAMA_MAX_LAYERS, b11434).
MAX_LAYERS = 512


@dataclass(frozen=True)
class Row:
    """``shape`` is the folder's, in names of ``Dims``; ``stored`` is GGUF's where that differs.
    In a layer's row ``{i}`` is the layer. ``when`` names what of a model must be so for the
    tensor to be there (:attr:`Model.traits`); empty is always.
    """

    gguf: str
    name: str
    shape: Shape
    change: Change = AS_IS
    when: str = ""
    stored: Shape = ()


@dataclass(frozen=True)
class Model:
    """What of a config decides which tensors there are, and how large.

    ``layers`` has each layer's kind (a key of :attr:`Family.layers`); ``drafts`` counts the
    layers of a multi-token-prediction head, which GGUF keeps after all others.
    """

    dims: Dims
    layers: tuple[str, ...]
    traits: frozenset[str]
    drafts: int = 0


@dataclass(frozen=True)
class Family:
    """``architecture`` is GGUF's word; ``kinds`` are the ``model_type`` words of configs.

    ``config`` makes a file's config, ``model`` reads any config of the family.
    """

    architecture: str
    kinds: tuple[str, ...]
    top: tuple[Row, ...]
    layers: Mapping[str, tuple[Row, ...]]
    config: Callable[[File], dict[str, Any]]
    model: Callable[[Config], Model]
    draft_top: tuple[Row, ...] = ()
    draft_layer: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """A row of one tensor, with every name and number put in."""

    gguf: str
    name: str
    shape: tuple[int, ...]
    stored: tuple[int, ...]
    change: Change


def wanted(family: Family, model: Model) -> list[Wanted]:
    """Every tensor of a model, in the order that GGUF's layers have."""
    found = [_one(row, model) for row in family.top if _there(row, model)]
    for i, kind in enumerate(model.layers):
        found += [_one(row, model, i) for row in family.layers[kind] if _there(row, model)]
    if model.drafts:
        first = len(model.layers)
        found += [_one(row, model, first) for row in family.draft_top]
        for j in range(model.drafts):
            rows = (row for row in family.draft_layer if _there(row, model))
            found += [_one(row, model, first + j, j) for row in rows]
    return found


def _there(row: Row, model: Model) -> bool:
    return not row.when or row.when in model.traits


def _one(row: Row, model: Model, i: int = 0, j: int = 0) -> Wanted:
    shape = tuple(model.dims[name] for name in row.shape)
    stored = tuple(model.dims[name] for name in row.stored) or shape
    return Wanted(row.gguf.format(i=i), row.name.format(i=i, j=j), shape, stored, row.change)


def natural(config: Config, key: str, default: int | None = None, most: int = 2**31 - 1) -> int:
    """A whole number over zero of a config.

    :raises Malformed: there is none, or it is not one.
    """
    number = config.get(key)
    number = default if number is None else number
    if type(number) is not int or not 0 < number <= most:
        raise Misset("config.json", f"{key} is {number!r}, no number from 1 to {most}")
    return number


def layers(config: Config) -> int:
    """How many.

    :raises Malformed: more than any model has.
    """
    return natural(config, "num_hidden_layers", most=MAX_LAYERS)


def attention(config: Config) -> dict[str, int]:
    """What the shapes of a plain decoder are made of."""
    hidden = natural(config, "hidden_size")
    heads = natural(config, "num_attention_heads")
    groups = natural(config, "num_key_value_heads", heads)
    width = natural(config, "head_dim", max(hidden // heads, 1))
    return {
        "vocabulary": natural(config, "vocab_size"),
        "hidden": hidden,
        "inner": natural(config, "intermediate_size"),
        "heads": heads,
        "groups": groups,
        "width": width,
        "queries": heads * width,
        "keys": groups * width,
    }


def traits(config: Config, *, tied: bool = False) -> frozenset[str]:
    """``untied``: the head has a matrix of its own; ``tied`` is what a config without a word on
    it means. The others are the config's own words.
    """
    told = config.get("tie_word_embeddings")
    said = {name for name in ("attention_bias", "mlp_bias") if config.get(name)}
    return frozenset(said | (set() if (tied if told is None else told) else {"untied"}))
