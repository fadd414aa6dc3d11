"""AutoAWQ's layers are read as it reads them: its own weights are in the fixture."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from bake.errors import Malformed, Unsupported
from tests.bake.checkpoint.schemes.stored import Stored, same

FIXTURE = Path(__file__).parent / "fixtures" / "awq.safetensors"


def settings(group=16, **more):
    said = {"bits": 4, "group_size": group, "version": "gemm", "zero_point": True}
    return {"quant_method": "awq", **said, **more}


def layer(name):
    """A stored layer, and the weights that AutoAWQ 0.2.9 makes of it, [in, out]."""
    found = load_file(FIXTURE)
    own = {key.removeprefix(f"{name}."): part for key, part in found.items() if name in key}
    expected = own.pop("expected")
    return Stored({f"x.{key}": part for key, part in own.items()}), expected


def test_weights_are_the_librarys():
    stored, expected = layer("f32")
    same(stored.check_threads(settings(), "x.weight"), np.ascontiguousarray(expected.T))


def test_the_librarys_product_in_sixteen_bits_is_ours_rounded():
    stored, expected = layer("f16")
    got = stored.check_threads(settings(32), "x.weight")
    assert expected.dtype == np.float16
    np.testing.assert_array_equal(got.astype(np.float16), expected.T)


def test_names_of_the_librarys_own_config_are_known_too():
    stored, expected = layer("f32")
    said = {"quant_method": "awq", "w_bit": 4, "q_group_size": 16, "version": "GEMM"}
    same(stored.filled(said, "x.weight"), np.ascontiguousarray(expected.T))


def test_large_layers_span_pieces():
    rng = np.random.default_rng(0)
    cols, rows = 4096, 456
    words = rng.integers(-(2**31), 2**31, (cols, rows // 8)).astype(np.int32)
    zeros = rng.integers(-(2**31), 2**31, (cols // 128, rows // 8)).astype(np.int32)
    scales = rng.standard_normal((cols // 128, rows)).astype(np.float16)
    stored = Stored({"x.qweight": words, "x.qzeros": zeros, "x.scales": scales})
    got = stored.check_threads(settings(128), "x.weight")
    # The order as AutoAWQ undoes it: which four bits each output has.
    shifts = 4 * np.array([0, 4, 1, 5, 2, 6, 3, 7])
    codes = (words[:, :, None] >> shifts & 15).reshape(cols, rows)
    points = (zeros[:, :, None] >> shifts & 15).reshape(-1, rows).repeat(128, axis=0)
    factors = scales.astype(np.float32).repeat(128, axis=0)
    same(got, np.ascontiguousarray(((codes - points).astype(np.float32) * factors).T))


def made(**changes):
    """16 outputs of 64 inputs in groups of 16; ``None`` leaves a part out."""
    arrays = {
        "qweight": np.zeros((64, 2), np.int32),
        "qzeros": np.zeros((4, 2), np.int32),
        "scales": np.ones((4, 16), np.float16),
        **changes,
    }
    return Stored({f"x.{key}": part for key, part in arrays.items() if part is not None})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scales": None}, r"x\.scales: is missing"),
        ({"qzeros": None}, r"x\.qzeros: is missing"),
        ({"qweight": None}, r"x\.qzeros: is a part"),
        ({"qzeros": np.zeros((4, 3), np.int32)}, r"expected shape \[4, 2\], got \[4, 3\]"),
        ({"scales": np.ones((5, 16), np.float16)}, r"expected shape \[4, 16\], got \[5, 16\]"),
        ({"qweight": np.zeros((63, 2), np.int32)}, "63 inputs are not groups of 16"),
        ({"qweight": np.zeros((64, 0), np.int32)}, "expected a matrix"),
        ({"qweight": np.zeros((64, 2, 1), np.int32)}, "expected a matrix"),
    ],
)
def test_parts_that_disagree_are_malformed(changes, said):
    with pytest.raises(Malformed, match=said):
        made(**changes).plan(settings())


@pytest.mark.parametrize(
    ("said", "error", "match"),
    [
        (settings(bits=8), Unsupported, "8 bits"),
        (settings(bits="4"), Malformed, "bits"),
        (settings(group=None), Malformed, "group_size"),
        (settings(group=0), Malformed, "group_size"),
        (settings(version="gemv"), Unsupported, "gemv"),
        (settings(version="gemv_fast"), Unsupported, "gemv_fast"),
        (settings(version=4), Unsupported, "4"),
        (settings(backend="llm-awq"), Unsupported, "llm-awq"),
        (settings(zero_point=False), Unsupported, "zero points"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(said, error, match):
    with pytest.raises(error, match=match):
        made().plan(said)
