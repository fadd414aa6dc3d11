"""What a conversion costs can be measured: with a model small enough for a test."""

import json

import pytest

from scripts import measure_conversion_cost as measure
from scripts.starts import NotMeasured


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(measure, "HIDDEN", 256)
    monkeypatch.setattr(measure, "INNER", 512)
    monkeypatch.setattr(measure, "HEADS", 4)
    monkeypatch.setattr(measure, "TOKENS", 300)
    # A busy machine is not what is tested.
    monkeypatch.setattr(measure, "OTHERS", 1.0)


def test_each_way_is_sampled_and_compared(small, tmp_path, capsys):
    asked = ["--layers", "1", "--rounds", "1", "--no-record", "--json", "--folder", str(tmp_path)]
    assert measure.main(asked) == 0
    out = capsys.readouterr().out
    told = json.loads(out[out.index("{\n") :])
    assert {"preheat", "gguf-py", "write only"} <= told.keys()
    assert told["preheat"]["peak_bytes"] > 2**20
    assert told["budget_bytes"] == 3 * 2 * 512 * 256 + measure.BUDGET
    assert not list(tmp_path.iterdir())


def test_a_way_that_fails_is_told(small, tmp_path):
    with pytest.raises(NotMeasured, match="failed"):
        measure.sampled("x", lambda _out: [measure.sys.executable, "-c", "1/0"], tmp_path / "out")
