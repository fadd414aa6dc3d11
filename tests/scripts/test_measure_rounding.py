"""What rounding costs is measured on the weights that a blob gives back."""

import math
from pathlib import Path

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]


def test_lossless_weights_read_as_the_original_and_rough_ones_worse(tmp_path: Path) -> None:
    from blob.recipe import Recipe
    from scripts import measure_rounding as script

    text = "The capital of France is Paris."
    plain = script.sample(Recipe("raw"), [text])
    rough = script.sample(Recipe("int4", 128), [text])
    assert script.against(plain, plain)["change"] == 0
    assert plain["relative_rms_error"] == 0
    assert 0.05 < rough["relative_rms_error"] < 0.2
    # A hundredth for the eight bytes that say each shape.
    assert rough["bits_per_weight"] == pytest.approx(4.125, abs=0.01)
    assert script.against(rough, plain)["perplexity"] == pytest.approx(
        math.exp(rough["nll"] / rough["tokens"]), abs=1e-3
    )
