"""Checkpoint folders made by code, as they are downloaded."""

import json

import numpy as np

from tests.blob.blobs import bfloats, shard_of

CONFIG = {"architectures": ["LlamaForCausalLM"], "hidden_size": 256, "tie_word_embeddings": True}
INDEX = "model.safetensors.index.json"


def saved(tensors):
    """A safetensors file of ``name: (dtype, array)``."""
    header, parts, begin = {"__metadata__": {"format": "pt"}}, [], 0
    for name, (dtype, array) in tensors.items():
        end = begin + array.nbytes
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [begin, end]}
        parts.append(np.ascontiguousarray(array).tobytes())
        begin = end
    return shard_of(header, b"".join(parts))


def model(layers=2, rows=64, cols=256, seed=0):
    """Tensors of a small dense model, and one of each kind that stays as it is."""
    made = {
        "model.embed_tokens.weight": ("BF16", bfloats(128, cols, seed=seed)),
        "model.norm.weight": ("BF16", bfloats(cols, seed=seed + 1)),
        "model.step": ("I64", np.array(7, np.int64)),
        "model.mask": ("BOOL", np.array([True, False])),
        "model.rope": ("F32", np.linspace(0, 1, 8, dtype=np.float32)),
        "model.none": ("F16", np.empty((0, 256), np.float16)),
    }
    for layer in range(layers):
        for number, name in enumerate(("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")):
            array = bfloats(rows, cols, seed=seed + 10 * layer + number + 2)
            made[f"model.layers.{layer}.{name}.weight"] = ("BF16", array)
    return made


def folder_of(folder, tensors=None, shards=1, config=None, **files):
    """A checkpoint; of more shards than one, with an index."""
    tensors = model() if tensors is None else tensors
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    (folder / "tokenizer.json").write_text('{"model":{"vocab":{"a":0}}}')
    names = list(tensors)
    named = {}
    for number in range(shards):
        name = "model.safetensors" if shards == 1 else f"model-{number}-of-{shards}.safetensors"
        some = names[number::shards]
        (folder / name).write_bytes(saved({one: tensors[one] for one in some}))
        named |= dict.fromkeys(some, name)
    if shards > 1:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": named}))
    for name, raw in files.items():
        (folder / name.replace("__", ".")).write_bytes(raw)
    return folder
