import json
from pathlib import Path

import pytest

from experiments.record import folder_of
from scripts import measure_coldstart, measure_image
from scripts.measure_coldstart import MODES, summary
from scripts.starts import IDLE

MEASUREMENTS = Path(__file__).parents[2] / "experiments" / "seq8-best" / "measurements"


def samples(*seconds: float) -> list[dict[str, object]]:
    """One round for each of ``seconds``, which the baked start took; stock took 20 and 10 times."""
    times = dict(zip(MODES, (20, 10, 1, 0.5), strict=True))
    return [
        {
            "round": number,
            "mode": mode,
            "seconds": second * times[mode],
            "phases": {"imports": second * times[mode] / 2},
            "engine_init_seconds": 1.0,
            "compiled": 0,
            "loaded": 2,
            "text": "same",
        }
        for number, second in enumerate(seconds)
        for mode in MODES
    ]


def test_a_summary_has_medians_spread_and_ratios() -> None:
    found = summary(samples(1.0, 2.0, 6.0))
    assert (found["baked"]["median"], found["baked"]["min"], found["baked"]["max"]) == (2, 1, 6)
    assert found["baked"]["phases_median"] == {"imports": 1.0}
    assert found["ratios"]["stock cold / baked"] == 20
    assert found["ratios"]["stock warm / baked"] == 10
    assert found["same_text"]


def test_one_text_that_differs_is_told() -> None:
    taken = samples(1.0)
    taken[-1]["text"] = "other"
    assert not summary(taken)["same_text"]


@pytest.mark.parametrize(
    "path", sorted(MEASUREMENTS.glob("coldstart_*.json")), ids=lambda p: p.stem
)
def test_the_summary_of_each_record_is_made_from_its_samples(path: Path) -> None:
    record = json.loads(path.read_text())
    assert json.loads(json.dumps(summary(record["samples"]))) == record["summary"]
    assert all(sample["busy_before"] <= IDLE for sample in record["samples"])


@pytest.mark.parametrize("script", [measure_coldstart, measure_image])
def test_what_is_not_there_is_one_line_and_leaves_no_folder(script, capsys) -> None:
    assert script.main(["nosuch", "--target", "cpu"]) == 2
    assert "no variant 'nosuch'" in capsys.readouterr().err
    assert not folder_of("nosuch").parent.exists()


@pytest.mark.parametrize("script", [measure_coldstart, measure_image])
def test_no_rounds_are_usage(script, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        script.main(["seq8", "--rounds", "0"])
    assert ended.value.code == 2
    assert "--rounds" in capsys.readouterr().err
