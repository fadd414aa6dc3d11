"""The sizes of the network, and the Hugging Face `config.json` that states them.

Owns the numbers; the network (`model.py`) and the checkpoint writer read them from here.
"""

from __future__ import annotations

from dataclasses import dataclass

LINEAR = "linear_attention"
FULL = "full_attention"


@dataclass(frozen=True)
class Shape:
    """Sizes of one Qwen3.5-architecture text model with one MTP layer."""

    vocab: int = 16384
    hidden: int = 256
    intermediate: int = 512
    layer_types: tuple[str, ...] = (LINEAR, LINEAR, LINEAR, FULL)
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    rotary_fraction: float = 0.25
    rope_theta: float = 10000.0
    linear_key_heads: int = 2
    linear_value_heads: int = 4
    linear_head_dim: int = 64
    conv_kernel: int = 4
    norm_eps: float = 1e-6
    positions: int = 4096

    @property
    def key_width(self) -> int:
        return self.linear_key_heads * self.linear_head_dim

    @property
    def value_width(self) -> int:
        return self.linear_value_heads * self.linear_head_dim

    @property
    def conv_width(self) -> int:
        return 2 * self.key_width + self.value_width

    @property
    def rotary_dim(self) -> int:
        return int(self.head_dim * self.rotary_fraction)


def hf_config(shape: Shape, *, eos: int, pad: int) -> dict[str, object]:
    """`config.json` as vLLM and transformers expect it for a text-only Qwen3.5.

    `mrope_section` is left out on purpose: with it, the MTP drafter of a text-only model does
    not compile in vLLM 0.32.
    """
    return {
        "architectures": ["Qwen3_5ForCausalLM"],
        "model_type": "qwen3_5_text",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_output_gate": True,
        "bos_token_id": None,
        "dtype": "bfloat16",
        "eos_token_id": eos,
        "full_attention_interval": len(shape.layer_types),
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "layer_types": list(shape.layer_types),
        "linear_conv_kernel_dim": shape.conv_kernel,
        "linear_key_head_dim": shape.linear_head_dim,
        "linear_num_key_heads": shape.linear_key_heads,
        "linear_num_value_heads": shape.linear_value_heads,
        "linear_value_head_dim": shape.linear_head_dim,
        "mamba_ssm_dtype": "float32",
        "max_position_embeddings": shape.positions,
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": len(shape.layer_types),
        "num_key_value_heads": shape.kv_heads,
        "pad_token_id": pad,
        "rms_norm_eps": shape.norm_eps,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": shape.rope_theta,
            "partial_rotary_factor": shape.rotary_fraction,
        },
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": shape.vocab,
    }
