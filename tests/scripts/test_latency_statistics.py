"""Figures and ratios of samples, against numbers worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.latency.results import summary
from scripts.latency.samples import Sample, first_difference, pack, unpack
from scripts.latency.show import notes, rows
from scripts.latency.statistics import figures, left_out, ratios

MILLISECONDS = st.floats(0.5, 5000)


def sample(
    latency: list[float],
    *,
    round_: int = 1,
    variant: str = "a",
    wall: float = 2.0,
    ttft: float = 10,
) -> Sample:
    """Requests of 11 tokens in 6 chunks whose first came after ``ttft``."""
    times = np.array(latency)
    ok = ~np.isnan(times)
    return Sample(
        round_,
        "c1",
        "a",
        wall,
        np.where(ok, ttft, np.nan),
        times,
        np.where(ok, 11.0, np.nan),
        np.where(ok, 6.0, np.nan),
        {5.0: 3, 25.0: 1},
    )


def outcome(**changes: object) -> dict[str, object]:
    seen = {"failed": "", "ttft": 0.01, "latency": 0.11, "tokens": 11, "gaps": [0.02] * 5}
    return seen | changes


def test_figures_are_those_of_the_answered_requests() -> None:
    found = figures([sample([110, 210, 310, math.nan])])
    # Linear between order statistics: of three, p90 lies 0.8 of the way from the 2nd to the 3rd.
    assert found["e2e_ms"] == {"mean": 210, "p50": 210, "p90": 290, "p99": None}
    whole = figures([sample([110, 210, 310])])
    assert whole["e2e_ms"] == {"mean": 210, "p50": 210, "p90": 290, "p99": 308}
    assert found["itl_ms"]["p50"] == 20  # (210 - 10) / (11 - 1)
    assert found["ttft_ms"]["p90"] == 10
    # Three tokens at 5 ms, one at 25.
    assert found["gap_ms"] == {"mean": 10, "p50": 5, "p90": 19, "p99": None}
    assert found["tokens_per_s"] == 33 / 2
    assert found["requests_per_s"] == 1.5
    assert found["tokens_per_chunk"] == pytest.approx(11 / 6, rel=1e-3)
    assert (found["requests"], found["failed"]) == (4, 1)


def test_a_candidate_at_half_the_time_is_twice_as_fast_in_every_draw() -> None:
    slow = [
        sample([100, 200, 300], ttft=50, wall=4),
        sample([120, 240, 80], round_=2, ttft=50, wall=4),
    ]
    fast = [
        sample([50, 100, 150], ttft=25, wall=2),
        sample([60, 120, 40], round_=2, ttft=25, wall=2),
    ]
    found = ratios(slow, fast, seed=1, draws=200)
    for metric in ("ttft_ms", "itl_ms", "e2e_ms"):
        for statistic in ("mean", "p50", "p90", "p99"):
            assert found[metric][statistic] == {"ratio": 2, "low": 2, "high": 2}
    assert found["tokens_per_s"] == {"ratio": 2, "low": 2, "high": 2}


def test_the_ratio_of_means_is_that_of_sums() -> None:
    found = ratios([sample([100, 300])], [sample([100, 100])], seed=1, draws=500)["e2e_ms"]["mean"]
    assert found["ratio"] == 2
    # A draw has the first pair twice (1), both (2) or the second twice (3).
    assert (found["low"], found["high"]) == (1, 3)


def test_a_failed_request_takes_its_pair_with_it() -> None:
    found = ratios([sample([100, 1000])], [sample([50, math.nan])], seed=1, draws=20)
    assert found["e2e_ms"]["mean"] == {"ratio": 2, "low": 2, "high": 2}


def test_where_a_pair_is_left_out_no_tail_is_told() -> None:
    slow, fast = [sample([100, 1000, 50])], [sample([50, math.nan, 25])]
    assert left_out(slow, fast) == 1
    found = ratios(slow, fast, seed=1, draws=20)
    assert set(found["e2e_ms"]) == {"mean", "p50", "p90"}


def kept(variant: str, why: str = "", **more: object) -> dict[str, object]:
    seen = outcome(failed=why) if why else outcome()
    return {
        "round": 1,
        "cell": "c8",
        "variant": variant,
        "wall_s": 1.0,
        "others": 0.0,
        "engine": {},
        "client": {"cpu_s": 0.1, "lag_p99_ms": 1.0, "late_ms": 3.0},
        "prompts": "0",
        "differ_at": "-" if why else "=",
        **pack([seen]),
        **more,
    }


def test_a_load_that_failed_altogether_says_why() -> None:
    found = summary([kept("a"), kept("b", "status 500: no")], "a", "b", seed=1)
    side = found["cells"]["c8"]["b"]
    assert side == {"requests": 1, "failed": 1, "failures": {"status 500: no": 1}}
    said = "\n".join(notes(found))
    assert "failed, c8, b: {'status 500: no': 1}" in said
    assert "† c8: 1 pairs are in no ratio" in said
    assert rows(found["cells"]["c8"], "a", "b")


def test_a_rate_that_is_not_kept_up_with_is_told() -> None:
    both = [kept("a", offered_per_s=4.0), kept("b", offered_per_s=1.01)]
    found = summary(both, "a", "b", seed=1)
    cell = found["cells"]["c8"]
    assert cell["a"]["offered_per_s"] == 4.0
    assert cell["a"]["client_late_most_ms"] == 3.0
    (line,) = [line for line in notes(found) if "queue" in line]
    assert line.startswith("c8, a: 4 a second came, 1 were served")
    # A rate is served at that rate by both: no ratio of it is shown.
    assert [row[3] for row in rows(cell, "a", "b")[-2:]] == ["", ""]


def test_without_a_pair_there_is_no_ratio() -> None:
    assert ratios([sample([math.nan])], [sample([10.5])], seed=1) == {}


def test_samples_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="do not pair"):
        ratios([sample([1, 2])], [sample([1])], seed=1)


@given(st.lists(MILLISECONDS, min_size=2, max_size=12), st.lists(MILLISECONDS, min_size=2))
def test_an_interval_holds_no_ratio_that_no_pair_has(one: list[float], other: list[float]) -> None:
    size = min(len(one), len(other))
    slow, fast = sample(one[:size], ttft=0.1), sample(other[:size], ttft=0.1)
    found = ratios([slow], [fast], seed=3, draws=50)["e2e_ms"]["mean"]
    pairs = slow.latency / fast.latency
    for figure in found.values():
        assert min(pairs) * 0.999 <= figure <= max(pairs) * 1.001


@given(st.lists(MILLISECONDS, min_size=1, max_size=12), st.integers(0, 9))
def test_the_same_seed_draws_the_same(times: list[float], seed: int) -> None:
    slow, fast = sample(times, ttft=0.1), sample(list(reversed(times)), ttft=0.1)
    assert ratios([slow], [fast], seed, 20) == ratios([slow], [fast], seed, 20)


def test_what_is_packed_comes_back() -> None:
    kept = pack(
        [outcome(), outcome(failed="timeout", ttft=None, latency=None), outcome(gaps=[0.1])]
    )
    assert kept["failed"] == {"timeout": 1}
    back = unpack({"round": 2, "cell": "r4", "variant": "b", "wall_s": 1.5, **kept})
    assert (back.round, back.cell, back.variant, back.wall) == (2, "r4", "b", 1.5)
    assert list(back.ok) == [True, False, True]
    assert back.latency[0] == 110
    assert back.itl[0] == 10
    assert list(back.chunks[[0, 2]]) == [6, 2]
    assert back.gaps == {20.0: 5, 100.0: 1}


@given(st.text(max_size=8), st.text(max_size=8))
def test_texts_part_where_their_common_beginning_ends(one: str, other: str) -> None:
    at = first_difference(one, other)
    if at is None:
        assert one == other
    else:
        assert one[:at] == other[:at]
        assert one[at : at + 1] != other[at : at + 1]
