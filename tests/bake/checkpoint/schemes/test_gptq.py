"""GPTQ is read as AutoGPTQ reads it: its own weights are in the fixtures."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from bake.errors import Malformed, Unsupported
from tests.bake.checkpoint.schemes.stored import Stored, same

FIXTURES = Path(__file__).parent / "fixtures"
BITS = [2, 3, 4, 8]


def settings(bits, **more):
    return {"quant_method": "gptq", "bits": bits, "group_size": 16, **more}


def layer(bits, name):
    """A stored layer, and the weights that AutoGPTQ 0.7.1 makes of it."""
    found = load_file(FIXTURES / f"gptq_{bits}.safetensors")
    own = {key.removeprefix(f"{name}."): part for key, part in found.items() if name in key}
    expected = own.pop("expected")
    return Stored({f"x.{key}": part for key, part in own.items()}), expected


@pytest.mark.parametrize("name", ["packed", "raw", "ordered"])
@pytest.mark.parametrize("bits", BITS)
def test_weights_are_the_librarys(bits, name):
    stored, expected = layer(bits, name)
    said = settings(bits, desc_act=name == "ordered")
    same(stored.check_threads(said, "x.weight"), expected)


@pytest.mark.parametrize("bits", BITS)
def test_layers_without_an_index_are_in_order(bits):
    stored, expected = layer(bits, "packed")
    del stored.arrays["x.g_idx"]
    same(stored.check_threads(settings(bits), "x.weight"), expected)


@pytest.mark.parametrize("bits", BITS)
def test_the_second_format_stores_zero_points_as_they_are(bits):
    stored, expected = layer(bits, "packed")
    # A row of words is one long number here: one more of each of its parts, none of which is full.
    ones = sum(1 << bits * at for at in range(32))
    rows = [int.from_bytes(row.tobytes(), "little") for row in stored.arrays["x.qzeros"]]
    more = b"".join((row + ones).to_bytes(4 * bits, "little") for row in rows)
    stored.arrays["x.qzeros"] = np.frombuffer(more, np.int32).reshape(len(rows), -1)
    same(stored.check_threads(settings(bits, checkpoint_format="gptq_v2"), "x.weight"), expected)


@pytest.mark.parametrize("bits", BITS)
def test_scales_in_sixteen_bits_give_the_exact_product(bits):
    stored, _ = layer(bits, "ordered")
    short = stored.arrays["x.scales"].astype(np.float16)
    stored.arrays["x.scales"] = short
    halves = stored.check_threads(settings(bits), "x.weight")
    stored.arrays["x.scales"] = short.astype(np.float32)
    same(halves, stored.filled(settings(bits), "x.weight"))
    exact = stored.filled(settings(bits), "x.weight").astype(np.float64)
    scales = short.astype(np.float64).T[:, stored.arrays["x.g_idx"]]
    whole = np.round(exact / scales)
    np.testing.assert_array_equal(whole * scales, exact)


def test_large_layers_span_pieces():
    """Each column of words is turned by itself: what one piece gives, many give."""
    rng = np.random.default_rng(0)
    cols, rows = 4096, 456
    arrays = {
        "x.qweight": rng.integers(-(2**31), 2**31, (cols // 8, rows)).astype(np.int32),
        "x.qzeros": rng.integers(-(2**31), 2**31, (cols // 128, rows // 8)).astype(np.int32),
        "x.scales": rng.standard_normal((cols // 128, rows)).astype(np.float16),
        "x.g_idx": rng.permutation(np.arange(cols) // 128).astype(np.int32),
    }
    said = settings(4) | {"group_size": 128}
    got = Stored(arrays).check_threads(said, "x.weight")
    shifts = np.arange(0, 32, 4)
    codes = (arrays["x.qweight"][:, None, :] >> shifts[:, None] & 15).reshape(cols, rows)
    zeros = (arrays["x.qzeros"][:, :, None] >> shifts & 15).reshape(-1, rows) + 1 & 15
    index = arrays["x.g_idx"]
    scales = arrays["x.scales"].astype(np.float32)
    same(got, np.ascontiguousarray(((codes - zeros[index]).astype(np.float32) * scales[index]).T))


def made(**changes):
    """32 outputs of 64 inputs in groups of 16; ``None`` leaves a part out."""
    arrays = {
        "qweight": np.zeros((8, 32), np.int32),
        "qzeros": np.zeros((4, 4), np.int32),
        "scales": np.ones((4, 32), np.float16),
        "g_idx": np.arange(64, dtype=np.int32) // 16,
        **changes,
    }
    return Stored({f"x.{key}": part for key, part in arrays.items() if part is not None})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scales": None}, r"x\.scales: is missing"),
        ({"qzeros": None}, r"x\.qzeros: is missing"),
        ({"g_idx": None}, r"x\.g_idx: is missing"),
        ({"qweight": None}, r"x\.qzeros: is a part"),
        ({"qzeros": np.zeros((4, 5), np.int32)}, r"expected shape \[4, 4\], got \[4, 5\]"),
        ({"qzeros": np.zeros((4, 4, 1), np.int32)}, r"x\.qzeros"),
        ({"scales": np.ones((4, 31), np.float16)}, r"x\.scales"),
        ({"scales": np.ones(128, np.float16)}, r"x\.scales: expected a matrix"),
        ({"scales": np.ones((65, 32), np.float16)}, r"x\.scales"),
        ({"scales": np.ones((0, 32), np.float16)}, r"x\.scales: expected a matrix"),
        ({"g_idx": np.zeros(63, np.int32)}, r"expected shape \[64\], got \[63\]"),
        ({"qweight": np.zeros((8, 33), np.int32)}, r"x\.qweight"),
        ({"qweight": np.zeros((8,), np.int32)}, r"x\.qweight: expected a matrix"),
        ({"qweight": np.zeros((0, 32), np.int32)}, r"x\.qweight: expected a matrix"),
    ],
)
def test_parts_that_disagree_are_malformed(changes, said):
    with pytest.raises(Malformed, match=said):
        made(**changes).plan(settings(4, desc_act=True))


@pytest.mark.parametrize("index", [4, -1, 2**31 - 1, -(2**31)])
def test_a_group_that_is_none_is_malformed_when_it_is_seen(index):
    stored = made(g_idx=np.array([0] * 63 + [index], np.int32))
    with pytest.raises(Malformed, match=r"x\.g_idx: groups are 0 to 3"):
        stored.filled(settings(4), "x.weight")


def test_other_numbers_of_bits_do_not_fit():
    with pytest.raises(Malformed, match=r"x\.g_idx"):
        made().plan(settings(8))
    with pytest.raises(Malformed, match=r"x\.qweight"):
        made().plan(settings(3))


@pytest.mark.parametrize(
    ("said", "error", "match"),
    [
        (settings(5), Unsupported, "5 bits"),
        (settings(None), Malformed, "bits"),
        (settings("4"), Malformed, "bits"),
        (settings(True), Malformed, "bits"),
        (settings(-(2**70)), Malformed, "bits"),
        (settings(4) | {"group_size": 0}, Malformed, "group_size"),
        (settings(4) | {"group_size": [16]}, Malformed, "group_size"),
        (settings(4, checkpoint_format="marlin"), Unsupported, "marlin"),
        (settings(4, checkpoint_format=["gptq"]), Unsupported, "list"),
        (settings(4, is_marlin_format=True), Unsupported, "checkpoint_format"),
        (settings(4, dynamic={"+:x": {"bits": 8}}), Unsupported, "dynamic"),
        (settings(4) | {"quant_method": "eetq"}, Unsupported, "eetq"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(said, error, match):
    stored = made()
    with pytest.raises(error, match=match):
        stored.plan(said)


def test_layers_stored_the_other_way_round_are_refused():
    with pytest.raises(Unsupported, match="Conv1D"):
        made().plan(settings(4), model_type="gpt2")


def test_without_a_config_parts_are_refused_by_name():
    with pytest.raises(Malformed, match=r"x\.\w+: .*no quantization_config"):
        made().plan()


def test_a_filled_array_is_the_planned_one():
    stored = made()
    (output,) = stored.plan(settings(4))
    inputs = [stored.arrays[name] for name in output.inputs]
    with pytest.raises(ValueError, match="shape"):
        output.fill(inputs, np.zeros((64, 32), np.float32), 1)
    with pytest.raises(ValueError, match="planned"):
        output.fill([inputs[0][:7], *inputs[1:]], np.zeros((32, 64), np.float32), 1)
