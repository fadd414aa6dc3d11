"""Gemma 3, its text part: norms of 1 + weight, and windows in most layers."""

from typing import Any

from bake.checkpoint.families.changes import LESS_ONE
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
from bake.checkpoint.families.table import Config, Family, Model, attention, layers, traits
from bake.errors import Unsupported

MORE_WORDS = """
    attention.sliding_window attention.sliding_window_pattern rope.freq_base_swa
    final_logit_softcapping attn_logit_softcapping rope.dimension_count_swa
    attention.key_length_swa attention.value_length_swa mm.tokens_per_image
"""
MORE = frozenset(MORE_WORDS.split())
# llama.cpp's words for what GGUF leaves out (b11434, src/models/gemma3.cpp).
PATTERN = 6
LOCAL_THETA = 10000.0
LAYERS_OF_27B = 62


def model(config: Config) -> Model:
    """:raises Malformed: a number of the config is none."""
    dims = attention(config)
    return Model(dims, ("full",) * layers(config), traits(config, tied=True))


def config(file: File) -> dict[str, Any]:
    """:raises Unsupported: something is missing, or not known."""
    check_keys(file.own, MORE)
    made = common(file)
    check_whole_heads(file, made)
    made["hidden_activation"] = made.pop("hidden_act").replace("silu", "gelu_pytorch_tanh")
    return {
        **made,
        **_windows(file, made["num_hidden_layers"]),
        "attention_bias": False,
        "query_pre_attn_scalar": _scale(made),
        "rope_parameters": _ropes(file, made["rope_parameters"]),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": file.own.number("final_logit_softcapping", 0.0) or None,
        "use_bidirectional_attention": False,
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
    }


def _windows(file: File, count: int) -> dict[str, Any]:
    """GGUF says how long the window is; which layers have it, only where it is not every sixth
    that has not.
    """
    own = file.own
    _check_swa(file)
    size = own.natural("attention.sliding_window", 0)
    pattern = own.get("attention.sliding_window_pattern")
    if pattern is None or type(pattern) is int:
        period = own.natural("attention.sliding_window_pattern", PATTERN)
        local = [period == 0 or i % period < period - 1 for i in range(count)]
    else:
        local = own.truths("attention.sliding_window_pattern", count)
    kinds = ["sliding_attention" if size and one else "full_attention" for one in local]
    return {"sliding_window": size or None, "layer_types": kinds}


def _check_swa(file: File) -> None:
    own = file.own
    pairs = (
        ("attention.key_length_swa", "attention.key_length"),
        ("attention.value_length_swa", "attention.value_length"),
        ("rope.dimension_count_swa", "rope.dimension_count"),
    )
    for key, same in pairs:
        if own.get(key) is not None and own.get(key) != own.get(same):
            raise Unsupported(f"{own.where}: {own.prefix}{key} is not {same}")
    if own.number("attn_logit_softcapping", 0.0):
        raise Unsupported(f"{own.where}: {own.prefix}attn_logit_softcapping is not Gemma 3's")


def _ropes(file: File, all_of_it: dict[str, Any]) -> dict[str, Any]:
    """Windows are never scaled, and have a base of their own."""
    local = file.own.number("rope.freq_base_swa", LOCAL_THETA)
    return {
        "full_attention": all_of_it,
        "sliding_attention": {"rope_type": "default", "rope_theta": local},
    }


def _scale(made: Config) -> int:
    """What queries are scaled by; GGUF has no word for it. In the largest model it is not a
    head's length.
    """
    if made["num_hidden_layers"] == LAYERS_OF_27B:
        return int(made["hidden_size"] // made["num_attention_heads"])
    return int(made["head_dim"])


GEMMA3 = Family(
    "gemma3",
    ("gemma3_text",),
    top=top_rows(LESS_ONE),
    layers={
        "full": (
            norm_row("blk.{i}.attn_norm", f"{LAYER}input_layernorm", LESS_ONE),
            *attention_rows(LAYER),
            norm_row("blk.{i}.attn_q_norm", f"{LAYER}self_attn.q_norm", LESS_ONE, "width"),
            norm_row("blk.{i}.attn_k_norm", f"{LAYER}self_attn.k_norm", LESS_ONE, "width"),
            norm_row("blk.{i}.post_attention_norm", f"{LAYER}post_attention_layernorm", LESS_ONE),
            norm_row("blk.{i}.ffn_norm", f"{LAYER}pre_feedforward_layernorm", LESS_ONE),
            norm_row("blk.{i}.post_ffw_norm", f"{LAYER}post_feedforward_layernorm", LESS_ONE),
            *mlp_rows(LAYER),
        )
    },
    config=config,
    model=model,
)
