"""The judgement over samples; the starts themselves are what the record was made by."""

import json
from pathlib import Path

import pytest

from scripts.measure_image import FROM_DISK, IMAGE, NATIVE, REBUILD, summary
from scripts.starts import IDLE

MEASUREMENTS = Path(__file__).parents[2] / "experiments" / "seq8-best" / "measurements"
RECORDS = sorted(MEASUREMENTS.glob("image_*.json"))


def sample(mode: str, seconds: float, text: str = "same") -> dict[str, object]:
    return {"mode": mode, "seconds": seconds, "compiled": 0, "text": text}


def test_a_summary_tells_what_the_container_adds_and_what_the_layers_weigh() -> None:
    samples = [sample(NATIVE, s) for s in (6.0, 7.0, 9.0)]
    samples += [sample(IMAGE, s) for s in (7.0, 7.5, 8.0)]
    samples += [{"mode": REBUILD, "seconds": 4.0}]
    found = summary(samples, [{"size": 5}, {"size": 7}])
    assert found["native"] == {"median": 7.0, "min": 6.0, "max": 9.0}
    assert found["the container adds"] == 0.5
    assert found["rebuild"]["median"] == 4.0
    assert found["bytes"] == 12
    assert found["compiled"] == [0]
    assert f"the container adds{FROM_DISK}" not in found


def test_one_text_that_differs_is_told() -> None:
    assert not summary([sample(NATIVE, 1.0), sample(IMAGE, 1.0, "other")], [])["same_text"]


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_summary_of_each_record_is_made_from_its_samples(path: Path) -> None:
    record = json.loads(path.read_text())
    layers = record["parameters"]["image"]["layers"]
    assert json.loads(json.dumps(summary(record["samples"], layers))) == record["summary"]
    assert all(sample["busy_before"] <= IDLE for sample in record["samples"])


def test_there_is_a_record() -> None:
    assert RECORDS
