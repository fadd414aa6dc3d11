"""Numbers that a command line takes, and those that it refuses."""

from argparse import ArgumentTypeError

import pytest

from scripts.options import amount, numbers


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "-inf", "x", ""])
def test_an_amount_is_above_0_and_has_an_end(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="expected a number above 0, got"):
        amount(text)


def test_an_amount_is_a_number() -> None:
    assert amount("0.5") == 0.5
    assert amount(" 60") == 60


def test_numbers_rise_and_each_is_there_once() -> None:
    assert numbers(1)("8, 1,1") == [1, 8]
    assert numbers(0, 7)("7,0") == [0, 7]


@pytest.mark.parametrize("text", ["", "1,", "-1", "x", "1.5", "0", "8", "²"])
def test_what_is_no_number_or_beyond_the_ends_is_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="expected numbers from 1 to 7, like"):
        numbers(1, 7)(text)
