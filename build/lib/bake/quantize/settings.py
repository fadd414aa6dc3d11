"""``config.json`` of what was quantized, as vLLM 0.32 and compressed-tensors read it. Pure.

Targets are patterns of whole module paths, so the same words fit the checkpoint's names and those
that vLLM gives them (``language_model.model.layers…``). A fused matrix is matched by its parts.
The drafter's modules are called ``mtp.…`` there; a mapper of vLLM's drops plain names that begin so
from ``ignore``, and leaves patterns alone.
"""

import re
from collections.abc import Mapping
from typing import Any

from bake.quantize.linears import LAYER, Selection
from bake.quantize.recipe import Recipe

IGNORED = (r"re:.*\bmtp\..*", r"re:.*\bvisual\..*", r"re:.*\bvision_tower\..*")
HEAD = "lm_head"
# The version whose layout is written, and which vLLM 0.32 pins.
VERSION = "0.17.0"


def config(was: Mapping[str, Any], recipe: Recipe, selection: Selection) -> dict[str, Any]:
    """``was`` with how its weights are stored now; untied where the head is packed."""
    made = {**was, "quantization_config": quantization(recipe, selection)}
    if selection.head:
        made["tie_word_embeddings"] = False
        if isinstance(inner := made.get("text_config"), dict):
            made["text_config"] = {**inner, "tie_word_embeddings": False}
    return made


def quantization(recipe: Recipe, selection: Selection) -> dict[str, Any]:
    """``quantization_config``: one group of symmetric int4."""
    ignored = [*IGNORED, *(f"re:.*{re.escape(_module(name))}$" for name in sorted(selection.left))]
    group: dict[str, Any] = {
        "targets": targets(selection),
        "weights": {
            "num_bits": 4,
            "type": "int",
            "symmetric": True,
            "strategy": "group",
            "group_size": recipe.group_size,
            "dynamic": False,
            "actorder": None,
            "block_structure": None,
            "observer": "minmax",
            "observer_kwargs": {},
        },
        "input_activations": None,
        "output_activations": None,
        "format": "pack-quantized",
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "version": VERSION,
        "config_groups": {"group_0": group},
        "ignore": ignored if selection.head else [*ignored, HEAD],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def targets(selection: Selection) -> list[str]:
    """A pattern for each kind of module, as ``mlp.up_proj`` in any layer; and for the head."""
    kinds = {
        found["rest"].removesuffix(".weight")
        for name in selection.chosen
        if (found := LAYER.match(name))
    }
    patterns = [rf"re:.*layers\.\d+\.{re.escape(kind)}$" for kind in sorted(kinds)]
    return [*patterns, f"re:.*{HEAD}$"] if selection.head else patterns


def _module(name: str) -> str:
    """Without what is called differently in vLLM: all before ``layers``."""
    return name.removesuffix(".weight")[name.find("layers.") :]
