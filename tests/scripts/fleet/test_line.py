"""The queue against formulas of the textbooks, and against itself request by request."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.fleet.line import line, most
from scripts.fleet.simulation import Load, simulate
from tests.scripts.fleet.curves import flat, shared

SECONDS = 4000


def erlang_c(load: float, servers: int) -> float:
    """The share that waits, of M/M/c (Erlang's C formula); ``load`` in servers."""
    below = sum(load**n / math.factorial(n) for n in range(servers))
    full = load**servers / math.factorial(servers) * servers / (servers - load)
    return full / (below + full)


@pytest.mark.parametrize("arrivals", [0.1, 2.0, 5.0, 7.9])
def test_equal_servers_make_others_wait_as_erlang_has_it(arrivals):
    found = line(flat(0.5, 4), arrivals)
    waits = erlang_c(arrivals * 0.5, 4)
    assert found.waits_longer(0) == pytest.approx(waits)
    assert found.seconds == pytest.approx(0.5 + waits / (4 / 0.5 - arrivals))


@pytest.mark.parametrize("arrivals", [0.2, 1.0, 1.8])
def test_a_shared_server_takes_as_long_as_one_that_serves_in_turn(arrivals):
    # Processor sharing has the mean of M/M/1: 1 / (rate - arrivals).
    assert line(shared(), arrivals).seconds == pytest.approx(1 / (2 - arrivals), rel=1e-3)


@given(st.floats(0.01, 7.99), st.integers(1, 12), st.floats(0.05, 2))
def test_shares_are_shares_and_a_longer_wait_is_rarer(arrivals, places, seconds):
    curve = flat(seconds, places)
    found = line(curve, arrivals)
    if found is None:
        assert arrivals >= places / seconds * (1 - 1e-12)
        return
    assert sum(found.shares) + found.waits == pytest.approx(1)
    assert 1 >= found.waits_longer(0) >= found.waits_longer(1) >= 0
    assert found.within(0) <= found.within(1) <= 1 + 1e-12
    assert found.within(1, 0) == 0 <= found.within(1, seconds) <= found.within(1)
    # A request takes its own time at least.
    assert found.seconds >= seconds * (1 - 1e-9)


def test_more_than_can_leave_is_no_steady_state():
    assert line(flat(0.5, 4), 8.0) is None


@pytest.mark.parametrize("arrivals", [2.0, 6.0, 7.2])
@pytest.mark.parametrize("curve", [flat(), flat(0.2, 2)], ids=["four places", "two places"])
def test_request_by_request_it_is_the_same(curve, arrivals):
    found = line(curve, arrivals)
    ran = simulate(curve, Load(arrivals, SECONDS))
    mean = statistics.mean(one.ended - one.came for one in ran)
    assert mean == pytest.approx(found.seconds, rel=0.1)


def test_a_shared_server_is_the_same_request_by_request():
    mean = statistics.mean(one.ended - one.came for one in simulate(shared(), Load(1.0, SECONDS)))
    assert mean == pytest.approx(line(shared(), 1.0).seconds, rel=0.1)


def test_the_most_is_where_it_just_holds():
    curve = flat(0.5, 4)
    found = most(curve, lambda one: one.waits_longer(0) <= 0.2)
    assert line(curve, found).waits_longer(0) == pytest.approx(0.2, abs=1e-6)
    assert most(curve, lambda one: False) == 0
