"""Small random checkpoints of architectures that transformers knows: architectures.py FOLDER

Each is saved as its makers would, in FOLDER/<name>, beside ``modules.json``: which kind of module
owns each parameter. A process of its own, as it needs torch and hides a torchvision that is built
for another torch.
"""

import json
import sys
from pathlib import Path

# Sizes in multiples of 256, where an architecture takes them.
SIZES = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {
    "num_experts": 2,
    "num_local_experts": 2,
    "n_routed_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 256,
    "shared_expert_intermediate_size": 256,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}
HYBRID = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "layer_types": ["linear_attention", "full_attention"],
}
DENSE = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi",
    "phi3",
    "gpt2",
    "gpt_neox",
    "gptj",
    "opt",
    "bloom",
    "mpt",
    "starcoder2",
    "stablelm",
    "olmo",
    "olmo2",
    "cohere",
    "cohere2",
    "granite",
    "glm",
    "glm4",
    "nemotron",
    "exaone4",
    "smollm3",
    "seed_oss",
    "apertus",
    "persimmon",
    "ernie4_5",
    "hunyuan_v1_dense",
]
MOE = [
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe",
    "deepseek_v2",
    "deepseek_v3",
    "gpt_oss",
    "phimoe",
    "granitemoe",
    "ernie4_5_moe",
    "glm4_moe",
    "dots1",
    "minimax",
    "jetmoe",
    "llama4_text",
]
HYBRIDS = [
    "jamba",
    "bamba",
    "falcon_h1",
    "mamba",
    "recurrent_gemma",
    "qwen3_next",
    "qwen3_5_text",
    "qwen3_5_moe_text",
    "lfm2",
    "granitemoehybrid",
]
ENCODERS = [
    "bert",
    "roberta",
    "deberta-v2",
    "modernbert",
    "distilbert",
    "electra",
    "albert",
    "t5",
    "bart",
]
MORE = {
    "opt": {"ffn_dim": 512, "word_embed_proj_dim": 256},
    "distilbert": {"dim": 256, "hidden_dim": 512, "n_layers": 2, "n_heads": 4},
    "electra": {"embedding_size": 256},
    "albert": {"embedding_size": 128},
    "t5": {"d_model": 256, "d_ff": 512, "num_layers": 2, "num_heads": 4, "d_kv": 64},
    "bart": {
        "d_model": 256, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 512,
        "decoder_ffn_dim": 512, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    },
    "deepseek_v2": {"first_k_dense_replace": 1, "kv_lora_rank": 256, "q_lora_rank": 256},
    "deepseek_v3": {"first_k_dense_replace": 1, "kv_lora_rank": 256, "q_lora_rank": 256},
    "llama4_text": {"intermediate_size_mlp": 512},
    "qwen3_next": HYBRID,
    "qwen3_5_text": HYBRID,
    "qwen3_5_moe_text": HYBRID,
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "jamba": {"mamba_d_state": 16, "attn_layer_period": 2, "attn_layer_offset": 1},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 64, "attn_layer_indices": [1]},
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": 64, "mamba_d_ssm": 512},
    "granitemoehybrid": {
        "mamba_n_heads": 8, "mamba_d_head": 64, "layer_types": ["mamba", "attention"],
    },
}  # fmt: skip
EVERY = [*DENSE, *MOE, *HYBRIDS, *ENCODERS]
# Tied where their makers tie them; these are tied or not against that.
AGAINST = {"llama": True, "gemma": False, "qwen3": True, "mixtral": True}


def make(name, folder):
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    config = type(AutoConfig.for_model(name))(**{**SIZES, **EXPERTS, **MORE.get(name, {})})
    if name in AGAINST:
        config.tie_word_embeddings = AGAINST[name]
    torch.manual_seed(len(name))
    known = type(config) in AutoModelForCausalLM._model_mapping
    model = (AutoModelForCausalLM if known else AutoModel).from_config(config)
    model.to(torch.bfloat16).save_pretrained(folder / name)
    kinds = {
        f"{prefix}.{own}" if prefix else own: type(module).__name__
        for prefix, module in model.named_modules()
        for own, _ in module.named_parameters(recurse=False)
    }
    linears = [
        f"{prefix}.weight"
        for prefix, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    head = model.get_output_embeddings()
    told = {
        "kinds": kinds,
        "linears": linears,
        "head": [f"{p}.weight" for p, module in model.named_modules() if module is head],
        "tied": bool(config.tie_word_embeddings),
    }
    (folder / name / "modules.json").write_text(json.dumps(told))


if __name__ == "__main__":
    sys.modules["torchvision"] = None
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for each in EVERY:
        make(each, Path(sys.argv[1]))
