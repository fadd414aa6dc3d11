"""Prompts that begin alike do, and no others."""

from os.path import commonprefix

from scripts.fleet.prefixes import Shape, beginnings, requests, visited

SHAPE = Shape(families=4, visits=3, characters=500, tokens=2)
TEXTS = ["It was a dark night. " * 10, "A second text, of another kind. " * 10]


def test_every_family_is_visited_as_often_in_an_order_of_the_rounds_own():
    first, second = (visited(SHAPE, 7, round_) for round_ in (1, 2))
    assert sorted(first) == sorted(second) == sorted([0, 1, 2, 3] * 3)
    assert first != second
    assert first == visited(SHAPE, 7, 1)


def test_beginnings_are_as_long_as_was_asked_for_and_part_at_once():
    begun = beginnings(TEXTS, SHAPE, "in turn", 1)
    assert len(begun) == len(set(begun)) == 4
    assert {len(text) - len("123456\n\n") for text in begun} == {500}
    # A number of six digits: two of them may begin alike, no more.
    assert max(len(commonprefix([a, b])) for a in begun for b in begun if a != b) < 6


def test_what_was_sent_before_is_not_sent_again():
    once, again = (beginnings(TEXTS, SHAPE, "in turn", round_) for round_ in (1, 2))
    assert not set(once) & set(again)


def test_requests_of_a_family_share_its_beginning_and_end_apart():
    begun, order = beginnings(TEXTS, SHAPE, 1), visited(SHAPE, 7, 1)
    prompts = [one["body"]["prompt"] for one in requests(begun, order, "m", SHAPE)]
    assert len(set(prompts)) == len(prompts) == 12
    for family, prompt in zip(order, prompts, strict=True):
        assert prompt.startswith(begun[family])
