import json
import sys
from pathlib import Path

import pytest

from scripts import measure_coldstart as module
from scripts.measure_coldstart import MODES, Run, busy_share, running, started, summary

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
    assert all(sample["busy_before"] <= module.IDLE for sample in record["samples"])


def test_lines_are_read_with_their_time_and_the_process_is_gone_at_the_end() -> None:
    said = "init engine (profile, create kv cache, warmup model) took 6.53 s"
    code = f"import time; print('engine | {said}', flush=True); time.sleep(600)"
    with running([sys.executable, "-c", code], {}) as run:
        while not run.lines:
            pass
        assert run.process.poll() is None
    assert run.process.poll() is not None
    assert started(run)["engine_init_seconds"] == 6.53
    assert list(started(run)["phases"]) == ["kv cache"]


def test_a_machine_that_is_never_idle_is_not_measured_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "busy_share", lambda _: 0.5)
    monkeypatch.setattr(module, "DEADLINE_SECONDS", -1)
    with pytest.raises(module.NotMeasured, match="50% of its cores"):
        module.wait_until_idle()


def test_the_busy_share_is_one() -> None:
    assert 0 <= busy_share(0.05) <= 1


def test_a_run_finds_the_last_of_what_was_said() -> None:
    run = Run(None, 0.0, [(1.0, "gateway on http://h:1"), (2.0, "gateway on http://h:2")])
    found = run.find(module.LISTENING)
    assert found is not None
    assert found[1] == "2"
