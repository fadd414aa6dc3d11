"""Counts are kept in a byte each, near enough to choose by."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bake.vocabulary import counts
from bake.vocabulary.counts import Counts, dumped, levels, read

NUMBERS = st.lists(st.integers(0, 2**25), min_size=1, max_size=50)


@given(NUMBERS)
def test_a_count_comes_back_to_seven_percent(numbers):
    told = Counts("m", "d", levels(numbers)).numbers()
    for before, after in zip(numbers, told, strict=True):
        assert after == pytest.approx(before, rel=0.07, abs=1)


@given(NUMBERS)
def test_order_is_kept(numbers):
    told = levels(sorted(numbers))
    assert list(told) == sorted(told)


def test_what_was_never_seen_is_zero_and_what_was_is_not():
    assert levels([0, 0.04]) == b"\0\1"


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "m.json"
    before = Counts("m", "d", levels([0, 5, 700, 2**40]), (1, 3), {"of": "words"}, ({"size": 64},))
    path.write_text(dumped(before))
    assert read(path) == before
    assert before.levels[3] == counts.MOST_LEVEL
