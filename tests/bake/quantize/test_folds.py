import numpy as np
import pytest

from bake.quantize.folds import Folds, divided_norm
from blob.codecs import bfloat16

RANDOM = np.random.default_rng(5)


def near(values):
    return bfloat16.to_float32(bfloat16.from_float32(np.asarray(values, np.float32)))


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_what_the_rounded_norm_divides_by_is_what_columns_are_multiplied_with(offset):
    weight = near(RANDOM.normal(0, 0.3, 4096))
    scales = np.exp(RANDOM.normal(0, 1, 4096)).astype(np.float32)
    bits, real = divided_norm(weight, offset, scales)
    now = offset + bfloat16.to_float32(bits).astype(np.float64)
    np.testing.assert_allclose(now * real, offset + weight.astype(np.float64), rtol=1e-6)
    # Near to what was asked for, but for quotients next to zero where an offset is added.
    assert np.median(np.abs(real / scales - 1)) < 0.004


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_norm_that_is_divided_by_one_keeps_its_bits(offset):
    weight = near(RANDOM.normal(0, 1e-3, 4096))
    bits, real = divided_norm(weight, offset, np.ones(4096, np.float32))
    np.testing.assert_array_equal(bits, bfloat16.from_float32(weight))
    np.testing.assert_array_equal(real, 1)


def test_what_cannot_be_divided_stays():
    weight = np.array([-1.0, 0.0], np.float32)
    bits, real = divided_norm(weight, 1.0, np.array([4.0, 1e6], np.float32))
    np.testing.assert_array_equal(bfloat16.to_float32(bits), weight)
    np.testing.assert_array_equal(real, 1)


def test_rows_are_divided_of_matrices_and_vectors():
    folds = Folds({"a": np.array([1, 2], np.float32)}, {"a": np.array([4, 8], np.float32)})
    folds.rows["b"] = np.array([4, 8], np.float32)
    np.testing.assert_array_equal(folds.of("a", np.ones((2, 2))), [[0.25, 0.5], [0.125, 0.25]])
    np.testing.assert_array_equal(folds.of("b", np.ones(2)), [0.25, 0.125])
    assert folds.touches("b")
    assert not folds.touches("c")
