import re

import pytest

from bake.errors import BakeError
from bake.quantize import settings
from bake.quantize.linears import Selection, Stored, select, siblings
from bake.quantize.recipe import Recipe, check

LAYER = "model.language_model.layers.7."


def model(**shapes: tuple[int, ...]) -> dict[str, Stored]:
    made = {
        f"{LAYER}mlp.gate_proj.weight": (256, 128),
        f"{LAYER}mlp.up_proj.weight": (256, 128),
        f"{LAYER}mlp.down_proj.weight": (128, 256),
        f"{LAYER}linear_attn.in_proj_qkv.weight": (256, 128),
        f"{LAYER}linear_attn.in_proj_z.weight": (128, 128),
        f"{LAYER}linear_attn.in_proj_b.weight": (32, 128),
        f"{LAYER}linear_attn.out_proj.weight": (128, 128),
        f"{LAYER}linear_attn.conv1d.weight": (256, 1, 4),
        f"{LAYER}linear_attn.A_log": (32,),
        f"{LAYER}input_layernorm.weight": (128,),
        "model.visual.blocks.0.mlp.linear_fc1.weight": (128, 128),
        "mtp.layers.0.mlp.gate_proj.weight": (256, 128),
        "model.language_model.embed_tokens.weight": (512, 128),
        **{f"{LAYER}{name.replace('__', '.')}.weight": shape for name, shape in shapes.items()},
    }
    return {name: Stored("BF16", shape) for name, shape in made.items()}


def chosen(selection: Selection) -> set[str]:
    return {name.removeprefix(LAYER).removesuffix(".weight") for name in selection.chosen}


def test_the_mlp_is_three_matrices_of_a_layer():
    found = select(model(), Recipe("rtn-w4a16"), tied=True)
    assert chosen(found) == {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    assert not found.head


def test_linears_are_all_but_decay_convolution_drafter_and_vision():
    found = select(model(), Recipe("rtn-w4a16", "linear"), tied=True)
    delta = {"linear_attn.in_proj_qkv", "linear_attn.in_proj_z", "linear_attn.out_proj"}
    assert chosen(found) == {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"} | delta
    assert not found.left


def test_what_vllm_fuses_stays_together():
    found = select(
        model(linear_attn__in_proj_z=(100, 128)), Recipe("rtn-w4a16", "linear"), tied=True
    )
    left = {name.removeprefix(LAYER) for name in found.left}
    assert left == {"linear_attn.in_proj_z.weight", "linear_attn.in_proj_qkv.weight"}
    assert set(siblings(f"{LAYER}mlp.up_proj.weight")) == {f"{LAYER}mlp.gate_proj.weight"}


def test_a_group_that_divides_nothing_is_refused():
    narrow = {"mlp__gate_proj": (64, 96), "mlp__up_proj": (64, 96), "mlp__down_proj": (96, 64)}
    with pytest.raises(BakeError, match=r"64 columns are no multiple of the group of 128"):
        select(model(**narrow), Recipe("rtn-w4a16", group_size=128), tied=True)


def test_half_of_an_mlp_is_refused():
    # As SmolLM2's: 576 columns, which are no multiple of 128, and 1536, which are.
    wide = {"mlp__gate_proj": (256, 160), "mlp__up_proj": (256, 160), "mlp__down_proj": (160, 256)}
    with pytest.raises(BakeError, match=r"gate_proj.weight: 160 columns are no multiple of .* 128"):
        select(model(**wide), Recipe("rtn-w4a16", group_size=128), tied=True)


def test_a_model_of_other_names_is_refused():
    with pytest.raises(BakeError, match=r"the model: it has no linear layer of a known name"):
        select({"wte.weight": Stored("BF16", (64, 64))}, Recipe("rtn-w4a16"), tied=True)


def test_a_tied_head_is_made_of_the_embedding():
    found = select(model(), Recipe("none", lm_head=True), tied=True)
    assert (found.head, found.chosen) == ("model.language_model.embed_tokens.weight", ())
    with pytest.raises(BakeError, match=r"lm_head.weight: not there"):
        select(model(), Recipe("none", lm_head=True), tied=False)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe("none"), "nothing to quantize"),
        (Recipe(group_size=48), "expected one of 32, 64, 128, got 48"),
        (Recipe("w2"), "scheme: expected one of awq"),
        (Recipe(samples=0), "samples: expected 1 or more, got 0"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(recipe, message):
    with pytest.raises(BakeError, match=re.escape(message)):
        check(recipe)


def test_targets_fit_the_names_of_checkpoint_and_engine_and_not_the_drafter():
    recipe = Recipe("rtn-w4a16", "linear", lm_head=True)
    made = settings.quantization(recipe, select(model(), recipe, tied=True))
    patterns = [one.removeprefix("re:") for one in made["config_groups"]["group_0"]["targets"]]
    ignored = [one.removeprefix("re:") for one in made["ignore"]]

    def packed(name: str) -> bool:
        hit = any(re.match(pattern, name) for pattern in patterns)
        return hit and not any(re.match(pattern, name) for pattern in ignored)

    assert packed("model.language_model.layers.7.mlp.up_proj")
    assert packed("language_model.model.layers.31.linear_attn.in_proj_qkv")
    assert packed("lm_head")
    assert packed("language_model.lm_head")
    assert not packed("mtp.layers.0.mlp.up_proj")
    assert not packed("model.layers.3.linear_attn.in_proj_b")
    assert not packed("model.visual.blocks.0.mlp.up_proj")


def test_a_matrix_that_stays_is_ignored_by_its_name():
    recipe = Recipe("rtn-w4a16", "linear")
    found = select(model(linear_attn__out_proj=(100, 128)), recipe, tied=True)
    made = settings.quantization(recipe, found)
    assert r"re:.*layers\.7\.linear_attn\.out_proj$" in made["ignore"]
    assert "lm_head" in made["ignore"]


def test_a_packed_head_is_no_longer_tied():
    recipe = Recipe("none", lm_head=True)
    was = {"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": True}}
    made = settings.config(was, recipe, select(model(), recipe, tied=True))
    assert made["tie_word_embeddings"] is False
    assert made["text_config"]["tie_word_embeddings"] is False
    assert was["tie_word_embeddings"] is True
