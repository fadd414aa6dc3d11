"""Every linear of small random instances of many architectures: chosen, packed, and given back
the same by the plain references and by the fast path on any number of threads.
"""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from bake.weights.checkpoint import open_checkpoint
from bake.weights.pack import pack
from blob import rows
from blob.blob import Blob
from blob.codecs import RowCodec
from blob.codecs.bfloat16 import from_float32_reference
from blob.recipe import Recipe, choose
from blob.reconstruct import stream
from blob.registry import codec_of
from blob.store import Store
from tests.blob import architectures

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(900)]

# Linear by what it computes, though not by its class.
LIKE_LINEAR = ("Conv1D", "Experts")
ROUTERS = ("router", ".gate.", "shared_expert_gate")
# A codec more for some, so that each meets some architecture.
SAMPLED = {
    "llama": "q4_k",
    "mixtral": "q5_k",
    "qwen3_5_text": "int4",
    "lfm2": "q8_0",
    "bert": "zipnn",
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """One folder for each architecture; made in a process of its own."""
    folder = tmp_path_factory.mktemp("architectures")
    done = subprocess.run(
        [sys.executable, architectures.__file__, folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if "No module named 'torch'" in done.stderr or "No module named 'transformers'" in done.stderr:
        pytest.skip("transformers is not installed")
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def modules_of(folder):
    return json.loads((folder / "modules.json").read_text())


def test_there_are_enough_of_every_kind():
    assert len(set(architectures.EVERY)) == len(architectures.EVERY) >= 60
    kinds = (architectures.DENSE, architectures.MOE, architectures.HYBRIDS, architectures.ENCODERS)
    assert all(len(kind) >= 9 for kind in kinds)


@pytest.mark.parametrize("name", architectures.EVERY)
def test_linears_are_chosen_and_nothing_else_is(checkpoints, name):
    checkpoint, told = open_checkpoint(checkpoints / name), modules_of(checkpoints / name)
    shapes = {name: one.array.shape for name, one in checkpoint.tensors.items()}
    choices = {name: choose(name, shape, "BF16", Recipe("q6_k")) for name, shape in shapes.items()}
    chosen = {name for name, choice in choices.items() if choice.codec.name != "raw" or choice.why}
    linears = set(told["linears"]) - set(told["head"])
    routers = {name for name in linears if any(word in name for word in ROUTERS)}
    assert linears & shapes.keys() - routers <= chosen
    assert not chosen & set(told["head"])
    for one in chosen - linears:
        # Saved under other names than the modules': experts one by one.
        kind = told["kinds"].get(one, "Experts")
        assert kind.endswith(LIKE_LINEAR), f"{one}: {kind}"
        assert kind != "Experts" or ".experts." in one or len(shapes[one]) == 3, one
    large = {name for name, shape in shapes.items() if np.prod(shape) >= 256 * 256}
    embeddings = {n for n, kind in told["kinds"].items() if "Embedding" in kind}
    left = {one for one in large - chosen - embeddings if not choices[one].why}
    assert all("embed" in one or "lm_head" in one or "decay" in one for one in left), left


@pytest.mark.parametrize("name", architectures.EVERY)
def test_every_linear_comes_back_the_same_by_all_ways(checkpoints, tmp_path, name):
    sampled = SAMPLED.get(name)
    for codec in ("int5", "q6_k", *([sampled] if sampled else [])):
        folder = tmp_path / codec
        made = pack(checkpoints / name, Recipe(codec), folder, Store(tmp_path / "store"))
        blob = Blob.open(folder)
        shapes = {
            name: one.array.shape
            for name, one in open_checkpoint(checkpoints / name).tensors.items()
        }
        # Tied once, untied twice: as the checkpoint holds them.
        assert {t.name: tuple(t.shape) for t in blob.manifest.tensors} == shapes
        assert made.codecs[codec] >= 2
        digests = {tensor.name: tensor.sha256 for tensor in blob.manifest.tensors}
        for threads in (1, 2, 3):
            streamed = {
                one.name: hashlib.sha256(one.array.tobytes()).hexdigest()
                for one in stream(blob, threads)
            }
            assert streamed == digests
        for tensor in blob.manifest.tensors:
            if not isinstance(made_by := codec_of(tensor.codec, tensor.params, ""), RowCodec):
                continue
            parts = blob.parts(tensor)
            plain = from_float32_reference(made_by.decode_reference(parts))
            assert hashlib.sha256(plain.tobytes()).hexdigest() == tensor.sha256, tensor.name
            for threads in (1, 2, 3):
                out = np.empty(tensor.rows_and_cols, np.uint16)
                rows.decode(made_by, parts, out, threads)
                assert out.tobytes() == plain.tobytes(), tensor.name


def test_tied_embeddings_stand_once_and_untied_twice(checkpoints):
    heads = {}
    for name in architectures.EVERY:
        told = modules_of(checkpoints / name)
        held = open_checkpoint(checkpoints / name).tensors
        if told["head"] == ["lm_head.weight"]:
            heads[name] = (told["tied"], "lm_head.weight" in held)
    for name, changed in architectures.AGAINST.items():
        assert heads[name] == (changed, not changed)
    assert len([name for name, (tied, _) in heads.items() if tied]) >= 10
    assert len([name for name, (tied, _) in heads.items() if not tied]) >= 10
