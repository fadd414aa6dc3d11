import json
from pathlib import Path

import pytest

from scripts import measure_verify
from serve import manifest


def test_a_root_is_made_measured_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure_verify, "MEASUREMENTS", tmp_path)
    monkeypatch.setattr(measure_verify, "REPOSITORY", tmp_path)
    asked = ["--gigabytes", "0.012", "--samples", "2", "--folder", str(tmp_path)]
    assert measure_verify.main(asked) == 0
    (path,) = tmp_path.glob("verify_*.json")
    record = json.loads(path.read_text())
    assert f"wrote {path.name}" in capsys.readouterr().out
    assert record["parameters"]["bytes"] == 12_000_000
    kinds = {"cold", "warm"}
    threads = {1, record["machine"]["cores"], manifest.hashers()}
    assert {(one["cache"], one["threads"]) for one in record["samples"]} == {
        (kind, number) for kind in kinds for number in threads
    }
    assert len(record["samples"]) == 2 * len(kinds) * len(threads)
    assert all(one["seconds"] > 0 for one in record["samples"])
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_the_files_are_of_every_size_and_of_all_the_bytes(tmp_path: Path) -> None:
    assert measure_verify.fill(tmp_path, 12_000_000) == 12_000_000
    sizes = {path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
    assert {32 * 1024, 4 * 1024**2} < sizes


def test_figures_are_of_the_samples_alone() -> None:
    assert measure_verify.figures([1.0, 3.0, 2.0], 2 * 10**9) == {
        "median_seconds": 2.0,
        "least_seconds": 1.0,
        "most_seconds": 3.0,
        "seconds_per_gb": 1.0,
    }
