import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.intervals import Interval, paired_difference
from scripts.quality import rule
from scripts.quality.rule import AGREEMENT, DIVERGENCE, PERPLEXITY, TASK, judge

GOOD = {
    "perplexity_change": Interval(0.001, -0.002, 0.004, 100),
    "kl": Interval(0.005, 0.004, 0.006, 100),
    "top1_agreement": Interval(0.99, 0.985, 0.993, 100),
}
SAME = {"ifeval": Interval(0.0, -0.01, 0.01, 541)}


@pytest.mark.parametrize(
    ("criterion", "low", "high", "finding"),
    [
        (PERPLEXITY, -0.01, 0.01, "holds"),
        (PERPLEXITY, 0.0, 0.0101, "open"),
        (PERPLEXITY, 0.0101, 0.02, "fails"),
        (PERPLEXITY, 0.01, 0.02, "open"),
        (DIVERGENCE, 0.0, 0.02, "holds"),
        (DIVERGENCE, 0.019, 0.021, "open"),
        (DIVERGENCE, 0.021, 0.03, "fails"),
        (AGREEMENT, 0.95, 1.0, "holds"),
        (AGREEMENT, 0.949, 0.96, "open"),
        (AGREEMENT, 0.90, 0.949, "fails"),
        (TASK, -0.02, 0.05, "holds"),
        (TASK, -0.021, 0.05, "open"),
        (TASK, -0.05, -0.021, "fails"),
    ],
)
def test_a_criterion_holds_fails_or_stays_open_by_where_its_interval_lies(
    criterion, low, high, finding
):
    assert judge(criterion, Interval((low + high) / 2, low, high, 100)).finding == finding


def test_all_hold_is_parity_and_says_on_what():
    assert rule.apply(GOOD, SAME)["verdict"] == "parity"
    assert rule.apply(GOOD, SAME)["judged_on"] == "texts and tasks"
    assert rule.apply(GOOD, {})["verdict"] == "parity"
    assert rule.apply(GOOD, {})["judged_on"] == "texts alone"


@pytest.mark.parametrize("name", list(GOOD))
def test_one_that_lies_wholly_beyond_is_not_at_parity_whatever_the_others_say(name):
    beyond = {"perplexity_change": 0.5, "kl": 0.5, "top1_agreement": 0.5}[name]
    told = rule.apply({**GOOD, name: Interval(beyond, beyond, beyond, 100)}, SAME)
    assert told["verdict"] == "not at parity"


def test_a_task_that_lost_wholly_more_than_two_points_is_not_at_parity():
    lost = {**SAME, "gsm8k": Interval(-0.06, -0.09, -0.03, 1319)}
    assert rule.apply(GOOD, lost)["verdict"] == "not at parity"


def test_one_across_its_limit_is_undecided_and_says_how_many_items_would_decide():
    # 3 points of half width must come down to 2: (3/2)² times the items.
    told = rule.apply(GOOD, {"ifeval": Interval(0.0, -0.03, 0.03, 400)})
    assert told["verdict"] == "undecided"
    assert told["criteria"][-1]["finding"] == "open"
    assert told["criteria"][-1]["items_to_decide"] == 900


def test_a_fail_weighs_more_than_an_open_one():
    told = rule.apply(
        {**GOOD, "kl": Interval(0.5, 0.4, 0.6, 100)}, {"ifeval": Interval(0.0, -0.03, 0.03, 400)}
    )
    assert told["verdict"] == "not at parity"


@pytest.mark.parametrize("gained", [0, 3])
def test_where_no_item_was_lost_as_many_decide_as_a_loss_of_two_points_would_not_hide_from(gained):
    reference, variant = np.zeros(32), np.zeros(32)
    variant[:gained] = 1
    assert judge(TASK, paired_difference(reference, variant)).items_to_decide == 183
    assert judge(TASK, paired_difference(np.ones(182), np.ones(182))).finding == "open"
    assert judge(TASK, paired_difference(np.ones(183), np.ones(183))).finding == "holds"


def test_many_lost_and_none_gained_is_not_left_open():
    reference, variant = np.ones(500), np.ones(500)
    variant[:150] = 0
    assert judge(TASK, paired_difference(reference, variant)).finding == "fails"


def test_what_lies_on_the_limit_no_number_of_items_decides():
    assert rule.items_to_decide(TASK, Interval(-0.02, -0.03, -0.01, 100)) is None


def test_few_items_decide_nothing():
    few = {name: Interval(v.point, v.low, v.high, 19) for name, v in GOOD.items()}
    told = rule.apply(few, {})
    assert told["verdict"] == "undecided"
    assert {one["items_to_decide"] for one in told["criteria"]} == {20}
    bad = judge(DIVERGENCE, Interval(0.5, 0.4, 0.6, 19))
    assert bad.finding == "open"


def test_tasks_alone_or_nothing_make_no_parity():
    assert rule.apply({}, SAME)["verdict"] == "undecided"
    assert rule.apply({}, {})["verdict"] == "undecided"


@given(
    criterion=st.sampled_from([PERPLEXITY, DIVERGENCE, AGREEMENT, TASK]),
    point=st.floats(-1, 1),
    below=st.floats(0, 1),
    above=st.floats(0, 1),
    items=st.integers(1, 20_000),
)
def test_what_would_decide_is_never_fewer_items_than_an_open_one_had(
    criterion, point, below, above, items
):
    told = judge(criterion, Interval(point, point - below, point + above, items))
    if told.finding == "open" and told.items_to_decide is not None:
        assert told.items_to_decide >= min(items, rule.LEAST_ITEMS)
        if items >= rule.LEAST_ITEMS:
            assert told.items_to_decide >= items
