"""Records of key factors, as ``serve/plugin/factors.py`` writes them, small."""

import copy
import json
from typing import Any

RECORD: dict[str, Any] = {
    "schema": 1,
    "graph": "backbone",
    "hash": "aa" * 32,
    "outcome": "compiled",
    "reason": "",
    "reproduced": True,
    "env": {
        "hash": "e0",
        "factors": {
            "VLLM_PLUGINS": ["preheat"],
            "VLLM_PROCESS_NAME_PREFIX": "VLLM",
            "VLLM_P2P_SIDE_CHANNEL_HOST": "localhost",
            "VLLM_XGRAMMAR_CACHE_DIR": "/root/.cache/x",
            "VLLM_USE_AOT_COMPILE": True,
            "Q_SCALE_CONSTANT": 200,
        },
    },
    "config": {
        "hash": "c0",
        "parts": {
            "vllm": {"hash": "", "factors": {"version": "0.32.0"}},
            "model_config": {
                "hash": "m0",
                "factors": {
                    "model": "/models/tiny",
                    "dtype": "torch.bfloat16",
                    "hf_config": json.dumps({"hidden_size": 256, "layer_types": ["a", "b"]}),
                },
            },
            "scheduler_config": {
                "hash": "s0",
                "factors": {"max_num_batched_tokens": 2048, "max_num_seqs": 8},
            },
            "compilation_config": {
                "hash": "k0",
                "factors": {"cudagraph_capture_sizes": [1, 2], "pass_config": {"fuse": None}},
            },
        },
    },
    "inductor": {
        "system": {"device": {"name": "NVIDIA A10G"}, "hash": "d0", "version": {"cuda": "12.8"}},
        "torch_key": "ab12",
        "inductor_config": {"cpp.simdlen": None},
        "functorch_config": {"bundled_autograd_cache": False},
    },
    "code": {"hash": "f0", "qualname": "Model.forward", "line": 100},
    "sources": {
        "vllm.layer": {"file": "/venv/vllm/layer.py", "sha256": "10"},
        "vllm.model": {"file": "/venv/vllm/model.py", "sha256": "11"},
    },
    "beside": {
        "num_speculative_tokens": 4,
        "versions": {"vllm": "0.32.0", "torch": "2.13.0", "python": "3.11.7"},
        "places": {"HOME": "/root", "VLLM_CACHE_ROOT": "/baked/vllm"},
    },
}


def record(graph: str = "backbone", **changes: Any) -> dict[str, Any]:
    """The record with ``changes``: keys are paths with ``/`` between their parts."""
    made = copy.deepcopy(RECORD) | {"graph": graph}
    for path, value in changes.items():
        *above, last = path.split("/")
        at = made
        for name in above:
            at = at[name]
        at[last] = value
    return made
