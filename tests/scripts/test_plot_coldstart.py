from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="only `make eval-coldstart` installs it")

from scripts import plot_coldstart
from scripts.measure_coldstart import BAKED
from tests.scripts.test_measure_coldstart import MEASUREMENTS, samples

RECORD = max(MEASUREMENTS.glob("coldstart_*.json"))


def test_what_no_phase_claims_went_into_the_first_token() -> None:
    assert plot_coldstart.phases(samples(1.0, 2.0, 6.0), BAKED) == {
        "imports": 1.0,
        "first token": 1.0,
    }


def test_the_same_record_gives_the_same_bytes_as_lie_in_the_repository(tmp_path: Path) -> None:
    out = tmp_path / "coldstart.svg"
    assert plot_coldstart.main([str(RECORD), "--out", str(out)]) == 0
    assert out.read_bytes() == (MEASUREMENTS.parent / "coldstart.svg").read_bytes()


def test_what_is_no_record_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "no.json"
    path.write_text("{}")
    assert plot_coldstart.main([str(path)]) == 1
    assert str(path) in capsys.readouterr().err
