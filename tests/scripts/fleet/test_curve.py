"""A curve is read from a record as the record has it."""

import json

import pytest

from scripts.fleet.curve import NoCurve, Shape, read
from serve.settings import REPOSITORY

RECORD = REPOSITORY / "experiments/seq8-best/measurements/latency_2026-11-21T213452Z.json"


@pytest.fixture(scope="module")
def record():
    return json.loads(RECORD.read_text(encoding="utf-8"))


def test_its_means_are_those_of_the_records_own_summary(record):
    curve = read(record, "seq8-best")
    assert [state.at_once for state in curve.states] == [1, 2, 4, 8]
    for state in curve.states:
        cell = record["summary"]["cells"][f"c{state.at_once}"]["seq8-best"]
        assert state.first * 1000 == pytest.approx(cell["ttft_ms"]["mean"], rel=0.01)
        whole = curve.seconds(state.at_once) * 1000
        assert whole == pytest.approx(cell["e2e_ms"]["mean"], rel=0.05)


def test_between_states_it_lies_between_and_beyond_the_last_nobody_leaves_faster(record):
    curve = read(record, "baseline")
    two, three, four = (curve.seconds(n) for n in (2, 3, 4))
    assert min(two, four) <= three <= max(two, four)
    assert curve.rate(8) == curve.rate(80)


def test_longer_prompts_take_longer_to_the_first_token_and_longer_answers_to_the_last(record):
    curve = read(record, "seq8-best")
    twice = curve.of(Shape(2 * curve.shape.prompt, 2 * curve.shape.output))
    assert twice.first(4) == pytest.approx(2 * curve.first(4))
    assert twice.gap(4) == curve.gap(4)
    assert twice.rate(4) < curve.rate(4)


@pytest.mark.parametrize("variant", ["seq9", ""])
def test_a_variant_that_was_not_measured_is_told(record, variant):
    with pytest.raises(NoCurve, match="no closed loop of"):
        read(record, variant)


def test_a_request_that_failed_is_in_no_column(record):
    curve = read(record, "seq8-best")
    failed = [
        one | {name: f"- {one[name]}" for name in ("ttft_ms", "latency_ms", "tokens")}
        for one in record["samples"]
    ]
    none = failed[0] | {"variant": "seq8-best", "cell": "c16", "ttft_ms": "- -"}
    assert read({"samples": [*failed, none]}, "seq8-best") == curve
