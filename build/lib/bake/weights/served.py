"""The config of a blob's model: what vLLM must know of how its tensors come.

Most codecs give back BF16, and the config stays as it was. INT4 is handed over as it is stored, so
its config tells compressed-tensors' scheme (``pack-quantized``), and stock vLLM can serve it too.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from blob.writer import Plain

# Up to the last number, names tell which layer; from there on, which linear in it.
BEFORE = re.compile(r"^.*\.\d+\.")
HEAD = "lm_head.weight"


def config_of(config: Mapping[str, Any], tensors: Sequence[Plain]) -> bytes:
    """``config.json`` for a blob of ``tensors``."""
    made = dict(config)
    # vLLM asks headers whether a checkpoint has a head of its own, and would not know a packed one.
    if any(plain.name == HEAD for plain in tensors) and "tie_word_embeddings" in made:
        made["tie_word_embeddings"] = False
    if group := _int4_group(tensors):
        made["quantization_config"] = _compressed_tensors(tensors, group)
    return (json.dumps(made, indent=2) + "\n").encode()


def _int4_group(tensors: Sequence[Plain]) -> int:
    groups = {getattr(p.choice.codec, "group", 0) for p in tensors if _is_int4(p)}
    return int(max(groups, default=0))


def _is_int4(plain: Plain) -> bool:
    return plain.choice.codec.name == "int4"


def _compressed_tensors(tensors: Sequence[Plain], group: int) -> dict[str, Any]:
    quantized = {plain.name for plain in tensors if _is_int4(plain)}
    linears = {p.name for p in tensors if p.array.ndim == 2 and p.name.endswith(".weight")}
    targets = sorted({_pattern(name) for name in quantized})
    ignored = sorted({_module(name) for name in linears - quantized})
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": group,
        "dynamic": False,
        "observer": "minmax",
    }
    unquantized = {"input_activations": None, "output_activations": None}
    scheme = {"targets": targets, "weights": weights, **unquantized}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": scheme},
        "ignore": ignored,
        "kv_cache_scheme": None,
    }


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def _pattern(name: str) -> str:
    """``…layers.3.mlp.up_proj.weight`` → any layer's ``mlp.up_proj``."""
    inner = BEFORE.sub("", _module(name))
    return f"re:.*{re.escape(inner)}$" if inner != _module(name) else inner
