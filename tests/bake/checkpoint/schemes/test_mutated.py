"""Sound layers with one thing changed: each is planned and filled, or refused; none crashes."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bake.errors import BakeError
from tests.bake.checkpoint.schemes.stored import DTYPES, Stored

COMPRESSED = {
    "quant_method": "compressed-tensors",
    "config_groups": {"a": {"weights": {"num_bits": 4, "group_size": 8, "type": "int"}}},
}


def words(*shape):
    return np.arange(np.prod(shape), dtype=np.int32).reshape(shape) * 0x01234567


def halves(*shape):
    return np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float16).reshape(shape)


def gptq():
    index = np.arange(64, dtype=np.int32) // 16
    parts = {"qweight": words(8, 32), "qzeros": words(4, 4), "scales": halves(4, 32)}
    return {**parts, "g_idx": index}, {"quant_method": "gptq", "bits": 4, "group_size": 16}


def awq():
    parts = {"qweight": words(64, 2), "qzeros": words(4, 2), "scales": halves(4, 16)}
    return parts, {"quant_method": "awq", "bits": 4, "group_size": 16}


def packed():
    parts = {
        "weight_packed": words(4, 2),
        "weight_scale": halves(4, 2),
        "weight_shape": np.array([4, 16]),
        "weight_zero_point": words(1, 2),
        "weight_g_idx": np.array([0, 1] * 8, np.int32),
    }
    return parts, COMPRESSED


def fp8():
    parts = {
        "weight": np.arange(64, dtype=np.uint8).reshape(8, 8),
        "weight_scale_inv": halves(2, 2),
    }
    return parts, {"quant_method": "fp8", "weight_block_size": [4, 4]}


def int8():
    parts = {
        "weight": np.arange(64, dtype=np.int8).reshape(4, 16),
        "weight_scale": halves(4, 2),
        "weight_zero_point": np.ones((4, 2), np.int8),
    }
    return parts, COMPRESSED


def nf4():
    from bake.checkpoint.schemes import bnb

    state = {"quant_type": "nf4", "blocksize": 64, "shape": [8, 33], "dtype": "bfloat16"}
    state |= {"nested_blocksize": 2, "nested_offset": 0.5}
    raw = np.frombuffer(json.dumps(state).encode(), np.uint8)
    parts = {
        "weight": np.arange(132, dtype=np.uint8)[:, None],
        "weight.absmax": np.arange(5, dtype=np.uint8),
        "weight.quant_map": bnb.TABLES["nf4"],
        "weight.nested_absmax": np.ones(3, np.float32),
        "weight.nested_quant_map": np.linspace(-1, 1, 256, dtype=np.float32),
        "weight.quant_state.bitsandbytes__nf4": raw,
    }
    return parts, {"quant_method": "bitsandbytes"}


LAYERS = [gptq, awq, packed, fp8, int8, nf4]


def stored(parts):
    floats = "weight_scale_inv" in parts and getattr(parts.get("weight"), "dtype", None) == np.uint8
    kinds = {"x.weight": "F8_E4M3"} if floats else {}
    return Stored({f"x.{name}": part for name, part in parts.items()}, kinds)


def attempt(checkpoint, said):
    """Plan and fill all; what comes out is a refusal or whole arrays."""
    try:
        planned = checkpoint.plan(said)
    except BakeError:
        return
    for output in planned:
        inputs = [checkpoint.arrays[name] for name in output.inputs]
        out = np.empty(output.shape, inputs[0].dtype if output.kept else np.uint16)
        try:
            output.fill(inputs, out, 2)
        except BakeError:
            continue


@pytest.mark.parametrize("made", LAYERS)
def test_sound_layers_are_filled(made):
    parts, said = made()
    (output,) = stored(parts).plan(said)
    assert output.name == "x.weight"
    assert set(output.inputs) == {f"x.{name}" for name in parts}
    stored(parts).check_threads(said, "x.weight")


@pytest.mark.parametrize("made", LAYERS)
def test_a_part_of_another_shape_is_refused_or_filled(made):
    for name in made()[0]:
        for changed in (
            lambda part: part[:0],
            lambda part: part[..., :-1],
            lambda part: part[:-1],
            lambda part: part.reshape(-1),
            lambda part: part.reshape(1, *part.shape),
            lambda part: np.concatenate([part, part]),
            lambda part: part.T,
            lambda part: part.reshape(-1)[0],
        ):
            parts, said = made()
            parts[name] = np.array(changed(parts[name]))
            attempt(stored(parts), said)


@pytest.mark.parametrize("made", LAYERS)
def test_a_part_of_another_type_is_refused_or_filled(made):
    for name in made()[0]:
        for kind in DTYPES:
            parts, said = made()
            with np.errstate(all="ignore"):
                parts[name] = parts[name].astype(kind)
            attempt(stored(parts), said)


@settings(max_examples=150)
@given(st.sampled_from(LAYERS), st.data())
def test_a_part_of_other_bytes_is_refused_or_filled(made, data):
    parts, said = made()
    name = data.draw(st.sampled_from(sorted(parts)))
    raw = bytearray(parts[name].tobytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    parts[name] = np.frombuffer(bytes(raw), parts[name].dtype).reshape(parts[name].shape)
    attempt(stored(parts), said)


@pytest.mark.parametrize("made", LAYERS)
def test_missing_parts_are_refused_by_name(made):
    optional = {"g_idx", "weight_zero_point", "weight_g_idx"}
    for name in set(made()[0]) - optional:
        parts, said = made()
        del parts[name]
        with pytest.raises(BakeError, match=r"x\."):
            stored(parts).plan(said)
