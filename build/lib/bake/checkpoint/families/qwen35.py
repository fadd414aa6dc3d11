"""Qwen 3.5: gated delta nets in most layers, attention with a gate in the others, and a head
that drafts several tokens.
"""

from typing import Any

from bake.checkpoint.families.changes import LESS_ONE, Change, grouped, log_of_minus
from bake.checkpoint.families.decoder import (
    check_keys,
    common,
    mlp_rows,
    norm_row,
    top_rows,
)
from bake.checkpoint.families.file import File
from bake.checkpoint.families.table import (
    MAX_LAYERS,
    Config,
    Family,
    Model,
    Row,
    attention,
    layers,
    natural,
    traits,
)
from bake.errors import Malformed, Misset

MORE_WORDS = """
    ssm.conv_kernel ssm.state_size ssm.group_count ssm.time_step_rank ssm.inner_size
    full_attention_interval attention.recurrent_layers nextn_predict_layers
    rope.dimension_sections
"""
MORE = frozenset(MORE_WORDS.split())
INTERVAL = 4
LAYER = "model.layers.{i}."
DRAFT = "mtp.layers.{j}."


def _gated(layer: str) -> tuple[Row, ...]:
    """Attention whose queries come with a gate; nothing is permuted."""
    return (
        norm_row("blk.{i}.attn_norm", f"{layer}input_layernorm", LESS_ONE),
        Row("blk.{i}.attn_q.weight", f"{layer}self_attn.q_proj.weight", ("gated", "hidden")),
        Row("blk.{i}.attn_k.weight", f"{layer}self_attn.k_proj.weight", ("keys", "hidden")),
        Row("blk.{i}.attn_v.weight", f"{layer}self_attn.v_proj.weight", ("keys", "hidden")),
        Row("blk.{i}.attn_output.weight", f"{layer}self_attn.o_proj.weight", ("hidden", "queries")),
        norm_row("blk.{i}.attn_q_norm", f"{layer}self_attn.q_norm", LESS_ONE, "width"),
        norm_row("blk.{i}.attn_k_norm", f"{layer}self_attn.k_norm", LESS_ONE, "width"),
        norm_row("blk.{i}.post_attention_norm", f"{layer}post_attention_layernorm", LESS_ONE),
        *mlp_rows(layer),
    )


NET = f"{LAYER}linear_attn."
VALUES = Change(rows=grouped("value_width"))
EACH = Change(rows=grouped("one"))


def model(config: Config) -> Model:
    """:raises Malformed: a number of the config is none."""
    dims = attention(config)
    keys = natural(config, "linear_num_key_heads")
    heads = natural(config, "linear_num_value_heads")
    if heads % keys:
        raise Misset("config.json", f"{heads} value heads cannot share {keys} key heads")
    width = natural(config, "linear_value_head_dim")
    both = 2 * keys * natural(config, "linear_key_head_dim")
    dims |= {
        "one": 1,
        "twice": 2 * dims["hidden"],
        "gated": dims["queries"] * (2 if config.get("attn_output_gate", True) else 1),
        "key_heads": keys,
        "value_heads": heads,
        "value_width": width,
        "values": heads * width,
        "queries_and_keys": both,
        "mixed": both + heads * width,
        "kernel": natural(config, "linear_conv_kernel_dim"),
    }
    drafts = config.get("mtp_num_hidden_layers") or 0
    if type(drafts) is not int or not 0 <= drafts <= MAX_LAYERS:
        raise Misset("config.json", f"mtp_num_hidden_layers is {drafts!r}")
    return Model(dims, _kinds(config), traits(config), drafts)


def _kinds(config: Config) -> tuple[str, ...]:
    count = layers(config)
    kinds = config.get("layer_types")
    if kinds is None:
        period = natural(config, "full_attention_interval", INTERVAL)
        full = [(i + 1) % period == 0 for i in range(count)]
        return tuple("full_attention" if one else "linear_attention" for one in full)
    known = ("full_attention", "linear_attention")
    if not isinstance(kinds, list) or len(kinds) != count or any(k not in known for k in kinds):
        raise Misset("config.json", f"layer_types does not tell {count} layers, full or linear")
    return tuple(kinds)


def config(file: File) -> dict[str, Any]:
    """All three positions of a token are the same where there is text alone, so the sections of
    its rotation say nothing, and are left out.

    :raises Unsupported: something is missing, or not known.
    """
    own = file.own
    check_keys(own, MORE)
    made = common(file)
    drafts = own.natural("nextn_predict_layers", 0, MAX_LAYERS)
    count = made["num_hidden_layers"] - drafts
    heads = own.natural("ssm.time_step_rank")
    if count <= 0 or not heads or own.natural("ssm.inner_size") % heads:
        raise Malformed(own.where, "block_count, ssm.time_step_rank or ssm.inner_size is wrong")
    rotated = own.natural("rope.dimension_count", made["head_dim"]) / made["head_dim"]
    interval = own.natural("full_attention_interval", INTERVAL)
    return {
        **made,
        "num_hidden_layers": count,
        "layer_types": _layer_types(file, count, drafts, interval),
        "full_attention_interval": interval,
        "rope_parameters": {**made["rope_parameters"], "partial_rotary_factor": rotated},
        "attention_bias": False,
        "attn_output_gate": True,
        "linear_conv_kernel_dim": own.natural("ssm.conv_kernel"),
        "linear_key_head_dim": own.natural("ssm.state_size"),
        "linear_value_head_dim": own.natural("ssm.inner_size") // heads,
        "linear_num_key_heads": own.natural("ssm.group_count"),
        "linear_num_value_heads": heads,
        "mamba_ssm_dtype": "float32",
        "mtp_num_hidden_layers": drafts,
        "mtp_use_dedicated_embeddings": False,
        "architectures": ["Qwen3_5ForCausalLM"],
        "model_type": "qwen3_5_text",
    }


def _layer_types(file: File, count: int, drafts: int, interval: int) -> list[str]:
    own = file.own
    if own.get("attention.recurrent_layers") is not None:
        linear = own.truths("attention.recurrent_layers", count + drafts)[:count]
    elif interval:
        linear = [(i + 1) % interval != 0 for i in range(count)]
    else:
        raise Malformed(own.where, "full_attention_interval is 0")
    return ["linear_attention" if one else "full_attention" for one in linear]


QWEN35 = Family(
    "qwen35",
    ("qwen3_5_text", "qwen3_5"),
    top=top_rows(LESS_ONE),
    layers={
        "full_attention": _gated(LAYER),
        "linear_attention": (
            norm_row("blk.{i}.attn_norm", f"{LAYER}input_layernorm", LESS_ONE),
            Row(
                "blk.{i}.attn_qkv.weight",
                f"{NET}in_proj_qkv.weight",
                ("mixed", "hidden"),
                Change(rows=grouped("value_width", before="queries_and_keys")),
            ),
            Row("blk.{i}.attn_gate.weight", f"{NET}in_proj_z.weight", ("values", "hidden"), VALUES),
            Row(
                "blk.{i}.ssm_beta.weight", f"{NET}in_proj_b.weight", ("value_heads", "hidden"), EACH
            ),
            Row(
                "blk.{i}.ssm_alpha.weight",
                f"{NET}in_proj_a.weight",
                ("value_heads", "hidden"),
                EACH,
            ),
            Row(
                "blk.{i}.ssm_conv1d.weight",
                f"{NET}conv1d.weight",
                ("mixed", "one", "kernel"),
                Change(rows=grouped("value_width", before="queries_and_keys")),
                stored=("mixed", "kernel"),
            ),
            Row(
                "blk.{i}.ssm_a",
                f"{NET}A_log",
                ("value_heads",),
                Change(rows=grouped("one"), values=log_of_minus),
            ),
            Row("blk.{i}.ssm_dt.bias", f"{NET}dt_bias", ("value_heads",), EACH),
            # This norm multiplies by its weight alone.
            norm_row("blk.{i}.ssm_norm", f"{NET}norm", size="value_width"),
            Row(
                "blk.{i}.ssm_out.weight",
                f"{NET}out_proj.weight",
                ("hidden", "values"),
                Change(columns=grouped("value_width")),
            ),
            norm_row("blk.{i}.post_attention_norm", f"{LAYER}post_attention_layernorm", LESS_ONE),
            *mlp_rows(LAYER),
        ),
    },
    config=config,
    model=model,
    draft_top=(
        Row("blk.{i}.nextn.eh_proj.weight", "mtp.fc.weight", ("hidden", "twice")),
        norm_row("blk.{i}.nextn.enorm", "mtp.pre_fc_norm_embedding", LESS_ONE),
        norm_row("blk.{i}.nextn.hnorm", "mtp.pre_fc_norm_hidden", LESS_ONE),
        norm_row("blk.{i}.nextn.shared_head_norm", "mtp.norm", LESS_ONE),
    ),
    draft_layer=_gated(DRAFT),
)
