import json
from pathlib import Path

import numpy as np
import pytest

from blob.names import CODECS
from scripts import measure_codecs
from tests.blob.codecs import compressed

pytestmark = [pytest.mark.torch, pytest.mark.timeout(600)]


def test_every_codec_is_measured_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure_codecs, "MEASUREMENTS", tmp_path)
    monkeypatch.setattr(measure_codecs, "REPOSITORY", tmp_path)
    compressed.library()  # here, since what it imports warns
    assert measure_codecs.main(["--quick", "--rounds", "1"]) == 0
    (path,) = tmp_path.glob("codecs_*.json")
    record = json.loads(path.read_text())
    said = capsys.readouterr()
    assert f"wrote {path.name}" in said.err
    assert "int5" in said.out
    summary = record["summary"]
    assert summary["losses"].keys() == CODECS.keys()
    for name in CODECS:
        assert summary["rates"][f"decode {name}, preheat"]["1"]["median"] > 0
    for name in ("q8_0", "q4_k", "q5_k", "q6_k"):
        assert summary["rates"][f"encode {name}, preheat"]["over_peer"].keys() == {"1", "2"}
    for name in ("int4", "int5"):
        assert "over_peer" in summary["rates"][f"decode at once {name}, preheat"]
    assert {taken["threads"] for taken in record["samples"]} >= {1, 2}
    assert record["parameters"]["params"]["int5"] == {"group": 128}
    losses = summary["losses"]
    assert losses["zipnn"]["stored_tiny"] < 0.7
    assert losses["int5"]["error_tiny"] < losses["int4"]["error_tiny"]


def test_figures_alone_can_be_had_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--quick", "--rounds", "1", "--only", "raw", "--json", "--no-record"]
    assert measure_codecs.main(asked) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["rates"]["decode raw, preheat"]["2"]["median"] > 0


def test_a_sample_beside_others_work_is_kept_out_of_the_figures() -> None:
    quiet = {"case": "decode raw, preheat", "kept": True}
    samples = [
        quiet | {"threads": 1, "melem_per_second": 100.0},
        quiet | {"threads": 2, "melem_per_second": 190.0},
        quiet | {"threads": 2, "melem_per_second": 10.0, "kept": False},
    ]
    own = measure_codecs.rates(samples)["decode raw, preheat"]
    assert own["2"] == {"median": 190.0, "min": 190.0, "max": 190.0}
    assert own["two_over_one"] == 1.9


def test_others_that_never_rest_end_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure_codecs, "FOREIGN", -1)
    monkeypatch.setattr(measure_codecs, "DEADLINE_SECONDS", 0)
    assert measure_codecs.main(["--rows", "64", "--only", "raw", "--no-record"]) == 1
    assert "others burn" in capsys.readouterr().err


def test_other_bytes_are_not_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure_codecs, "ggml_encode", lambda kind, values, out: out.fill(7))
    assert measure_codecs.main(["--quick", "--only", "q8_0", "--no-record"]) == 1
    assert "blocks are not ggml's bytes" in capsys.readouterr().err


def test_parts_are_all_of_it() -> None:
    for count in (1, 2, 7):
        for of in (1, 2, 3):
            parts = [measure_codecs.some(count, part, of) for part in range(of)]
            assert np.concatenate([np.arange(count)[one] for one in parts]).tolist() == list(
                range(count)
            )
