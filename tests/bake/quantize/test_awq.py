"""The search and the run of a model, in processes of their own: transformers is slow to import."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from bake.quantize.recipe import Recipe
from bake.quantize.verbs import CORPUS
from tests.bake.quantize.folders import TINY, Arrays, changed, child, numbers, tensors

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]

# A small look: what is proven does not hang on how many texts.
LOOK = Recipe("awq-w4a16", "linear", 32, samples=3, sequence=64)

MAKE = """
import json, sys
from pathlib import Path
from bake.quantize import Recipe, quantize
source, folder, corpus, recipe = sys.argv[1:5]
made = quantize(Path(source), Path(folder), Recipe(**json.loads(recipe)), Path(corpus))
print(json.dumps([[one.ratio, one.rounded_error, one.error] for one in made.searched]))
"""

# Folds alone, no rounding to four bits: a model in float32, before and after.
FOLD = """
import json, sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM
from bake.quantize import Recipe, families, scales
from bake.quantize.make import _opened
source, corpus = Path(sys.argv[1]), Path(sys.argv[2])
opened = _opened(source)
stored = opened.stored
shapes = {name: one.shape for name, one in stored.items()}
chosen = [n for n in shapes if n.startswith("model.layers.") and n.endswith("proj.weight")
          or "in_proj_qkv" in n or "in_proj_z" in n]
recipe = Recipe(targets="linear", samples=2, sequence=64)
folds, told, _ = scales.find(source, shapes, opened.read, families.family_of(opened.config), chosen,
                             recipe, corpus, 1, lambda prefix: None)
model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
ids = torch.arange(100, 164)[None]
with torch.no_grad():
    before = model(ids).logits
    for name, parameter in model.named_parameters():
        if name in shapes and name in folds.replaced:
            bits = torch.from_numpy(folds.replaced[name].view("int16"))
            parameter.copy_(bits.view(torch.bfloat16).float())
        elif name in shapes:
            parameter.copy_(torch.from_numpy(folds.of(name, opened.read(name))))
    after = model(ids).logits
changed = sum(not bool((one == 1).all()) for one in folds.columns.values())
print(json.dumps([changed, float((after - before).abs().max()), float(before.abs().max())]))
"""

# Inputs with a few channels that are much larger, as AWQ is for.
SEARCH = """
import json
import numpy as np, torch
from concurrent.futures import ThreadPoolExecutor
from bake.quantize import search
from bake.quantize.families import Pair
rng = np.random.default_rng(7)
x = rng.normal(0, 1, (512, 128)).astype(np.float32)
x[:, ::17] *= 40
weights = [rng.normal(0, 0.05, (96, 128)).astype(np.float32) for _ in range(2)]
gram = torch.from_numpy(x.T @ x)
inputs = search.Inputs(gram, np.abs(x).mean(0))
norm = rng.normal(0, 0.1, 128).astype(np.float32)
with ThreadPoolExecutor(2) as pool:
    best = search.best(Pair("n", ("a", "b"), True), weights, norm, 1.0, inputs, 32, pool)
off = [(search.quantized(w * best.scales, 32) / best.scales - w) @ x.T for w in weights]
plain = [w @ x.T for w in weights]
real = sum((one ** 2).sum() for one in off) / sum((one ** 2).sum() for one in plain)
print(json.dumps([best.ratio, best.rounded_error, best.error, float(real)]))
"""


def make(folder: Path, threads: int = 1, source: Path = TINY) -> list[list[float]]:
    recipe = json.dumps(LOOK.describe())
    told: list[list[float]] = json.loads(
        child(MAKE, source, folder, CORPUS, recipe, threads=threads)
    )
    return told


def digests(folder: Path) -> dict[str, str]:
    files = sorted(folder.iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_scales_lower_the_error_of_a_layer_and_it_is_the_one_that_is_told():
    ratio, rounded, error, real = json.loads(child(SEARCH))
    assert ratio > 0
    assert error < 0.7 * rounded
    assert real == pytest.approx(error, rel=1e-3)


def test_every_seed_gives_its_bytes_with_one_thread_and_with_two(tmp_path):
    errors = make(tmp_path / "one", threads=1)
    make(tmp_path / "two", threads=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    # Rounding alone is in the grid: nothing that is chosen is worse.
    assert len(errors) == 12
    assert all(error <= rounded for _, rounded, error in errors)
    assert any(ratio > 0 for ratio, _, _ in errors)


def test_folding_leaves_the_model_as_it_was(tmp_path):
    def widen(arrays: Arrays) -> None:
        for name, array in numbers(TINY).items():
            arrays[name] = "F32", array

    # Norms must be of BF16 to divide exactly; matrices of F32 keep what they are multiplied with.
    source = changed(tmp_path / "wide", widen)
    scaled, off, largest = json.loads(child(FOLD, source, CORPUS))
    assert scaled >= 20
    assert off < 2e-4 * largest


def test_a_layer_that_gives_no_number_is_told(tmp_path):
    def overflow(arrays: Arrays) -> None:
        kind, array = arrays["model.layers.1.post_attention_layernorm.weight"]
        arrays["model.layers.1.post_attention_layernorm.weight"] = kind, np.full_like(array, 0x7F7F)
        kind, array = arrays["model.layers.1.mlp.up_proj.weight"]
        arrays["model.layers.1.mlp.up_proj.weight"] = kind, np.full_like(array, 0x7F7F)

    source = changed(tmp_path / "source", overflow)
    code = MAKE.replace(
        "made = quantize", "from bake.errors import BakeError\ntry:\n  made = quantize"
    )
    code = code.partition("print(")[0] + "except BakeError as error:\n  print(error)\n"
    said = child(code, source, tmp_path / "out", CORPUS, json.dumps(LOOK.describe()))
    assert "model.layers.1: what the layer gives is no number" in said
    assert not (tmp_path / "out").exists()


def test_a_model_within_a_larger_one_gives_the_same_numbers(tmp_path):
    def rename(arrays: Arrays) -> None:
        for name in [one for one in arrays if one.startswith("model.")]:
            arrays[name.replace("model.", "model.language_model.", 1)] = arrays.pop(name)

    inner = json.loads((TINY / "config.json").read_bytes())
    source = changed(tmp_path / "larger", rename, model_type="qwen3_5", text_config=inner)
    make(tmp_path / "one")
    make(tmp_path / "two", source=source)
    plain, within = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    for name, (_, array) in plain.items():
        other = within[name.replace("model.", "model.language_model.", 1)][1]
        np.testing.assert_array_equal(other, array)
