"""Which codec a tensor gets: by its name, type and shape."""

import pytest

from blob.errors import BlobError
from blob.recipe import Recipe, check, choose

Q = "model.layers.3.self_attn.q_proj.weight"
UP = "model.layers.3.mlp.up_proj.weight"


def codec(name, shape=(256, 256), dtype="BF16", recipe=None):
    return choose(name, shape, dtype, recipe or Recipe("q6_k")).codec.name


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_linears_of_any_float_get_the_codec(dtype):
    assert codec(Q, dtype=dtype) == codec(UP, dtype=dtype) == "q6_k"


@pytest.mark.parametrize("dtype", ["I32", "BOOL", "F8_E4M3", "F64", "U8"])
def test_what_is_no_float_of_ours_stays_as_it_is(dtype):
    assert codec(Q, dtype=dtype) == "raw"
    assert codec(Q, dtype=dtype, recipe=Recipe("zipnn")) == "raw"


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "transformer.wte.weight",
        "transformer.wpe.weight",
        "shared.weight",
        "lm_head.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.mlp.gate.weight",
        "model.layers.0.mlp.shared_expert_gate.weight",
        "model.layers.0.block_sparse_moe.router.weight",
        "model.layers.0.linear_attn.conv1d.weight",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "model.layers.0.self_attn.q_proj.bias",
    ],
)
def test_embeddings_heads_norms_routers_and_convolutions_stay_as_they_are(name):
    assert codec(name) == "raw"


@pytest.mark.parametrize("shape", [(256,), (), (0, 256), (256, 0), (4, 256, 256), (1, 256, 1, 1)])
def test_what_is_no_matrix_stays_as_it_is(shape):
    assert codec(Q, shape) == "raw"


@pytest.mark.parametrize(
    "name", ["model.layers.0.mlp.experts.gate_up_proj", "x.experts.down.weight"]
)
def test_experts_in_one_tensor_are_matrices(name):
    assert codec(name, (8, 256, 512)) == "q6_k"


def test_targets_say_how_far_it_goes():
    head = "lm_head.weight"
    for targets, expected in (
        ("mlp", {UP}),
        ("linears", {UP, Q}),
        ("all", {UP, Q, head, "model.embed_tokens.weight"}),
    ):
        recipe = Recipe("int5", targets=targets)
        names = (UP, Q, head, "model.embed_tokens.weight", "model.norm.weight")
        assert {name for name in names if codec(name, recipe=recipe) == "int5"} == expected


@pytest.mark.parametrize(
    ("wanted", "shape", "got", "why"),
    [
        ("q4_k", (8, 288), "q8_0", "288 columns are no multiple of 256: q8_0"),
        ("q5_k", (8, 32), "q8_0", "32 columns are no multiple of 256: q8_0"),
        ("q6_k", (8, 255), "raw", "255 columns are no multiple of 256: raw"),
        ("q8_0", (8, 33), "raw", "33 columns are no multiple of 32: raw"),
        ("int5", (8, 192), "raw", "192 columns are no multiple of 128: raw"),
        ("int4", (64, 33), "raw", "33 columns are no multiple of 32: raw"),
        ("int4", (33, 64), "raw", "33 rows are no multiple of 32"),
        ("q6_k", (7, 512), "q6_k", ""),
    ],
)
def test_a_matrix_that_its_codec_cannot_hold_falls_back_and_the_choice_says_why(
    wanted, shape, got, why
):
    choice = choose(UP, shape, "BF16", Recipe(wanted))
    assert choice.codec.name == got
    assert choice.why.startswith(why)
    assert bool(choice.why) == bool(why)


def test_lossless_codecs_take_everything_that_they_are_made_for():
    for name in (Q, "lm_head.weight", "model.norm.weight"):
        assert codec(name, (7,), recipe=Recipe("zipnn")) == "zipnn"
        assert codec(name, (7,), recipe=Recipe("raw")) == "raw"
    assert codec("x", (7,), "I64", Recipe("raw")) == "raw"


def test_a_recipe_says_its_group_and_takes_none_that_the_codec_does_not():
    assert Recipe("int4").describe() == {"codec": "int4", "targets": "linears", "group": 32}
    assert Recipe("int5", 64).params() == {"group": 64}
    assert Recipe("q6_k").describe() == {"codec": "q6_k", "targets": "linears"}
    with pytest.raises(BlobError, match=r"codec q6_k takes no group\nhint: with: int4, int5"):
        check(Recipe("q6_k", 32))


@pytest.mark.parametrize("group", [-32, 7, 33, 1])
def test_a_group_that_cannot_be_is_told(group):
    with pytest.raises(BlobError, match="recipe: codec int5: "):
        check(Recipe("int5", group))


def test_an_unknown_codec_is_told_with_those_there_are():
    with pytest.raises(BlobError, match=r"unknown codec 'int6'\nhint: known: raw, zipnn, int4"):
        check(Recipe("int6"))


def test_fused_experts_are_not_packed_as_int4_which_vllm_could_not_take():
    name = "model.layers.0.mlp.experts.gate_up_proj"
    choice = choose(name, (4, 64, 64), "BF16", Recipe("int4", targets="linears"))
    assert choice.codec.name == "raw"
    assert "experts" in choice.why
    assert choose(name, (4, 64, 256), "BF16", Recipe("int5")).codec.name == "int5"


@pytest.mark.parametrize("group", [0, -32, 33])
def test_a_group_that_is_none_is_refused_and_not_taken_for_the_default(group):
    with pytest.raises(BlobError, match="group"):
        check(Recipe("int5", group))
