"""What a key may still ask: buckets, days, counts; on a clock that each test winds itself."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.keys import NOBODY, Key
from serve.quota import Quota, Spent

# A power of two that is a whole number of nanoseconds: exact as a float, and in the sums below.
TICK = 1 / 512
DAY = 24 * 3600.0


def key(**limits: int | None) -> Key:
    return Key("k3j2x9qa", "team-a", **limits)


def spent(quota: Quota, now: float) -> Spent:
    refusal = quota.refusal(now)
    assert refusal is not None
    return refusal


def ask(quota: Quota, now: float) -> bool:
    if quota.refusal(now):
        return False
    quota.begin(now)
    quota.end()
    return True


def admitted(quota: Quota, now: float, asked: int = 1000) -> int:
    return sum(ask(quota, now) for _ in range(asked))


def test_a_key_without_limits_is_never_refused() -> None:
    for unlimited in (NOBODY, key()):
        quota = Quota(unlimited, 0.0)
        quota.use(10**12, 0.0)
        assert admitted(quota, 0.0) == 1000
        quota.begin(0.0)
        assert quota.refusal(0.0) is None


def test_a_minutes_requests_may_come_at_once_and_then_one_by_one() -> None:
    quota = Quota(key(requests_per_minute=60), 100.0)
    assert admitted(quota, 100.0) == 60
    said = spent(quota, 100.25)
    assert said.code == "requests_per_minute"
    assert said.message == "key team-a (k3j2x9qa) may ask 60 requests a minute"
    assert said.retry_after == pytest.approx(0.75, abs=1e-5)
    assert admitted(quota, 101.0) == 1
    assert admitted(quota, 111.0) == 10


def test_a_minutes_edge_gives_nobody_twice_as_much() -> None:
    quota = Quota(key(requests_per_minute=60), 0.0)
    assert admitted(quota, 59.0) == 60
    assert admitted(quota, 61.0) == 2


def test_what_is_not_asked_for_is_not_saved_up() -> None:
    quota = Quota(key(requests_per_minute=5), 0.0)
    assert admitted(quota, 0.0) == 5
    assert admitted(quota, 1e9) == 5


def test_asking_whether_changes_nothing() -> None:
    quota = Quota(key(requests_per_minute=1, tokens_per_minute=1, concurrency=1), 0.0)
    assert [quota.refusal(0.0) for _ in range(100)] == [None] * 100
    quota.begin(0.0)
    assert len({spent(quota, 1.0).retry_after for _ in range(100)}) == 1


def test_tokens_may_be_overdrawn_once_and_are_then_waited_for() -> None:
    quota = Quota(key(tokens_per_minute=600), 0.0)
    quota.use(599, 0.0)
    assert quota.refusal(0.0) is None
    quota.use(101, 0.0)
    said = spent(quota, 0.0)
    assert (said.code, said.retry_after) == ("tokens_per_minute", pytest.approx(10.0, abs=1e-5))
    assert said.message == "key team-a (k3j2x9qa) may use 600 tokens a minute"
    assert quota.refusal(said.retry_after) is None


def test_a_day_lasts_24_hours_from_the_first_use_on() -> None:
    quota = Quota(key(tokens_per_day=100), 0.0)
    quota.use(99, 1000.0)
    assert quota.refusal(1000.0 + DAY - 1) is None
    quota.use(1, 1000.0 + DAY - 1)
    said = spent(quota, 1000.0 + DAY - 1)
    assert (said.code, said.retry_after) == ("tokens_per_day", pytest.approx(1.0, abs=1e-5))
    assert quota.refusal(1000.0 + DAY) is None
    # The next day begins with its own first use.
    quota.use(99, 5000.0 + DAY)
    assert quota.refusal(1000.0 + 2 * DAY) is None
    quota.use(1, 1000.0 + 2 * DAY)
    assert spent(quota, 1000.0 + 2 * DAY).retry_after == pytest.approx(4000.0, abs=1e-5)


def test_what_costs_nothing_begins_no_day_and_nothing_is_given_back() -> None:
    quota = Quota(key(tokens_per_day=10, tokens_per_minute=600), 0.0)
    quota.use(0, 0.0)
    quota.use(10, 500.0)
    quota.use(-10, 500.0)
    assert spent(quota, 500.0).retry_after == pytest.approx(DAY, abs=1e-5)


def test_requests_at_work_are_counted_until_they_end() -> None:
    quota = Quota(key(concurrency=2), 0.0)
    quota.begin(0.0)
    quota.begin(0.0)
    said = spent(quota, 0.0)
    assert (said.code, said.retry_after) == ("concurrency", 1.0)
    assert said.message == "key team-a (k3j2x9qa) may have 2 requests at work at once"
    quota.end()
    assert quota.refusal(0.0) is None


def test_of_several_reasons_the_one_that_lasts_longest_is_told() -> None:
    limits = {"requests_per_minute": 1, "tokens_per_minute": 1, "tokens_per_day": 1}
    quota = Quota(key(concurrency=1, **limits), 0.0)
    quota.begin(0.0)
    assert spent(quota, 0.0).code == "requests_per_minute"
    quota.use(3, 0.0)
    assert spent(quota, 0.0).code == "tokens_per_day"
    assert spent(quota, DAY - 0.5).code == "concurrency"


def test_a_key_without_a_name_is_told_by_its_id() -> None:
    quota = Quota(Key("k3j2x9qa", concurrency=1), 0.0)
    quota.begin(0.0)
    assert spent(quota, 0.0).message.startswith("key k3j2x9qa may ")


def test_a_higher_limit_counts_what_was_used() -> None:
    quota = Quota(key(requests_per_minute=10), 0.0)
    assert admitted(quota, 0.0) == 10
    higher = key(requests_per_minute=60)
    quota.change(higher, 0.0)
    assert quota.key is higher
    assert admitted(quota, 0.0) == 50


def test_a_lower_limit_holds_at_once_and_makes_no_debt() -> None:
    quota = Quota(key(requests_per_minute=60), 0.0)
    assert admitted(quota, 0.0, asked=55) == 55
    quota.change(key(requests_per_minute=6), 0.0)
    assert spent(quota, 0.0).retry_after == pytest.approx(10.0, abs=1e-5)


def test_a_debt_of_tokens_stays_one() -> None:
    quota = Quota(key(tokens_per_minute=60), 0.0)
    quota.use(90, 0.0)
    quota.change(key(tokens_per_minute=30), 0.0)
    assert spent(quota, 0.0).retry_after == pytest.approx(60.0, abs=1e-5)


def test_limits_that_are_set_later_know_what_is_at_work_and_what_the_day_cost() -> None:
    quota = Quota(key(), 0.0)
    quota.begin(0.0)
    quota.use(100, 0.0)
    quota.change(key(concurrency=1), 1.0)
    assert spent(quota, 1.0).code == "concurrency"
    quota.change(key(tokens_per_day=100), 2.0)
    assert spent(quota, 2.0).code == "tokens_per_day"
    quota.change(key(), 3.0)
    assert quota.refusal(3.0) is None


LIMITS = st.integers(1, 200)
# Mostly bursts and short gaps; a clock that stands still, and one that jumps by days.
GAPS = st.lists(
    st.one_of(st.just(0), st.integers(1, 2000), st.integers(0, 20_000_000)), min_size=1, max_size=80
)


@given(LIMITS, GAPS, st.integers(0, 10**6))
def test_no_interval_ever_sees_more_than_a_burst_and_the_rate(
    limit: int, gaps: list[int], start: int
) -> None:
    quota, now = Quota(key(requests_per_minute=limit), start * TICK), start
    times = []
    for gap in gaps:
        now += gap
        times += [now] * admitted(quota, now * TICK, asked=7)
    for first, began in enumerate(times):
        for last in range(first, len(times)):
            passed = Fraction(times[last] - began, 512)
            assert last - first + 1 <= limit + Fraction(limit, 60) * passed


@given(LIMITS, GAPS)
def test_nobody_who_keeps_to_the_rate_is_ever_refused(limit: int, gaps: list[int]) -> None:
    quota, now = Quota(key(requests_per_minute=limit), 0.0), 0.0
    for gap in gaps:
        now += 60 / limit + 1e-6 + gap * TICK
        assert ask(quota, now)


# Waits of years, which a float still tells to the microsecond.
@given(st.integers(1, 10**9), st.integers(1, 10**5), GAPS, st.floats(0, 1e9))
def test_the_wait_that_is_told_is_enough_and_no_longer_than_needed(
    limit: int, tokens: int, gaps: list[int], start: float
) -> None:
    quotas = (
        Quota(key(requests_per_minute=limit % 50 + 1), start),
        Quota(key(tokens_per_minute=limit), start),
        Quota(key(tokens_per_day=tokens), start),
    )
    now = start
    for gap in gaps:
        now += gap * TICK
        for quota in quotas:
            admitted(quota, now, asked=20)
            quota.use(tokens, now)
            if said := quota.refusal(now):
                assert said.retry_after > 0
                assert quota.refusal(now + said.retry_after) is None
                # A float's own grain at this time, and the microsecond that is added for it.
                if (early := said.retry_after - 1e-5) > 0:
                    assert quota.refusal(now + early) is not None


@given(LIMITS, st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 500)), max_size=60))
def test_tokens_are_the_rate_and_one_burst_but_for_what_the_last_request_cost(
    limit: int, asked: list[tuple[int, int]]
) -> None:
    quota, now, used, last = Quota(key(tokens_per_minute=limit), 0.0), 0, 0, 0
    for gap, tokens in asked:
        now += gap
        if ask(quota, now * TICK):
            quota.use(tokens, now * TICK)
            used, last = used + tokens, tokens
            assert used - last < limit + Fraction(limit, 60) * Fraction(now, 512)


CHANGES = st.lists(st.tuples(st.integers(0, 5000), st.none() | LIMITS), min_size=1, max_size=30)


@given(CHANGES)
def test_limits_that_change_admit_at_once_no_more_than_the_new_one(
    changes: list[tuple[int, int | None]],
) -> None:
    quota, now = Quota(key(), 0.0), 0
    for gap, limit in changes:
        now += gap
        quota.change(key(requests_per_minute=limit), now * TICK)
        got = admitted(quota, now * TICK, asked=300)
        assert got <= limit if limit else got == 300
        if limit:
            # And never refuses for longer than one request takes to come.
            assert spent(quota, now * TICK).retry_after <= 60 / limit + 1e-5


@given(LIMITS, st.integers(-(10**6), 0))
def test_a_clock_that_goes_back_gives_nothing_and_takes_nothing(limit: int, back: int) -> None:
    quota = Quota(key(requests_per_minute=limit), 0.0)
    half = limit // 2
    assert admitted(quota, 0.0, asked=half) == half
    assert admitted(quota, back * TICK) == limit - half
    assert admitted(quota, 0.0) == 0
