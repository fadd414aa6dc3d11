"""Dequantization is measured beside its peers, once all bytes are the same."""

import json
from pathlib import Path

import numpy as np
import pytest

from scripts import measure_dequant as script
from scripts import quiet


def test_types_are_measured_beside_their_peers_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "MEASUREMENTS", tmp_path)
    monkeypatch.setattr(script, "REPOSITORY", tmp_path)
    asked = ["--quick", "--rounds", "2", "--only", "Q4_K", "--only", "Q1_0"]
    assert script.main(asked) == 0
    (path,) = tmp_path.glob("dequant_*.json")
    record, said = json.loads(path.read_text()), capsys.readouterr()
    assert f"wrote {path.name}" in said.err
    assert "Q4_K: " in said.out
    rates, ratios = record["summary"]["rates"], record["summary"]["ratios"]
    assert rates.keys() == {"Q4_K", "Q1_0"}
    assert rates["Q4_K"]["gguf-py"]["median"] > 0
    assert "gguf-py" not in rates["Q1_0"]  # it does not read that
    assert ratios["Q4_K"]["over_gguf_f32_1"] > 0
    assert ratios["Q4_K"]["bf16_of_fill_2"] > 0
    assert "over_gguf_f32_1" not in ratios["Q1_0"]
    taken = [one for one in record["samples"] if (one["type"], one["case"]) == ("Q4_K", "bf16 2")]
    assert len(taken) == 2


def test_figures_alone_can_be_had_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--quick", "--rounds", "1", "--only", "Q8_0", "--json", "--no-record"]
    assert script.main(asked) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["rates"]["Q8_0"]["f32 2"]["median"] > 0


def test_nothing_is_measured_of_other_bytes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(name, blocks, out):
        out[:] = 1.5

    monkeypatch.setattr(script, "by_c", wrong)
    assert script.main(["--quick", "--only", "Q8_0", "--no-record"]) == 1
    assert "Q8_0, ggml's C: other bytes" in capsys.readouterr().err


def test_a_sample_beside_others_work_is_kept_out_of_the_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loud, still = quiet.Sample(1.0, 0.5), quiet.Sample(2.0, 0.0)
    monkeypatch.setattr(quiet, "sampled", lambda work: (still, [loud]))
    case, samples = script.Case("f32 1", lambda: None), []
    parsed = script.parser().parse_args(["--rounds", "1"])
    script.taken("Q8_0", [case], parsed, samples)
    assert case.rates == [script.ROWS * script.COLUMNS * case.repeats / 2e6]
    assert [one["kept"] for one in samples] == [False, True]


def test_two_threads_must_make_the_bytes_of_one() -> None:
    ours = np.ones((2, 32), np.float32)
    script.same("x", ours, ours.copy())
    with pytest.raises(script.Different, match="x: other bytes"):
        script.same("x", ours, -ours)
