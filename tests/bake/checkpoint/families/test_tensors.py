"""What llama.cpp's converter did to a model is undone, to the last bit."""

import msgspec
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from bake.checkpoint import families
from bake.checkpoint.contents import Tensor
from bake.checkpoint.families import FAMILIES, changes
from bake.errors import Malformed, Unsupported

from .reading import NAMES, config, filled, float32, original, read


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_comes_back(name):
    with read(name) as file:
        made = filled(*file)
    wanted = original(name)
    assert set(made) == set(wanted)
    for key, bits in wanted.items():
        np.testing.assert_array_equal(made[key], bits, key)


@pytest.mark.parametrize("name", NAMES)
def test_float32_comes_back_too(name):
    with read(name) as file:
        made = filled(*file, np.float32, threads=2)
    for key, bits in original(name).items():
        if key.endswith("A_log"):
            # The GGUF has −exp(A_log), rounded: its logarithm is off by half a last place of it.
            np.testing.assert_allclose(made[key], float32(bits), rtol=0, atol=2**-24)
        else:
            np.testing.assert_array_equal(made[key], float32(bits), key)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_the_family_has_these_names_and_shapes(name):
    wanted = {key: bits.shape for key, bits in original(name).items()}
    assert families.expected(config(name)) == wanted


def test_the_weights_in_this_repository_have_these_names_and_shapes():
    import json

    from bake.checkpoint import safetensors
    from bake.checkpoint.source import mapped
    from serve.settings import REPOSITORY

    tiny = REPOSITORY / "weights" / "tiny"
    with mapped(tiny / "model.safetensors") as source:
        shapes = {one.name: one.shape for one in safetensors.parse(source).tensors}
    assert families.expected(json.loads((tiny / "config.json").read_text())) == shapes


def test_a_text_part_may_have_a_prefix():
    told = {"model_type": "qwen3_5", "text_config": config("qwen35")}
    names = families.expected(told)
    assert "model.language_model.layers.0.linear_attn.A_log" in names
    assert "mtp.fc.weight" in names
    assert families.expected({**told, "vision_config": {}}) is None


@pytest.mark.parametrize("told", [{}, {"model_type": "gpt_oss"}, {"model_type": ["llama"]}])
def test_other_families_are_not_known(told):
    assert families.expected(told) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_hidden_layers": 2**40},
        {"num_hidden_layers": "2"},
        {"hidden_size": None},
        {"hidden_size": -1},
        {"num_attention_heads": 0},
        {"vocab_size": True},
    ],
)
def test_numbers_of_a_config_are_looked_at(wrong):
    with pytest.raises(Malformed, match=next(iter(wrong))):
        families.expected({**config("llama"), **wrong})


def test_every_family_has_a_fixture():
    assert {one.architecture for one in FAMILIES} == set(families.known())
    assert {config(name)["model_type"] for name in NAMES} <= {
        kind for one in FAMILIES for kind in one.kinds
    }


@pytest.mark.parametrize("dtype", ["Q8_0", "Q4_0"])
def test_rows_in_blocks_are_put_in_order_before_they_are_numbers(dtype):
    """As dequantizing all and permuting then would, by gguf-py."""
    rng = np.random.default_rng(1)
    numbers = rng.standard_normal((32, 64)).astype(np.float32)
    kind = GGMLQuantizationType[dtype]
    blocks = quants.quantize(numbers, kind)
    plain = quants.dequantize(blocks, kind)
    dims = {"heads": 4, "width": 8}
    wanted = plain.reshape(4, 4, 2, 64).swapaxes(1, 2).reshape(32, 64)
    out = np.empty((32, 64), np.float32)
    changes.Filling(dtype, changes.HALVES_OF_QUERIES, dims)([blocks], out, 1)
    np.testing.assert_array_equal(out, wanted)


def test_columns_in_blocks_are_put_in_order_as_numbers():
    rng = np.random.default_rng(2)
    blocks = quants.quantize(
        rng.standard_normal((3, 96)).astype(np.float32), GGMLQuantizationType.Q8_0
    )
    plain = quants.dequantize(blocks, GGMLQuantizationType.Q8_0)
    # Three key heads with two value heads each, of 16 numbers: as llama.cpp's reader has them.
    wanted = plain.reshape(3, 2, 3, 16).swapaxes(1, 2).reshape(3, 96)
    dims = {"key_heads": 3, "value_heads": 6, "value_width": 16}
    change = changes.Change(columns=changes.grouped("value_width"))
    out = np.empty((3, 96), np.float32)
    changes.Filling("Q8_0", change, dims)([blocks], out, 2)
    np.testing.assert_array_equal(out, wanted)


def without(contents, name):
    kept = tuple(one for one in contents.tensors if one.name != name)
    return msgspec.structs.replace(contents, tensors=kept)


def changed(contents, name, **told):
    tensors = tuple(
        msgspec.structs.replace(one, **told) if one.name == name else one
        for one in contents.tensors
    )
    return msgspec.structs.replace(contents, tensors=tensors)


def test_missing_tensors_are_named():
    with read("qwen3") as (contents, source):
        fewer = without(contents, "blk.1.attn_k_norm.weight")
        with pytest.raises(Malformed, match=r"missing: blk\.1\.attn_k_norm\.weight"):
            families.plan(fewer, source)


def test_a_missing_embedding_is_named():
    said = pytest.raises(Malformed, match=r"no tensor token_embd\.weight")
    with read("qwen3") as (contents, source), said:
        families.plan(without(contents, "token_embd.weight"), source)


def test_unknown_tensors_are_named():
    extra = Tensor("blk.0.attn_sinks.weight", "F32", (4,), 0, 16)
    with read("qwen3") as (contents, source):
        more = msgspec.structs.replace(contents, tensors=(*contents.tensors, extra))
        with pytest.raises(Unsupported, match=r"not known here: blk\.0\.attn_sinks"):
            families.plan(more, source)


@pytest.mark.parametrize(
    ("told", "error", "said"),
    [
        ({"shape": (9, 9)}, Malformed, r"attn_k\.weight is \(9, 9\), the metadata says"),
        ({"dtype": "Q8_K"}, Unsupported, "Q8_K, which is not converted"),
        ({"dtype": "I32"}, Unsupported, "I32, which is not converted"),
        ({"dtype": "Q4_K", "big_endian": True}, Unsupported, "Q4_K, which is not converted"),
    ],
)
def test_tensors_of_other_shapes_and_types_are_refused(told, error, said):
    with read("qwen3") as (contents, source), pytest.raises(error, match=said):
        families.plan(changed(contents, "blk.0.attn_k.weight", **told), source)


def test_a_permuted_vector_in_blocks_is_refused():
    with read("llama") as (contents, source):
        odd = changed(contents, "blk.0.attn_q.bias", dtype="Q8_0")
        with pytest.raises(Unsupported, match="a vector in blocks"):
            families.plan(odd, source)
