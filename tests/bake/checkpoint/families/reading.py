"""The fixtures, read: what a GGUF was made of, and what we make of it."""

import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bake.checkpoint import families, gguf, safetensors
from bake.checkpoint.arrays import array
from bake.checkpoint.source import mapped

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = ("llama", "llama_spm", "qwen2", "qwen3", "qwen35", "gemma3")


@contextmanager
def read(name):
    """Contents and source of a fixture's GGUF."""
    with mapped(FIXTURES / f"{name}.gguf") as source:
        yield gguf.parse(source), source


def config(name):
    return json.loads((FIXTURES / f"{name}.config.json").read_text())


def original(name):
    """Every tensor that the GGUF was made of, as BF16's bits."""
    with mapped(FIXTURES / f"{name}.safetensors") as source:
        contents = safetensors.parse(source)
        return {one.name: array(source, one).copy() for one in contents.tensors}


def filled(contents, source, dtype=np.uint16, threads=1):
    """Every tensor that we make of it."""
    stored = contents.by_name()
    made = {}
    for output in families.plan(contents, source).outputs:
        made[output.name] = np.full(output.shape, 1, dtype)
        inputs = [array(source, stored[one]) for one in output.inputs]
        output.fill(inputs, made[output.name], threads)
    return made


def float32(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)
