import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.quality import divergence
from scripts.quality.divergence import (
    NotAligned,
    Position,
    compare,
    drawn_kl,
    intervals,
    lumped_kl,
    totals,
)
from scripts.quality.scoring import positions


def logs(**shares):
    return {ord(name): math.log(share) for name, share in shares.items()}


def test_kl_over_all_tokens_is_the_full_one():
    kl, rest = lumped_kl(logs(a=0.5, b=0.5), logs(a=0.25, b=0.75))
    assert kl == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert rest == 0


def test_what_only_one_side_names_is_lumped():
    # Common is a alone: 0.6 ln(0.6/0.5) + 0.4 ln(0.4/0.5).
    kl, rest = lumped_kl(logs(a=0.6, b=0.3), logs(a=0.5, c=0.4))
    assert kl == pytest.approx(0.6 * math.log(1.2) + 0.4 * math.log(0.8))
    assert rest == pytest.approx(0.4)


def test_the_same_distribution_is_no_distance_away():
    p = logs(a=0.6, b=0.3)
    assert lumped_kl(p, p)[0] == pytest.approx(0, abs=1e-12)


shares = st.lists(st.floats(0.001, 1), min_size=30, max_size=30)


@given(p=shares, q=shares, named=st.integers(1, 30))
def test_lumping_never_adds_to_a_divergence(p, q, named):
    p, q = np.array(p) / sum(p), np.array(q) / sum(q)
    full = float((p * np.log(p / q)).sum())

    def top(of):
        return {int(i): float(np.log(of[i])) for i in np.argsort(-of)[:named]}

    kl, rest = lumped_kl(top(p), top(q))
    assert -1e-9 <= kl <= full + 1e-9
    assert 0 <= rest <= 1


@given(p=shares, q=shares, named=st.integers(1, 30))
def test_over_all_that_can_be_drawn_the_estimate_is_the_full_divergence(p, q, named):
    p, q = np.array(p) / sum(p), np.array(q) / sum(q)

    def told(of, token):
        listed = np.argsort(-of)[:named].tolist()
        top = {i: float(np.log(of[i])) for i in [*listed, token]}
        return Position(token, 0, 1, listed[0], top, token in listed)

    expected = sum(
        share * drawn_kl(told(p, token), told(q, token)) for token, share in enumerate(p.tolist())
    )
    assert expected == pytest.approx(float((p * np.log(p / q)).sum()), abs=1e-9)


def text(spans, *, likely=None):
    """Positions of tokens given as (id, size, probability); the rest lies on token 99."""
    start, made = 0, []
    for token, size, share in spans:
        top = {token: math.log(share), 99: math.log(1 - share)}
        first = likely or (token if share >= 0.5 else 99)
        made.append(Position(token, start, size, first, top))
        start += size
    # As from a server: the first token is predicted by nobody.
    return made[1:]


def test_sums_of_a_text_that_both_cut_alike():
    told = compare(
        "abcd",
        text([(1, 2, 0.5), (2, 1, 0.5), (3, 1, 0.8)]),
        text([(1, 2, 0.5), (2, 1, 0.25), (3, 1, 0.8)]),
    )
    assert told.nll_reference == pytest.approx(-math.log(0.5 * 0.8))
    assert told.nll_variant == pytest.approx(-math.log(0.25 * 0.8))
    assert (told.tokens, told.tokens_variant, told.compared, told.characters) == (2, 2, 2, 2)
    assert told.agreed == 1
    assert told.kl == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))


def test_a_token_that_one_side_dropped_costs_what_its_spelling_costs_and_counts_as_disagreeing():
    # "bc" is one token for the reference, two for the variant; then both have "d".
    told = compare(
        "abcd",
        text([(1, 1, 0.5), (23, 2, 0.5), (4, 1, 0.8)]),
        text([(1, 1, 0.5), (2, 1, 0.5), (3, 1, 0.5), (4, 1, 0.8)]),
    )
    assert (told.tokens, told.tokens_variant, told.compared, told.agreed) == (2, 3, 1, 1)
    assert told.nll_variant - told.nll_reference == pytest.approx(math.log(2))
    # Of "bc" both also list 99 with a half: that part of the divergence is exactly nothing.
    assert told.kl == pytest.approx(math.log(2))
    summed = intervals([told] * 30, [told] * 30)
    assert summed["kl"].point == pytest.approx(math.log(2) / 2)
    assert summed["top1_agreement"].point == 0.5
    assert totals([told])["compared"] == 0.5


DROPPED = 29


@given(p=shares, named=st.integers(1, 30), second=st.floats(0.01, 1))
def test_over_all_that_can_be_drawn_a_dropped_token_weighs_as_its_spelling(p, named, second):
    """Pruning that is perfect otherwise: its place alone would come out at ln P(kept) < 0."""
    p = np.array(p) / sum(p)
    q = p[:DROPPED] / p[:DROPPED].sum()

    def place(of, token):
        listed = np.argsort(-of)[:named].tolist()
        top = {i: float(np.log(of[i])) for i in [*listed, token]}
        return Position(token, 1, 1 + (token == DROPPED), listed[0], top, token in listed)

    def told(token):
        if token < DROPPED:
            return compare("ab", [place(p, token)], [place(q, token)]).kl
        # As its first byte, then its second.
        spelled = [place(q, 0), Position(1, 2, 1, 1, {1: math.log(second)})]
        return compare("abc", [place(p, token)], spelled).kl

    full = float((p[:DROPPED] * np.log(p[:DROPPED] / q)).sum())
    full += p[DROPPED] * (np.log(p[DROPPED]) - np.log(q[0] * second))
    assert sum(share * told(token) for token, share in enumerate(p)) == pytest.approx(full)


def test_nothing_drawn_is_left_out_where_the_variants_token_reaches_over_its_beginning():
    told = compare(
        "abcd",
        text([(1, 1, 0.5), (2, 1, 0.5), (3, 1, 0.5), (4, 1, 0.5)]),
        text([(1, 1, 0.5), (23, 2, 0.1), (4, 1, 0.5)]),
        after=2,
    )
    assert (told.tokens, told.tokens_variant) == (3, 2)
    assert told.nll_variant - told.nll_reference == pytest.approx(math.log(10) - 2 * math.log(2))


def test_a_text_whose_variant_ends_before_the_drawn_part_still_counts():
    ours = text([(1, 1, 0.5), (2, 1, 0.5), (3, 1, 0.5)])
    told = compare("abc", ours, text([(1, 1, 0.5), (23, 2, 0.1)]), after=2)
    assert (told.tokens, told.compared) == (2, 0)


def test_both_begin_where_both_have_begun():
    # The variant's first token is shorter: what it says of "b" counts on neither side.
    told = compare(
        "abcd",
        text([(12, 2, 0.5), (3, 1, 0.5), (4, 1, 0.5)]),
        text([(1, 1, 0.5), (2, 1, 0.001), (3, 1, 0.5), (4, 1, 0.5)]),
    )
    assert told.nll_variant == pytest.approx(told.nll_reference)
    assert told.characters == 2


def test_what_stands_before_a_byte_is_not_asked_of():
    told = compare(
        "abcd",
        text([(1, 1, 0.5), (2, 1, 0.5), (3, 2, 0.5)]),
        text([(1, 1, 0.5), (2, 1, 0.001), (3, 2, 0.5)]),
        after=2,
    )
    assert (told.tokens, told.nll_variant, told.characters) == (1, pytest.approx(math.log(2)), 2)


def test_without_a_common_boundary_nothing_is_said():
    with pytest.raises(NotAligned):
        compare("abcd", text([(1, 1, 0.5), (2, 3, 0.5)]), text([(1, 2, 0.5), (2, 2, 0.5)]))


def test_other_numbering_is_told_apart_from_bad_quality():
    one = compare("ab", text([(1, 1, 0.5), (2, 1, 0.5)]), text([(7, 1, 0.5), (8, 1, 0.5)]))
    with pytest.raises(NotAligned, match="number them alike"):
        intervals([one] * 30, [one] * 30)


def test_figures_of_known_texts():
    half = compare("ab", text([(1, 1, 0.5), (2, 1, 0.5)]), text([(1, 1, 0.5), (2, 1, 0.25)]))
    told = intervals([half] * 30, [half] * 30)
    assert told["perplexity_change"].point == pytest.approx(1.0)
    assert told["kl"].point == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert told["top1_agreement"].high == 0
    summed = totals([half] * 30)
    assert (summed["perplexity_reference"], summed["perplexity_variant"]) == (2.0, 4.0)
    assert (summed["bits_per_character_reference"], summed["compared"]) == (1.0, 1.0)
    assert len(divergence.columns([half] * 30)["kl"]) == 30


def test_a_servers_answer_becomes_positions():
    told = [
        None,
        {"5": {"logprob": -2.0, "rank": 23}, "7": {"logprob": -0.5, "rank": 1}},
        {"6": {"logprob": -0.1, "rank": 1}},
    ]
    assert list(positions([4, 5, 6], [3, 1, 2], told)) == [
        Position(5, 3, 1, 7, {5: -2.0, 7: -0.5}, False),
        Position(6, 4, 2, 6, {6: -0.1}, True),
    ]
