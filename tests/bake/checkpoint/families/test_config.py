"""A config of a GGUF's metadata says what the model's own said; what is not known is named."""

import json
import random
from contextlib import suppress

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bake.checkpoint import families, gguf
from bake.checkpoint.families import rotary
from bake.checkpoint.source import Bytes
from bake.errors import Malformed, Unsupported

from .reading import FIXTURES, NAMES, config, read

# What matters to how a model computes, and to how it is served.
FIELDS = """
    architectures model_type vocab_size hidden_size intermediate_size num_hidden_layers
    num_attention_heads num_key_value_heads head_dim hidden_act hidden_activation
    max_position_embeddings rms_norm_eps rope_parameters tie_word_embeddings attention_bias mlp_bias
    bos_token_id eos_token_id pad_token_id dtype sliding_window layer_types query_pre_attn_scalar
    final_logit_softcapping attn_logit_softcapping use_bidirectional_attention use_sliding_window
    linear_conv_kernel_dim linear_key_head_dim linear_value_head_dim linear_num_key_heads
    linear_num_value_heads mtp_num_hidden_layers
"""
# Those of which the original has no word: the default, made explicit.
IMPLIED = {"qwen2": {"head_dim": 8}, "qwen3": {}, "qwen35": {"attn_output_gate": True}}


def planned(name, **told):
    """The config, with metadata changed: ``None`` takes a key away."""
    with read(name) as (contents, source):
        values = {**contents.metadata, **{key.replace("__", "."): one for key, one in told.items()}}
        kept = {key: one for key, one in values.items() if one is not None}
        made = families.plan(msgspec.structs.replace(contents, metadata=kept), source)
        return json.loads(made.files["config.json"])


@pytest.mark.parametrize("name", NAMES)
def test_every_field_that_matters_comes_back(name):
    wanted = config(name)
    # Sections say which of three positions a number turns by; text has one.
    wanted["rope_parameters"].pop("mrope_section", None)
    made = planned(name)
    # Layers that are all alike need no list.
    skipped = {"layer_types"} if "full_attention" in wanted.get("layer_types", [])[:1] else set()
    for field in set(FIELDS.split()) - skipped:
        implied = IMPLIED.get(name, {}).get(field)
        assert made.get(field) == wanted.get(field, implied), field


def test_transformers_version_is_said():
    assert planned("llama")["transformers_version"].startswith("5.")


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"general__architecture": "gpt-oss"}, "architecture 'gpt-oss' is not converted"),
        ({"general__architecture": "llama4"}, "known: llama, qwen2, qwen3, qwen35, gemma3"),
        ({"general__architecture": None}, "general.architecture is missing"),
        ({"split__count": 2}, "part of a split model"),
        ({"qwen3__expert_count": 128}, "mixture of 128 experts"),
        ({"qwen3__context_length": None}, "qwen3.context_length is missing"),
        ({"qwen3__attention__sinks": 4}, "not known here: qwen3.attention.sinks"),
        ({"qwen3__attention__value_length": 8}, "keys and values differ"),
        ({"qwen3__rope__dimension_count": 8}, "rotates 8 of 16"),
        ({"qwen3__rope__scaling__type": "longrope"}, "rope.scaling.type 'longrope'"),
        ({"qwen3__attention__head_count_kv": [2, 1]}, "differs from layer to layer"),
        ({"qwen3__attention__causal": False}, "model of embeddings"),
        ({"qwen3__pooling_type": 3}, "model of embeddings"),
    ],
)
def test_what_is_not_known_is_named(told, said):
    with pytest.raises(Unsupported) as caught:
        planned("qwen3", **told)
    assert said in f"{caught.value}"


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"qwen3__block_count": 2**31}, "no whole number"),
        ({"qwen3__block_count": 0}, "is 0"),
        ({"qwen3__block_count": 3}, "tensors are missing"),
        ({"qwen3__embedding_length": "24"}, "no whole number"),
        ({"qwen3__embedding_length": 32}, "embedding_length is 32"),
        ({"qwen3__attention__key_length": 7, "qwen3__attention__value_length": 7}, "cannot be"),
        ({"qwen3__rope__freq_base": float("nan")}, "no finite number"),
        ({"qwen3__rope__freq_base": float("-inf")}, "no finite number"),
        ({"qwen3__rope__freq_base": -(2**64)}, "freq_base is -1"),
        ({"qwen3__rope__freq_base": 2**2000}, "no finite number"),
        ({"qwen3__rope__freq_base": -1.0}, "freq_base is -1"),
        ({"qwen3__attention__head_count": True}, "no whole number"),
        ({"general__architecture": 7}, "no text"),
    ],
)
def test_what_cannot_be_is_refused(told, said):
    with pytest.raises(Malformed, match=said):
        planned("qwen3", **told)


def test_a_gguf_is_not_told_to_look_at_a_config_that_it_has_not():
    with pytest.raises(Malformed, match="value heads cannot share 5") as caught:
        planned("qwen35", qwen35__ssm__group_count=5)
    assert "config.json" not in f"{caught.value}"


def test_linear_scaling():
    told = {"qwen3__rope__scaling__type": "linear", "qwen3__rope__scaling__factor": 8.0}
    rope = planned("qwen3", **told)["rope_parameters"]
    assert (rope["rope_type"], rope["factor"]) == ("linear", 8.0)


def test_scaling_without_a_kind_is_linear():
    assert planned("qwen3", qwen3__rope__scale_linear=4.0)["rope_parameters"]["factor"] == 4.0


def test_yarn():
    told = {
        "qwen3__rope__scaling__type": "yarn",
        "qwen3__rope__scaling__factor": 4.0,
        "qwen3__rope__scaling__original_context_length": 32768,
    }
    rope = planned("qwen3", **told)["rope_parameters"]
    assert rope["rope_type"] == "yarn"
    assert rope["original_max_position_embeddings"] == 32768
    with pytest.raises(Unsupported, match="yarn_log_multiplier"):
        planned("qwen3", **told, qwen3__rope__scaling__yarn_log_multiplier=0.1)


def test_the_largest_gemma_scales_by_another_length():
    assert (
        families.gemma3._scale(
            {
                "num_hidden_layers": 62,
                "hidden_size": 5376,
                "num_attention_heads": 32,
                "head_dim": 128,
            }
        )
        == 168
    )


def test_windows_by_a_list_and_by_a_period():
    listed = [True, False] * 3 + [True]
    kinds = planned("gemma3", gemma3__attention__sliding_window_pattern=listed)["layer_types"]
    assert [one == "sliding_attention" for one in kinds] == listed
    kinds = planned("gemma3", gemma3__attention__sliding_window_pattern=2)["layer_types"]
    assert kinds[:4] == ["sliding_attention", "full_attention"] * 2
    with pytest.raises(Malformed, match="no list of 7 truths"):
        planned("gemma3", gemma3__attention__sliding_window_pattern=[True])


def test_gated_nets_by_a_list():
    listed = [True, False, True, True, False]
    with pytest.raises(Malformed, match="tensors are missing"):
        planned("qwen35", qwen35__attention__recurrent_layers=listed)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_is_known_by_its_divisors(factor):
    divisors = rotary.llama3(64, 500000.0, factor, *rotary.LLAMA3).astype(np.float32)
    told = rotary.of_divisors("x", divisors, 500000.0, 64)
    assert (told["rope_type"], told["factor"]) == ("llama3", factor)


def test_other_divisors_are_refused():
    divisors = rotary.llama3(64, 500000.0, 8.0, 1.0, 4.0, 4096).astype(np.float32)
    with pytest.raises(Unsupported, match="not Llama 3's scaling by 8"):
        rotary.of_divisors("x", divisors, 500000.0, 64)
    assert rotary.of_divisors("x", np.ones(32), 1e4, 64)["rope_type"] == "default"


@pytest.mark.parametrize("wrong", [np.ones(0), np.ones(8), np.zeros(32), np.full(32, np.nan)])
def test_divisors_that_cannot_be(wrong):
    with pytest.raises(Malformed, match="no list of 32 divisors"):
        rotary.of_divisors("x", wrong, 500000.0, 64)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-9, 9), max_size=4),
)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_metadata_is_converted_or_refused(name, data):
    with read(name) as (contents, source):
        keys = sorted(contents.metadata)
        told = data.draw(st.dictionaries(st.sampled_from(keys), ODD, min_size=1, max_size=3))
        values = {**contents.metadata, **told}
        kept = {key: one for key, one in values.items() if one is not None}
        with suppress(Malformed, Unsupported):
            families.plan(msgspec.structs.replace(contents, metadata=kept), source)


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_bit_is_converted_or_refused(name):
    """Anywhere in the header: lists of tokens and merges are in it too."""
    rng = random.Random(20261121)
    raw = bytearray((FIXTURES / f"{name}.gguf").read_bytes())
    with read(name) as (contents, _):
        most = contents.header_bytes
    for _ in range(150):
        at, bit = rng.randrange(most), 1 << rng.randrange(8)
        raw[at] ^= bit
        source = Bytes(bytes(raw), "flipped")
        with suppress(Malformed, Unsupported):
            families.plan(gguf.parse(source), source)
        raw[at] ^= bit
