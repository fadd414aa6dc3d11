"""Llama, and what is made like it: SmolLM2, Mistral, TinyLlama, Llama 2 and 3."""

from typing import Any

from bake.checkpoint.families.changes import HALVES_OF_KEYS, HALVES_OF_QUERIES
from bake.checkpoint.families.decoder import (
    attention_rows,
    changed,
    check_keys,
    common,
    mlp_rows,
    norm_row,
    top_rows,
)
from bake.checkpoint.families.file import File
from bake.checkpoint.families.table import Config, Family, Model, attention, layers, traits
from bake.errors import Unsupported

LAYER = "model.layers.{i}."


def model(config: Config) -> Model:
    """:raises Malformed: a number of the config is none."""
    return Model(attention(config), ("full",) * layers(config), traits(config))


def config(file: File) -> dict[str, Any]:
    """:raises Unsupported: something is missing, or not known."""
    check_keys(file.own)
    made = common(file)
    check_whole_heads(file, made)
    biased = {
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
    }
    return {**made, **biased, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}


def check_whole_heads(file: File, made: Config) -> None:
    """Whether all of a head is rotated, as these families do it.

    :raises Unsupported: a part is.
    """
    rotated = file.own.natural("rope.dimension_count", made["head_dim"])
    if rotated != made["head_dim"]:
        raise Unsupported(
            f"{file.metadata.where}: rotates {rotated} of {made['head_dim']} numbers of a head",
            "this family's config has no word for it",
        )


LLAMA = Family(
    "llama",
    ("llama", "mistral"),
    top=top_rows(),
    layers={
        "full": (
            norm_row("blk.{i}.attn_norm", f"{LAYER}input_layernorm"),
            *changed(
                attention_rows(LAYER, bias="attention_bias"),
                {"q_proj": HALVES_OF_QUERIES, "k_proj": HALVES_OF_KEYS},
            ),
            norm_row("blk.{i}.ffn_norm", f"{LAYER}post_attention_layernorm"),
            *mlp_rows(LAYER, bias="mlp_bias"),
        )
    },
    config=config,
    model=model,
)
