"""The measurement of inspecting: everything is compared, measured and recorded."""

import json
from pathlib import Path

import pytest

from scripts import measure_inspect, quiet
from scripts.measure_inspect import OURS, Case, Different
from scripts.quiet import Sample
from scripts.starts import NotMeasured

pytestmark = pytest.mark.torch

SHORT = ["--quick", "--rounds", "1"]


def test_every_format_is_measured_beside_its_peers_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure_inspect, "MEASUREMENTS", tmp_path)
    monkeypatch.setattr(measure_inspect, "REPOSITORY", tmp_path)
    assert measure_inspect.main([*SHORT, "--folder", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("inspect_*.json")
    said = capsys.readouterr()
    assert f"wrote {path.name}" in said.err
    assert "safe_open" in said.out
    record = json.loads(path.read_text())
    found = record["summary"]["inspect"]
    assert found["gguf"].keys() == {OURS, f"{OURS}, no numba", "gguf-py", "libgguf"}
    assert found["pth"]["torch.load, mmap"]["times_ours"] > 0
    for kind in measure_inspect.PARSERS:
        for megabytes in measure_inspect.MEGABYTES:
            assert found[f"{kind}, {megabytes} MB sparse"][OURS]["median_ms"] > 0
    assert record["summary"]["met"].keys() == measure_inspect.GOALS.keys()
    assert record["parameters"]["tokens"] == 2000


def test_figures_alone_can_be_had_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = list(measure_inspect.safetensors_cases(tmp_path / "a"))
    monkeypatch.setattr(measure_inspect, "cases_in", lambda *_: few)
    monkeypatch.setattr(measure_inspect, "GOALS", {})
    assert measure_inspect.main([*SHORT, "--json", "--no-record"]) == 0
    assert json.loads(capsys.readouterr().out)["inspect"].keys() == {"safetensors"}


def test_nothing_is_measured_where_a_peer_finds_something_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [Case("a", by, int, lambda _, by=by: {(by, ())}) for by in (OURS, "peer")]
    monkeypatch.setattr(measure_inspect, "cases_in", lambda *_: cases)
    assert measure_inspect.main(SHORT) == 1
    assert "a: peer found other tensors" in capsys.readouterr().err
    assert issubclass(Different, RuntimeError)


def test_a_sample_beside_others_work_is_kept_out_of_the_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case("a", OURS, int, lambda _: set(), repeats=2)
    monkeypatch.setattr(quiet, "sampled", lambda _: (Sample(0.004), [Sample(9.0, 0.5)]))
    assert list(quiet.attempts(case.work, case.repeats, busy=False)) == [
        (Sample(9.0, 0.5), False),
        (Sample(0.004), True),
    ]
    taken = {"subject": "a", "by": OURS, "milliseconds": 2.0, "kept": True}
    busy = {**taken, "milliseconds": 99.0, "kept": False}
    monkeypatch.setattr(measure_inspect, "GOALS", {})
    told = measure_inspect.summary([busy, taken])["inspect"]["a"][OURS]
    assert told == {"median_ms": 2.0, "min_ms": 2.0, "max_ms": 2.0}


def test_others_that_never_rest_end_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(_: object) -> None:
        raise NotMeasured("others never rest")

    case = Case("a", OURS, int, lambda _: set())
    monkeypatch.setattr(measure_inspect, "cases_in", lambda *_: [case])
    monkeypatch.setattr(quiet, "sampled", never)
    assert measure_inspect.main(["--rounds", "1"]) == 1
    assert "others never rest" in capsys.readouterr().err
