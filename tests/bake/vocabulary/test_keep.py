"""What stays: what must, then what is used, each reachable by the tokenizer's own merges."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bake.errors import BakeError
from bake.vocabulary.keep import check_size, keep, unreachable

from .made import MARKERS, falling, library, ours

SIZE = 700
LIBRARY = library(SIZE)
OURS = ours(LIBRARY)
BPE = OURS.bpe()
BYTES = OURS.bytes_there()
REQUIRED = {*BYTES, *(one.id for one in OURS.added)}


@given(st.integers(0, 10_000), st.integers(5, 10))
def test_a_kept_set_is_of_the_size_asked_for_and_closed(seed, sixtyfours):
    kept = keep(BPE, falling(seed, SIZE), REQUIRED, 64 * sixtyfours)
    ids = set(kept.ids)
    assert len(kept.ids) == len(ids) == 64 * sixtyfours
    assert list(kept.ids) == sorted(ids)
    assert ids >= REQUIRED
    assert all((BPE.ancestors(token) or {token}) <= ids for token in ids)


def test_the_most_frequent_stay():
    numbers = [0] * SIZE
    rare, common = 600, [650, 651, 690]
    for token in common:
        numbers[token] = 1000
    kept = keep(BPE, numbers, REQUIRED, 320)
    assert set(common) <= set(kept.ids)
    assert rare not in kept.ids


def test_without_counts_the_earlier_merges_stay():
    kept = keep(BPE, [0] * SIZE, REQUIRED, 384)
    assert kept.ids[:-4] == tuple(range(380))


def test_ancestors_that_nobody_uses_are_told_apart():
    numbers = [0] * SIZE
    deep = max(range(SIZE), key=lambda one: len(BPE.ancestors(one) or ()))
    numbers[deep] = 1
    others = BPE.ancestors(deep) - {deep} - set(BYTES)
    kept = keep(BPE, numbers, REQUIRED, 320)
    assert others <= set(kept.ids)
    assert len(others) > 2


def test_what_must_stay_says_the_least_that_works():
    with pytest.raises(BakeError, match="260 tokens must stay") as found:
        keep(BPE, [0] * SIZE, REQUIRED, 256)
    assert "--size 320" in str(found.value)


@pytest.mark.parametrize(
    ("size", "said"),
    [(100, "multiple of 64"), (0, "multiple of 64"), (704, "700 tokens"), (768, "700 tokens")],
)
def test_a_size_that_cannot_be_is_refused(size, said):
    with pytest.raises(BakeError, match=said):
        check_size(size, SIZE)


def test_the_ancestors_are_what_the_library_merges():
    """By the library itself: of a vocabulary of a token's ancestors alone it still makes it."""
    from tokenizers import Tokenizer

    from bake.vocabulary.ids import Numbering
    from bake.vocabulary.tokenizer import pruned

    for token in range(256, SIZE - len(MARKERS), 17):
        ids = sorted(REQUIRED | BPE.ancestors(token))
        number = Numbering(tuple(ids))
        import json

        made = Tokenizer.from_str(json.dumps(pruned(OURS, number, ids)))
        (one,) = made.model.tokenize(OURS.texts[token])
        assert one.id == number(token)


def test_added_tokens_are_not_reached_by_merging():
    assert set(unreachable(BPE, range(SIZE))) == {one.id for one in OURS.added}


def test_where_words_are_looked_up_whole_nothing_is_unreachable():
    whole = ours(library(SIZE, ignore_merges=True)).bpe()
    made = replace(whole, ranks={})
    assert made.ancestors(300) == {300}
    assert replace(made, whole=False).ancestors(300) is None
