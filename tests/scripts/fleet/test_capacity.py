"""The command: what it tells for a load, and what it says of records that it cannot use."""

import json

import pytest

from scripts.capacity import main
from scripts.fleet.size import Growth, Promise, per_replica, size
from serve.settings import REPOSITORY
from tests.scripts.fleet.curves import flat
from tests.scripts.fleet.test_curve import RECORD

GATEWAY = REPOSITORY / "experiments/measurements/gateway_2026-11-22T171824Z.json"
OVERLOADED = RECORD.with_name("latency_2026-11-23T002407Z.json")
STILL = Growth(0, 10, 15)


def told(capsys, *words):
    assert main([str(RECORD), *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_ten_times_the_load_takes_about_ten_times_the_replicas(capsys):
    rows = told(capsys)
    assert [row["requests_per_s"] for row in rows] == [10, 30, 100, 300, 1000, 3000, 10000]
    few, many = rows[2], rows[4]
    assert many["replicas"] == pytest.approx(10 * few["replicas"], rel=0.15)


def test_a_replica_more_is_what_a_slow_start_costs(capsys):
    fast, slow = (told(capsys, "--rate", "1000", "--start", s)[0] for s in ("10", "75"))
    assert fast["replicas"] == slow["replicas"]
    assert fast["headroom"] < slow["headroom"]


def test_what_it_costs_is_all_that_run_and_only_with_a_price(capsys):
    (row,) = told(capsys, "--rate", "100", "--price", "2", "--gateway", str(GATEWAY))
    assert row["cost_per_hour"] == 2 * (row["replicas"] + row["headroom"])
    assert 0 < row["gateway_cores_each"] < row["one_router_cores"]
    assert "cost_per_hour" not in told(capsys, "--rate", "100")[0]


def test_a_stricter_promise_takes_no_fewer_replicas():
    curve = flat(0.5, 4)
    sizes = [
        size(curve, Promise(first, 1.0, share), STILL, 100).replicas
        for first, share in ((2.0, 0.9), (1.0, 0.9), (1.0, 0.99), (0.4, 0.99))
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_the_promise_is_kept_at_what_is_told_and_not_much_above():
    curve, promise = flat(0.5, 4), Promise(0.5, 1.0, 0.95)
    found = size(curve, promise, STILL, 100)
    assert promise.kept(found.each)
    assert found.headroom == 0
    assert found.replicas - 1 < 100 / per_replica(curve, promise) <= found.replicas


def test_a_promise_that_nobody_can_keep_is_told_with_what_one_replica_does_alone(capsys):
    assert main([str(RECORD), "--first", "0.001"]) == 1
    error = capsys.readouterr().err
    assert "no replica of seq8-best keeps it" in error
    assert "alone, a request has its first token after 0.043 s" in error


def test_formula_and_simulation_stand_beside_what_was_measured(capsys):
    rows = told(capsys, "--check")
    assert [row["requests_per_s"] for row in rows] == [2, 4]
    for row in rows:
        assert row["simulated_s"] == pytest.approx(row["formula_s"], rel=0.1)
        # Few requests on a shared machine: the order of magnitude, not the pace.
        assert row["measured_s"] == pytest.approx(row["formula_s"], rel=0.3)


def test_more_than_a_replica_bears_has_no_formula_and_what_failed_is_counted(capsys):
    assert main([str(OVERLOADED), "--check", "--json"]) == 0
    for row in json.loads(capsys.readouterr().out):
        assert row["formula_s"] is None
        assert row["failed"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.json"], "nowhere.json"),
        ([str(GATEWAY)], "no closed loop of"),
        ([str(RECORD), "--variant", "seq9"], "no closed loop of seq9"),
        ([str(RECORD), "--gateway", str(RECORD)], f"{RECORD}: no cells of streams"),
    ],
    ids=["no file", "another kind", "another variant", "no gateway"],
)
def test_a_record_that_cannot_be_used_is_told_without_a_traceback(capsys, words, said):
    assert main(words) == 1
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


WRONG = ("--share 1", "--rate 0", "--first soon", "--growth nan", "--growth -1", "--price -1")


@pytest.mark.parametrize("words", WRONG)
def test_words_that_say_nothing_are_refused(words):
    with pytest.raises(SystemExit) as ended:
        main([str(RECORD), *words.split()])
    assert ended.value.code == 2
