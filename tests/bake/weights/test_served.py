"""The config that a blob is served with."""

import json

from bake.weights.served import config_of
from blob.recipe import Recipe, choose
from blob.writer import Plain
from tests.blob.blobs import bfloats

NAMES = [f"model.layers.{n}.{name}.weight" for n in (0, 11) for name in ("mlp.up", "self_attn.q")]


def plains(recipe, *more):
    shape = (32, 256)
    names = [*NAMES, *more]
    return [Plain(n, "BF16", bfloats(*shape), choose(n, shape, "BF16", recipe)) for n in names]


def config(recipe, *more, **said):
    return json.loads(config_of({"architectures": ["X"], **said}, plains(recipe, *more)))


def test_codecs_that_give_back_bfloat16_leave_the_config_as_it_was():
    said = {"architectures": ["X"], "a": [1, {"b": None}], "limit": float("inf")}
    for codec in ("int5", "q6_k", "raw", "zipnn"):
        assert json.loads(config_of(said, plains(Recipe(codec)))) == said


def test_int4_is_told_in_the_words_of_compressed_tensors():
    made = config(Recipe("int4", 64, "mlp"), "lm_head.weight")["quantization_config"]
    assert made["quant_method"] == "compressed-tensors"
    assert made["format"] == "pack-quantized"
    group = made["config_groups"]["group_0"]
    assert group["targets"] == ["re:.*mlp\\.up$"]
    assert group["weights"]["num_bits"] == 4
    assert group["weights"]["group_size"] == 64
    assert made["ignore"] == [
        "lm_head", "model.layers.0.self_attn.q", "model.layers.11.self_attn.q"
    ]  # fmt: skip


def test_a_head_of_its_own_is_said_to_be_untied_and_none_is_left_tied():
    assert config(Recipe("q6_k"), "lm_head.weight", tie_word_embeddings=True) == {
        "architectures": ["X"], "tie_word_embeddings": False
    }  # fmt: skip
    assert config(Recipe("q6_k"), tie_word_embeddings=True)["tie_word_embeddings"]
    assert "tie_word_embeddings" not in config(Recipe("q6_k"), "lm_head.weight")


def test_the_same_model_makes_the_same_bytes():
    both = [config_of({"b": 1, "a": 2}, list(p)) for p in (plains(Recipe("int4")),) * 2]
    assert both[0] == both[1]
