"""A folder's weights are planned whole: what is quantized, what is plain, what is left out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bake.checkpoint import schemes
from bake.errors import BakeError, Malformed, Unsupported
from tests.bake.checkpoint.schemes.stored import DTYPES, Stored

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": True}


def mixed():
    """A quantized layer among plain ones."""
    return Stored(
        {
            "embed.weight": np.ones((5, 3), np.float16),
            "x.qweight": np.zeros((8, 32), np.int32),
            "x.qzeros": np.zeros((4, 4), np.int32),
            "x.scales": np.ones((4, 32), np.float16),
            "x.g_idx": np.arange(64, dtype=np.int32) // 16,
            "x.bias": np.ones(32, np.float16),
            "position_ids": np.arange(3),
            "lm_head.weight": np.full((5, 3), 0x3F80, np.uint16),
        }
    )


def test_what_is_not_quantized_is_plain_and_in_its_place():
    planned = mixed().plan(GPTQ)
    assert [each.name for each in planned] == [
        "embed.weight",
        "x.weight",
        "x.bias",
        "position_ids",
        "lm_head.weight",
    ]
    assert [each.kept for each in planned] == ["", "", "", "I64", ""]
    assert planned[1].shape == (32, 64)
    assert mixed().filled(GPTQ, "lm_head.weight").tolist() == [[1.0] * 3] * 5


def test_whole_numbers_are_kept_as_they_are():
    assert mixed().filled(GPTQ, "position_ids", np.int64).tolist() == [0, 1, 2]


def test_a_plain_folder_is_plain():
    stored = Stored({"a.weight": np.ones((2, 2), np.float16), "b": np.ones((), np.float32)})
    assert [each.name for each in stored.plan()] == ["a.weight", "b"]
    assert schemes.detect(stored.tensors, {}) == ""
    assert stored.filled(None, "b") == 1


@pytest.mark.parametrize("dtype", ["F4", "Q4_K", "C64", "F6_E2M3"])
def test_numbers_of_an_unknown_type_are_named(dtype):
    stored = Stored({"a.weight": np.ones((2, 2), np.uint8)}, {"a.weight": dtype})
    with pytest.raises(Unsupported, match=rf"a\.weight: .*{dtype}"):
        stored.plan()


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({**GPTQ, "bits": "4"}, "look at config.json"),
        ({**GPTQ, "group_size": 0}, "look at config.json"),
        ({"quant_method": "fp8", "weight_block_size": [1]}, "do not go together"),
        (None, "do not go together"),
    ],
)
def test_a_config_that_is_wrong_is_not_called_a_damaged_file(settings, hint):
    with pytest.raises(Malformed) as error:
        mixed().plan(settings)
    assert hint in error.value.hint


def test_a_weight_that_is_stored_twice_is_malformed():
    stored = mixed()
    stored.arrays["x.weight"] = np.ones((32, 64), np.float16)
    with pytest.raises(Malformed, match=r"x\.weight: is stored twice"):
        stored.plan(GPTQ)


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "bitsandbytes", "compressed-tensors"])
def test_whole_numbers_without_a_scale_are_no_weight(method):
    stored = Stored({"x.weight": np.ones((4, 4), np.int8)})
    said = {"quant_method": method, "bits": 4, "group_size": 16}
    with pytest.raises(Malformed, match=r"x\.weight: its scale is missing"):
        stored.plan(said)


@pytest.mark.parametrize("method", ["hqq", "quark", "mxfp4", "torchao", "aqlm", "x" * 500])
def test_another_method_is_named(method):
    with pytest.raises(Unsupported, match=method[:40]):
        mixed().plan({"quant_method": method})


@pytest.mark.parametrize("said", [3, "gptq", ["gptq"], True])
def test_a_config_that_is_no_mapping_is_malformed(said):
    with pytest.raises(Malformed, match="quantization_config"):
        mixed().plan(said)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (GPTQ, "gptq 4-bit, group 16, act-order"),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "gptq 8-bit"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "awq 4-bit, group 128"),
        ({"quant_method": "fp8", "weight_block_size": [128, 64]}, "fp8 block 128×64"),
        ({"quant_method": "fp8", "weight_block_size": 3}, "fp8"),
        ({"load_in_8bit": True}, "bitsandbytes int8"),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {"g": {"weights": {"num_bits": 4, "group_size": 128}}},
            },
            "compressed-tensors pack-quantized, 4-bit, group 128",
        ),
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": ["gptq"]}, ""),
        ({"quant_method": "gptq", "bits": {}}, "gptq dict-bit"),
        (7, ""),
    ],
)
def test_a_scheme_is_told_in_a_sentence(said, sentence):
    assert schemes.detect({}, {"quantization_config": said}) == sentence


def test_what_a_config_does_not_say_is_told_by_tensors():
    from tests.bake.checkpoint.schemes.test_mutated import fp8, nf4, stored

    assert schemes.detect(stored(nf4()[0]).tensors, {}) == "bitsandbytes nf4, double"
    assert schemes.detect(stored(fp8()[0]).tensors, {}) == "fp8"


def test_more_groups_than_any_recipe_has_are_refused():
    groups = {str(at): {"weights": {"num_bits": 4}} for at in range(33)}
    said = {"quant_method": "compressed-tensors", "config_groups": groups}
    stored = Stored({"x.weight_packed": np.zeros((4, 2), np.int32)})
    with pytest.raises(BakeError, match="weight_shape"):
        stored.plan({**said, "config_groups": {}})
    stored.arrays["x.weight_shape"] = np.array([4, 16])
    with pytest.raises(Unsupported, match="33"):
        stored.plan(said)
    assert "33" in schemes.detect({}, {"quantization_config": said})


def test_a_config_within_a_config_is_found():
    config = {"text_config": {"quantization_config": GPTQ}}
    assert schemes.detect({}, config) == "gptq 4-bit, group 16, act-order"


NAMES = st.sampled_from(
    [
        "x.weight",
        "x.qweight",
        "x.qzeros",
        "x.scales",
        "x.g_idx",
        "x.weight_packed",
        "x.weight_shape",
        "x.weight_scale",
        "x.weight_scale_inv",
        "x.weight_zero_point",
        "x.weight_g_idx",
        "x.weight.absmax",
        "x.weight.quant_map",
        "x.weight.nested_absmax",
        "x.weight.nested_quant_map",
        "x.weight.quant_state.bitsandbytes__nf4",
        "x.SCB",
        "x.weight_format",
        "x.k_scale",
    ]
)
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 8, 16, 32, 64]), max_size=3).map(tuple)
TENSORS = st.dictionaries(
    NAMES, st.tuples(st.sampled_from([*DTYPES, "F8_E4M3", "F8_E8M0"]), SHAPES), max_size=8
)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
METHODS = ["gptq", "awq", "fp8", "bitsandbytes", "compressed-tensors", "modelopt"]
SAID = st.fixed_dictionaries(
    {"quant_method": st.sampled_from(METHODS) | JUNK},
    optional={
        "bits": st.sampled_from([2, 3, 4, 8]) | JUNK,
        "group_size": st.sampled_from([-1, 8, 16]) | JUNK,
        "desc_act": st.booleans() | JUNK,
        "version": st.just("gemm") | JUNK,
        "checkpoint_format": st.sampled_from(["gptq", "gptq_v2"]) | JUNK,
        "format": st.sampled_from(["pack-quantized", "int-quantized"]) | JUNK,
        "weight_block_size": st.just([2, 2]) | JUNK,
        "sparsity_config": JUNK,
        "config_groups": st.fixed_dictionaries(
            {
                "a": st.fixed_dictionaries(
                    {
                        "weights": st.fixed_dictionaries(
                            {},
                            optional={
                                "num_bits": st.sampled_from([4, 5, 8]) | JUNK,
                                "group_size": st.sampled_from([8, 16]) | JUNK,
                                "type": st.just("int") | JUNK,
                                "block_structure": JUNK,
                                "symmetric": JUNK,
                            },
                        )
                        | JUNK
                    }
                )
            }
        )
        | JUNK,
    },
)


def array_of(kind, shape, seed):
    """Random bytes of a type."""
    width = {"F8_E4M3": np.uint8, "F8_E8M0": np.uint8}.get(kind, kind)
    count = int(np.prod(shape)) * np.dtype(width).itemsize
    raw = np.random.default_rng(seed).integers(0, 2, count, dtype=np.uint8)
    return raw.view(width).reshape(shape)


@settings(max_examples=300)
@given(TENSORS, SAID, st.integers(0, 9))
def test_whatever_is_stored_and_said_is_planned_or_refused(tensors, said, seed):
    arrays = {name: array_of(kind, shape, seed) for name, (kind, shape) in tensors.items()}
    dtypes = {name: kind for name, (kind, _) in tensors.items() if kind.startswith("F8")}
    stored = Stored(arrays, dtypes)
    config = {"quantization_config": said}
    assert isinstance(schemes.detect(stored.tensors, config), str)
    schemes.dropped(stored.tensors, config)
    try:
        planned = stored.plan(said)
    except BakeError:
        return
    for output in planned:
        # No output is larger than what its own stored bytes could be, of one bit each.
        stored_bytes = sum(arrays[name].nbytes for name in output.inputs)
        assert np.prod(output.shape) <= 8 * stored_bytes
        kind = arrays[output.inputs[0]].dtype if output.kept else np.float32
        out = np.empty(output.shape, kind)
        try:
            output.fill([arrays[name] for name in output.inputs], out, 2)
        except BakeError:
            continue
