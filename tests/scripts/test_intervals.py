import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts import intervals
from scripts.intervals import bootstrap, paired_difference, wilson


def mean(sums):
    return sums[:, 0] / sums[:, 1]


def test_wilson_gives_the_textbook_interval():
    # Newcombe 1998, table I, method 3: 81 of 263.
    told = wilson(81, 263)
    assert (round(told.low, 4), round(told.high, 4)) == (0.2553, 0.3662)


def test_wilson_at_the_ends_stays_in_range_and_has_width():
    assert (wilson(0, 20).low, round(wilson(0, 20).high, 4)) == (0.0, 0.1611)
    assert (round(wilson(20, 20).low, 4), wilson(20, 20).high) == (0.8389, 1.0)


@pytest.mark.parametrize(("passed", "items"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_rate(passed, items):
    with pytest.raises(ValueError, match="no rate"):
        wilson(passed, items)


@given(items=st.integers(1, 500), share=st.floats(0, 1))
def test_wilson_holds_its_point(items, share):
    told = wilson(round(share * items), items)
    assert told.low <= told.point + 1e-12
    assert told.high >= told.point - 1e-12


def test_the_bootstrap_is_the_same_every_time():
    columns = np.random.default_rng(0).random((50, 2))
    assert bootstrap(columns, mean) == bootstrap(columns, mean)


def test_equal_items_have_no_spread():
    told = bootstrap(np.tile([3.0, 2.0], (30, 1)), mean)
    assert (told.point, told.low, told.high, told.items) == (1.5, 1.5, 1.5, 30)


def test_the_bootstrap_of_a_mean_is_near_the_normal_interval():
    values = np.random.default_rng(1).normal(5, 2, 400)
    told = bootstrap(np.column_stack([values, np.ones(400)]), mean)
    half = 1.96 * values.std() / 20
    assert told.low == pytest.approx(values.mean() - half, abs=0.02)
    assert told.high == pytest.approx(values.mean() + half, abs=0.02)


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says(monkeypatch):
    # 200 samples of 60: 95 % expected, 90 % would be 3 standard errors away.
    monkeypatch.setattr(intervals, "DRAWS", 1000)
    random = np.random.default_rng(2)
    covered = 0
    for seed in range(200):
        columns = np.column_stack([random.exponential(1.0, 60), np.ones(60)])
        told = bootstrap(columns, mean, seed=seed)
        covered += told.low <= 1.0 <= told.high
    assert 176 <= covered <= 199


def test_nothing_cannot_be_resampled():
    with pytest.raises(ValueError, match="nothing"):
        bootstrap(np.empty((0, 2)), mean)


def test_pairs_cancel_what_both_fail():
    reference = np.array([1.0] * 60 + [0.0] * 40)
    variant = reference.copy()
    variant[:4] = 0
    variant[60:62] = 1
    told = paired_difference(reference, variant)
    assert told.point == pytest.approx(-0.02)
    # Unpaired, two rates of a hundred would be 14 points uncertain to either side.
    assert -0.075 < told.low < told.point < told.high < 0.035


def test_no_difference_on_few_items_is_no_proof_of_none():
    # A loss on 10.9 % of all items goes unseen on 32 in 2.5 % of cases: 0.975 = 1 - 0.891³².
    same = np.ones(32)
    told = paired_difference(same, same)
    assert told.point == 0
    assert (1 + told.low) ** 32 == pytest.approx(0.025)
    assert told.high == -told.low


def test_what_cannot_be_paired_is_refused():
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_difference(np.ones(3), np.ones(4))
