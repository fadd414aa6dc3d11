"""Drafts change nothing of what a model says: seq8 with and without them, on a real engine.

The engines are of target cpu, where one kernel steps a sequence with drafts and without: no prompt
may part there, near tie or not.
"""

import pytest

from scripts.eval_parity import judged, restarts
from scripts.mtp.asking import Ask, complete_all
from scripts.mtp.held_out import HELD_OUT, read_asks
from scripts.mtp.parity import IDENTICAL, mixed
from scripts.served import Served

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

PROMPTS = 12


@pytest.fixture(scope="module")
def asks() -> list[Ask]:
    return read_asks(HELD_OUT, 24, PROMPTS)


@pytest.mark.parametrize("together", [1, 8])
def test_the_same_text_with_and_without_drafts(
    seq8: Served, seq8_best: Served, asks: list[Ask], together: int
):
    plain = complete_all(seq8, asks, together)
    drafting = complete_all(seq8_best, asks, together)
    told = judged(seq8, "bfloat16", plain, drafting, asks)
    assert told["verdict"] == IDENTICAL, told["found"]


def test_stop_strings_and_lengths_end_drafts_where_they_end_text(
    seq8: Served, seq8_best: Served, asks: list[Ask]
):
    some = mixed(asks)
    plain, drafting = complete_all(seq8, some, 8), complete_all(seq8_best, some, 8)
    told = judged(seq8, "bfloat16", plain, drafting, some)
    assert told["verdict"] == IDENTICAL, told["found"]
    for asked, one, other in zip(some, plain, drafting, strict=True):
        assert (one.text, one.ended) == (other.text, other.ended)
        assert len(other.tokens) <= asked.max_tokens


def test_no_engine_died(seq8: Served, seq8_best: Served):
    assert restarts(seq8) == restarts(seq8_best) == 0
