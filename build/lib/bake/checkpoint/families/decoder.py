"""What plain decoders share: Llama's layer and its config."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bake.checkpoint.families.changes import AS_IS, Change
from bake.checkpoint.families.file import File
from bake.checkpoint.families.metadata import Metadata
from bake.checkpoint.families.rotary import of_divisors, scaling
from bake.checkpoint.families.table import MAX_LAYERS, Row
from bake.errors import Malformed, Unsupported

EMBEDDING = "token_embd.weight"
HEAD = "output.weight"
DIVISORS = "rope_freqs.weight"
# Of this release's conventions: rope_parameters, dtype. vLLM hands the config to transformers.
TRANSFORMERS = "5.19.0"

# Keys below the architecture's name that are looked at, or that change nothing of the model.
KNOWN_WORDS = """
    block_count context_length embedding_length feed_forward_length vocab_size
    attention.head_count attention.head_count_kv attention.key_length attention.value_length
    attention.layer_norm_rms_epsilon rope.freq_base rope.dimension_count rope.scale_linear
    rope.scaling.type rope.scaling.factor rope.scaling.original_context_length
    rope.scaling.finetuned rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow
    rope.scaling.yarn_ext_factor rope.scaling.attn_factor rope.scaling.yarn_attn_factor
    rope.scaling.yarn_log_multiplier rope.scaling.alpha expert_count expert_used_count
    attention.causal pooling_type tensor_data_layout use_parallel_residual
"""
KNOWN = frozenset(KNOWN_WORDS.split())


def attention_rows(layer: str, blk: str = "blk.{i}.", bias: str = "") -> tuple[Row, ...]:
    """Four projections; with ``bias``, what of a model says that they have vectors too."""

    def pair(gguf: str, name: str, shape: tuple[str, str]) -> list[Row]:
        matrix = Row(f"{blk}{gguf}.weight", f"{layer}self_attn.{name}.weight", shape)
        vector = Row(f"{blk}{gguf}.bias", f"{layer}self_attn.{name}.bias", shape[:1], when=bias)
        return [matrix, vector] if bias else [matrix]

    return tuple(
        pair("attn_q", "q_proj", ("queries", "hidden"))
        + pair("attn_k", "k_proj", ("keys", "hidden"))
        + pair("attn_v", "v_proj", ("keys", "hidden"))
        + pair("attn_output", "o_proj", ("hidden", "queries"))
    )


def mlp_rows(layer: str, bias: str = "") -> tuple[Row, ...]:
    """A gated feed-forward layer."""
    parts = (
        ("ffn_gate", "gate_proj", ("inner", "hidden")),
        ("ffn_up", "up_proj", ("inner", "hidden")),
        ("ffn_down", "down_proj", ("hidden", "inner")),
    )
    rows = []
    for gguf, name, shape in parts:
        rows.append(Row(f"blk.{{i}}.{gguf}.weight", f"{layer}mlp.{name}.weight", shape))
        if bias:
            vector = f"blk.{{i}}.{gguf}.bias", f"{layer}mlp.{name}.bias"
            rows.append(Row(*vector, shape[:1], when=bias))
    return tuple(rows)


def norm_row(gguf: str, name: str, change: Change = AS_IS, size: str = "hidden") -> Row:
    """A vector that scales."""
    return Row(f"{gguf}.weight", f"{name}.weight", (size,), change)


def top_rows(norm: Change = AS_IS) -> tuple[Row, ...]:
    """Embedding, last norm, and the head where it is not the embedding."""
    return (
        Row(EMBEDDING, "model.embed_tokens.weight", ("vocabulary", "hidden")),
        norm_row("output_norm", "model.norm", norm),
        Row(HEAD, "lm_head.weight", ("vocabulary", "hidden"), when="untied"),
    )


def changed(rows: tuple[Row, ...], changes: Mapping[str, Change]) -> tuple[Row, ...]:
    """The rows, with changes where a folder's name has such a part."""
    found = []
    for row in rows:
        told = [change for part, change in changes.items() if part in row.name]
        found.append(replace(row, change=told[0]) if told else row)
    return tuple(found)


def common(file: File) -> dict[str, Any]:
    """What every decoder's config has.

    :raises Unsupported: something is missing, or makes it no plain decoder.
    :raises Malformed: something is not what it must be.
    """
    own = file.own
    _check_plain(own)
    heads = _over_zero(own, "attention.head_count")
    hidden = _over_zero(own, "embedding_length")
    width = _width(own, hidden, heads)
    return {
        "architectures": [],
        "model_type": "",
        "dtype": "bfloat16",
        "transformers_version": TRANSFORMERS,
        "vocab_size": _vocabulary(file, hidden),
        "hidden_size": hidden,
        "intermediate_size": _over_zero(own, "feed_forward_length"),
        "num_hidden_layers": _over_zero(own, "block_count", MAX_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": own.natural("attention.head_count_kv", heads) or heads,
        "head_dim": width,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "max_position_embeddings": _over_zero(own, "context_length"),
        "rms_norm_eps": own.number("attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(file, width),
        "tie_word_embeddings": HEAD not in file.tensors,
        "use_cache": True,
    }


def check_keys(own: Metadata, more: frozenset[str] = frozenset()) -> None:
    """Whether all that the file asks of a model is known.

    :raises Unsupported: a key is not, by name.
    """
    if unknown := own.unknown(KNOWN | more):
        raise Unsupported(
            f"{own.where}: metadata that is not known here: {', '.join(unknown[:8])}",
            "what it changes of the model cannot be told, so nothing is converted",
        )


def _check_plain(own: Metadata) -> None:
    if experts := own.natural("expert_count", 0):
        raise Unsupported(
            f"{own.where}: a mixture of {experts} experts is not converted", "dense models are"
        )
    if not own.truth("attention.causal", True) or own.natural("pooling_type", 0):
        raise Unsupported(
            f"{own.where}: a model of embeddings is not converted", "models that write text are"
        )
    if own.truth("use_parallel_residual", False):
        raise Unsupported(f"{own.where}: {own.prefix}use_parallel_residual is not converted")


def _over_zero(own: Metadata, key: str, most: int = 2**31 - 1) -> int:
    if not (number := own.natural(key, most=most)):
        raise Malformed(own.where, f"{own.prefix}{key} is 0")
    return number


def _width(own: Metadata, hidden: int, heads: int) -> int:
    """Numbers in a head: a rotation takes them in pairs."""
    width = own.natural("attention.key_length", hidden // heads)
    if own.natural("attention.value_length", width) != width:
        raise Unsupported(
            f"{own.where}: keys and values differ in length", "only models where they are alike are"
        )
    if width < 2 or width % 2:
        raise Malformed(own.where, f"heads of {width} numbers cannot be rotated")
    return width


def _vocabulary(file: File, hidden: int) -> int:
    shape = file.shape(EMBEDDING)
    if len(shape) != 2 or shape[1] != hidden:
        raise Malformed(
            file.metadata.where, f"{EMBEDDING} is {shape}, embedding_length is {hidden}"
        )
    return shape[0]


def _rope(file: File, width: int) -> dict[str, Any]:
    theta = file.own.number("rope.freq_base", 10000.0)
    if not theta > 0:
        raise Malformed(file.metadata.where, f"rope.freq_base is {theta}")
    told = scaling(file.own, theta)
    if DIVISORS not in file.tensors:
        return told
    if told["rope_type"] != "default":
        raise Unsupported(f"{file.metadata.where}: scales rotations twice, by {DIVISORS} too")
    return of_divisors(file.metadata.where, file.floats(DIVISORS), theta, width)
