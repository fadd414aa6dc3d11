"""The measurement of what a fleet fetches adds up, and keeps what it saw."""

import json

from scripts import measure_fleet


def test_what_is_fetched_is_what_was_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure_fleet, "MEASUREMENTS", tmp_path)
    assert measure_fleet.main(["--codecs", "int5,q8_0,int5"]) == 1
    assert "not measured" in capsys.readouterr().err
    assert measure_fleet.main(["--codecs", "int5,q8_0"]) == 0
    assert "together" in capsys.readouterr().out
    (path,) = tmp_path.glob("fleet_*.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    first, second = record["samples"]
    assert first["fetched_bytes"] == first["size"] == first["pushed_bytes"]
    # The head and all that no codec touches.
    assert 0 < second["fetched_bytes"] < second["size"] / 2
    told = record["summary"]
    assert told["bytes_apart"] == first["size"] + second["size"]
    assert told["bytes_fetched"] == first["fetched_bytes"] + second["fetched_bytes"]
    share = second["fetched_bytes"] / second["size"]
    assert abs(told["saved_of_later_ones"] - (1 - share)) < 1e-4


def test_a_model_that_is_not_there_is_told(capsys):
    assert measure_fleet.main(["--model", "nobody"]) == 1
    assert "nobody" in capsys.readouterr().err
