"""Qwen 2, 2.5 and 3: Llama's layer, with biases or with norms of queries and keys."""

from typing import Any

from bake.checkpoint.families.decoder import (
    attention_rows,
    check_keys,
    common,
    mlp_rows,
    norm_row,
    top_rows,
)
from bake.checkpoint.families.file import File
from bake.checkpoint.families.llama import LAYER, check_whole_heads
from bake.checkpoint.families.table import Config, Family, Model, Row, attention, layers, traits

ATTENTION = attention_rows(LAYER)
BEFORE = norm_row("blk.{i}.attn_norm", f"{LAYER}input_layernorm")
AFTER = norm_row("blk.{i}.ffn_norm", f"{LAYER}post_attention_layernorm")


def model(config: Config) -> Model:
    """:raises Malformed: a number of the config is none."""
    return Model(attention(config), ("full",) * layers(config), traits(config))


def config2(file: File) -> dict[str, Any]:
    """:raises Unsupported: something is missing, or not known."""
    return {**_config(file), "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}


def config3(file: File) -> dict[str, Any]:
    """:raises Unsupported: something is missing, or not known."""
    biased = "blk.0.attn_q.bias" in file.tensors
    made = {**_config(file), "attention_bias": biased}
    return {**made, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}


def _config(file: File) -> dict[str, Any]:
    check_keys(file.own)
    made = common(file)
    check_whole_heads(file, made)
    return {**made, "use_sliding_window": False, "sliding_window": None}


QWEN2 = Family(
    "qwen2",
    ("qwen2",),
    top=top_rows(),
    layers={
        "full": (
            BEFORE,
            *ATTENTION,
            Row("blk.{i}.attn_q.bias", f"{LAYER}self_attn.q_proj.bias", ("queries",)),
            Row("blk.{i}.attn_k.bias", f"{LAYER}self_attn.k_proj.bias", ("keys",)),
            Row("blk.{i}.attn_v.bias", f"{LAYER}self_attn.v_proj.bias", ("keys",)),
            AFTER,
            *mlp_rows(LAYER),
        )
    },
    config=config2,
    model=model,
)


QWEN3 = Family(
    "qwen3",
    ("qwen3",),
    top=top_rows(),
    layers={
        "full": (
            BEFORE,
            *attention_rows(LAYER, bias="attention_bias"),
            norm_row("blk.{i}.attn_q_norm", f"{LAYER}self_attn.q_norm", size="width"),
            norm_row("blk.{i}.attn_k_norm", f"{LAYER}self_attn.k_norm", size="width"),
            AFTER,
            *mlp_rows(LAYER),
        )
    },
    config=config3,
    model=model,
)
