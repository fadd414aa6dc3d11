"""The gateway's benchmark: a short run of it, and what it makes of samples."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from experiments.record import Record
from scripts.gateway import bench, costs, idle, lite, rounds, systems
from scripts.gateway.cells import PACED_STREAM, cells
from scripts.gateway.costs import Processes
from scripts.gateway.figures import held, judged, summary
from scripts.gateway.tally import tally, written

SHORT = ["--without-litellm", "--rounds", "1", "--rates", "100", "--concurrency", "4"]
SHORT += ["--seconds", "0.3", "--closed-seconds", "0.2", "--idle", "20", "--busy-ok"]


def test_a_run_loses_nothing_and_its_record_says_what_its_samples_say(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Record] = []

    def keep(record: Record, folder: Any) -> Any:
        kept.append(record)
        return folder / "gateway.json"

    monkeypatch.setattr(bench, "add", keep)
    monkeypatch.setattr(idle, "HOLD_SECONDS", 2)
    monkeypatch.setattr(idle, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(costs, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(rounds, "WARM_SECONDS", 0.1)
    assert bench.main([*SHORT, "--json"]) == 0
    said = capsys.readouterr()
    assert "litellm is left out" in said.err
    found = json.loads(said.out)
    loads = {one.name: one for one in cells([100.0], [4], 0.3, 0.2)}
    assert list(found["cells"]) == list(loads)
    for name, entry in found["cells"].items():
        assert set(entry["systems"]) == {"copy", "direct", "preheat"}
        for told in entry["systems"].values():
            assert told["sent"] == told["whole"] > 0
            assert told["failed"] == {}
            tokens = PACED_STREAM.tokens if loads[name].stream else 0
            assert told["chunks"] == tokens * told["whole"]
            assert {"p50", "p90", "p99"} <= set(told["milliseconds"]["whole"])
    goals = {(goal["cell"], goal["what"]): goal["finding"] for goal in found["goals"]}
    assert goals["open 100/s whole", "answers lost"] == "met"
    assert goals["open 100/s streams", "added to gaps, p50 ms"] == "undecided"
    streams = found["idle"]
    assert streams["sent"] == streams["whole"] == streams["at_once"] == 20
    assert streams["before_bytes"] > 2**20
    assert found["peak_bytes"]["preheat"] >= streams["before_bytes"]
    (record,) = kept
    assert record.kind == "gateway"
    again = summary(record.samples, record.parameters["cells"])
    assert found["goals"].pop()["finding"] == "met"
    assert {"cells": found["cells"], "goals": found["goals"]} == json.loads(json.dumps(again))


def samples(
    system: str, waits: list[list[float]], cpu: float = 1.0, **more: Any
) -> list[dict[str, Any]]:
    """A round for each list of seconds that answers took."""
    return [
        {
            "round": number,
            "cell": "open 50/s whole",
            "system": system,
            "sent": len(waited),
            "whole": len(waited),
            "failed": {},
            "seconds": 2.0,
            "chunks": 0,
            "cpu_s": cpu,
            "others": 0.0,
            "tallies": {"whole": written(tally(waited))} if waited else {},
        }
        | more
        for number, waited in enumerate(waits)
    ]


def load(**more: Any) -> dict[str, dict[str, Any]]:
    return {"open 50/s whole": {"rate": 50, "clients": 0, "stream": False} | more}


def goals(found: Mapping[str, Any]) -> dict[str, str]:
    return {goal["what"]: goal["finding"] for goal in found["goals"]}


def test_what_is_added_is_the_difference_of_quantiles() -> None:
    direct = samples("direct", [[0.03] * 9 + [0.04]] * 6)
    ours = samples("preheat", [[0.0304] * 9 + [0.045]] * 6)
    found = summary([*direct, *ours], load())
    added = found["cells"]["open 50/s whole"]["systems"]["preheat"]["added_ms"]["whole"]
    assert added["p50"] == {"point": 0.4, "low": 0.4, "high": 0.4, "items": 6}
    assert added["p99"]["point"] == 5
    assert goals(found) == {
        "added to whole, p50 ms": "met",
        "added to whole, p99 ms": "missed",
        "answers lost": "met",
    }


def test_few_rounds_decide_nothing() -> None:
    both = [*samples("direct", [[0.03]] * 5), *samples("preheat", [[0.03]] * 5)]
    assert goals(summary(both, load()))["added to whole, p50 ms"] == "undecided"


def test_an_answer_that_is_lost_misses_a_goal() -> None:
    lost = {"sent": 2, "failed": {"reset": 1}}
    both = [*samples("direct", [[0.03]] * 6), *samples("preheat", [[0.03]] * 6, **lost)]
    found = summary(both, load())
    assert goals(found)["answers lost"] == "missed"
    assert found["cells"]["open 50/s whole"]["systems"]["preheat"]["failed"] == {"reset": 6}


def test_a_system_that_answered_nothing_has_no_figures() -> None:
    none = samples("litellm", [[]] * 6, failed={"late": 1}, sent=1)
    both = [*samples("direct", [[0.03]] * 6), *samples("preheat", [[0.03]] * 6), *none]
    entry = summary(both, load())["cells"]["open 50/s whole"]
    assert entry["systems"]["litellm"]["milliseconds"] == {}
    assert "added_ms" not in entry["systems"]["litellm"]
    assert "per_core_times_litellm" not in entry


def test_answers_of_a_core_are_compared_where_cores_are_asked_for() -> None:
    ours = samples("preheat", [[0.001] * 300] * 6, cpu=0.5)
    peer = samples("litellm", [[0.1] * 20] * 6, cpu=1.0)
    found = summary([*ours, *peer], load(rate=0, clients=8))
    assert found["cells"]["open 50/s whole"]["per_core_times_litellm"]["point"] == 30
    assert goals(found)["answers a core-second, × litellm"] == "met"
    assert "answers a core-second, × litellm" not in goals(summary([*ours, *peer], load()))


@pytest.mark.parametrize(
    ("low", "high", "finding"),
    [(-0.05, 0.05, "met"), (-1.8, -1.6, "missed"), (0.2, 0.3, "missed"), (0.05, 0.2, "undecided")],
)
def test_chunks_that_come_clumped_miss_the_rhythm_too(
    low: float, high: float, finding: str
) -> None:
    told = {"point": (low + high) / 2, "low": low, "high": high, "items": 8}
    assert judged("open", "gaps", "±", 0.1, told).finding == finding


@pytest.mark.parametrize(("whole", "finding"), [(1000, "met"), (999, "missed")])
def test_a_stream_that_is_not_held_misses_a_goal(whole: int, finding: str) -> None:
    assert held({"streams": 1000, "at_once": 1000, "whole": whole}).finding == finding


def test_litellm_is_pinned_to_the_last_of_its_needs() -> None:
    pins = [line for line in lite.PINS.read_text().splitlines() if not line.startswith("#")]
    assert all(pin.count("==") == 1 for pin in pins)
    assert f"litellm=={lite.version()}" in pins
    assert any(pin.startswith("uvloop==") for pin in pins)


def test_an_environment_of_other_pins_is_none(tmp_path: Any) -> None:
    assert not lite.installed(tmp_path)
    (tmp_path / lite.PINS.name).write_text("litellm==0\n")
    assert not lite.installed(tmp_path)
    (tmp_path / lite.PINS.name).write_bytes(lite.PINS.read_bytes())
    assert lite.installed(tmp_path)


def test_another_system_is_named_by_its_address() -> None:
    named = systems.named("mine=http://127.0.0.1:9/,77")
    assert named == systems.System("mine", "http://127.0.0.1:9", Processes(77))
    assert systems.named("mine=http://127.0.0.1:9").processes is None


@pytest.mark.parametrize(
    "words",
    [
        ["--system", "http://127.0.0.1:9"],
        ["--system", "mine=ftp://127.0.0.1"],
        ["--system", "mine=http://127.0.0.1:9,pid"],
        ["--set", "PREHEAT_HOST"],
        ["--rates", "0"],
        ["--concurrency", "0"],
        ["--idle", "-1"],
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        bench.main([*words, "--no-record"])
    assert stop.value.code == 2


def test_a_gateway_that_does_not_start_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([*SHORT, "--no-record", "--set", "PREHEAT_NONSENSE=1"]) == 1
    assert "PREHEAT_NONSENSE" in capsys.readouterr().err


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--help"])
    assert "examples:" in capsys.readouterr().out
