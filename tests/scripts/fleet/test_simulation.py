"""Requests one by one: none is lost, all take their time, a better router makes fewer wait."""

import statistics

import pytest

from scripts.fleet.simulation import Load, simulate
from tests.scripts.fleet.curves import FIRST, flat


def test_one_alone_takes_what_one_takes():
    for one in simulate(flat(0.5, 4), Load(0.01, 10_000, [10])):
        assert one.ended - one.came == pytest.approx(0.5)
        assert one.first - one.came == pytest.approx(FIRST * 0.5)


def test_an_answer_of_one_token_ends_with_it():
    for one in simulate(flat(), Load(1.0, 100, [1])):
        assert one.ended == one.first


def test_the_same_seed_is_the_same_run_and_another_is_not():
    runs = [simulate(flat(), Load(2.0, 100, seed=seed)) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_whoever_comes_is_served_even_when_more_come_than_can_leave():
    done = simulate(flat(0.5, 2), Load(8.0, 50))
    assert len(done) == pytest.approx(400, rel=0.2)
    assert all(one.came < one.first <= one.ended for one in done)
    assert max(one.ended for one in done) > 60


def test_whoever_looks_where_the_fewest_are_makes_others_wait_less():
    waits = {
        router: statistics.mean(
            one.ended - one.came for one in simulate(flat(0.5, 2), Load(12.0, 1000), 4, router)
        )
        for router in ("random", "fewest")
    }
    assert waits["fewest"] < waits["random"]
