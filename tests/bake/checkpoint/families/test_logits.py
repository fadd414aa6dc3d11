"""A folder that we made computes what its model did: by transformers, and by llama.cpp."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from bake.checkpoint import families
from serve.settings import REPOSITORY

from .reading import FIXTURES, NAMES, config, filled, read

PROMPTS = [
    [5, 6, 7, 8, 9],
    [300, 11, 12, 200, 14, 15, 16, 17, 18, 19, 20, 21],
    # Longer than gemma3's window here.
    [(7 * n) % 256 + 3 for n in range(60)],
]
TRANSFORMERS = """
import json, sys, warnings
warnings.simplefilter("ignore")
from serve.plugin.patches import TORCHVISION_OPS, apply_all
apply_all([TORCHVISION_OPS])
import torch
from transformers import AutoModelForCausalLM
from scripts.conversion_peers import like_ggml

torch.set_num_threads(1)
job = json.load(sys.stdin)
told = []
for folder in job["folders"]:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    if folder in job["like_ggml"]:
        like_ggml(model)
    with torch.no_grad():
        ahead = [model(torch.tensor([one])).logits[0, -1] for one in job["prompts"]]
    told.append([torch.log_softmax(one.double(), -1).tolist() for one in ahead])
print(json.dumps(told))
"""


def ran(argv, job):
    """What a child writes."""
    done = subprocess.run(
        [sys.executable, *argv],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What we make of each GGUF, in float32, and what it was made of."""
    made = {}
    for name in NAMES:
        ours, theirs = (tmp_path_factory.mktemp(name) for _ in range(2))
        with read(name) as (contents, source):
            save_file(filled(contents, source, np.float32), ours / "model.safetensors")
            for file, raw in families.plan(contents, source).files.items():
                (ours / file).write_bytes(raw)
        weights = (FIXTURES / f"{name}.safetensors").read_bytes()
        (theirs / "model.safetensors").write_bytes(weights)
        (theirs / "config.json").write_text(json.dumps(config(name)))
        made[name] = ours, theirs
    return made


@pytest.fixture(scope="module")
def told(folders):
    """Log-probabilities of the next token by transformers, of our folder and of the original."""
    job = {
        "folders": [str(folder) for pair in folders.values() for folder in pair],
        "prompts": PROMPTS,
        # Gemma has GELU, and ggml looks that up in a table of half floats.
        "like_ggml": [str(folder) for folder in folders["gemma3"]],
    }
    found = json.loads(ran(["-c", TRANSFORMERS], job))
    return {name: np.array(found[2 * at : 2 * at + 2]) for at, name in enumerate(folders)}


@pytest.mark.torch
@pytest.mark.parametrize("name", NAMES)
def test_transformers_computes_the_same_of_our_folder(name, told):
    ours, theirs = told[name]
    # A_log is half a last place of the GGUF's number off: see test_tensors.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 if name == "qwen35" else 0)


@pytest.mark.torch
@pytest.mark.skipif(not importlib.util.find_spec("xllamacpp"), reason="needs xllamacpp")
@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp_computes_the_same_of_the_gguf(name, told, tmp_path):
    job = {
        "prompts": PROMPTS,
        "texts": ["a"],
        "tokens": config(name)["vocab_size"],
        "threads": 1,
        "answer": f"{tmp_path}/answer.npz",
    }
    peer = ["-m", "scripts.conversion_peers", "llama_cpp", str(FIXTURES / f"{name}.gguf")]
    ran(peer, job)
    found = np.load(tmp_path / "answer.npz")["logprobs"]
    np.testing.assert_allclose(told[name][0], found, rtol=0, atol=1e-4)
