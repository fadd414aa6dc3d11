"""The figures of a record of loads are those of its samples, and the checkpoint is what is said."""

import pytest

from scripts import measure_load
from scripts.measure_load import STATES, WAYS, bytes_of, layers_for, shapes, summary


def taken(way: str, turn: int, load: float, cache: str = "warm", **more) -> dict:
    seconds = {"load": load}
    return {"way": way, "turn": turn, "cache": cache, "seconds": seconds, "rejected": False, **more}


def test_the_first_turn_and_the_watched_one_count_for_no_figure() -> None:
    memory = {"before": 100, "most": 190, "after": 150, "weights": 60}
    samples = [
        taken("default", 0, 99.0),
        *(taken("default", turn, load) for turn, load in enumerate((2.0, 4.0, 3.0), 1)),
        taken("blob raw", 1, 1.5),
        taken("blob raw", -1, 99.0, memory=memory),
    ]
    figures = summary(samples)
    assert figures["default, warm"]["load"] == 3.0
    assert figures["default, warm"]["load_most"] == 4.0
    assert figures["blob raw, warm"]["load_against_default"] == 2.0
    assert figures["blob raw, warm"]["bytes_beside_weights"] == 30


def test_what_others_disturbed_counts_for_no_figure() -> None:
    memory = {"before": 100, "most": 190, "after": 150, "weights": 60}
    samples = [
        taken("default", 1, 99.0, rejected=True),
        taken("default", 1, 2.0),
        taken("blob raw", 1, 99.0, rejected=True),
        taken("blob raw", -1, 99.0, memory=memory, rejected=True),
    ]
    figures = summary(samples)
    assert (figures["default, warm"]["load_most"], figures["default, warm"]["samples"]) == (2.0, 1)
    # Memory is this process's own.
    assert figures["blob raw, warm"] == {"bytes_beside_weights": 30}


@pytest.mark.parametrize(
    ("noise", "kept"),
    [([False], [False]), ([True, True, False], [True, True, False]), ([True] * 9, [True] * 3)],
)
def test_a_sample_is_taken_again_until_it_is_quiet_or_for_some_times(
    monkeypatch, noise, kept
) -> None:
    monkeypatch.setattr(measure_load, "PAUSE_SECONDS", 0)
    rejected = iter(noise)
    samples = measure_load.quiet(lambda: {"rejected": next(rejected)}, 3)
    assert [one["rejected"] for one in samples] == kept


def test_warm_and_cold_are_compared_with_their_own_default() -> None:
    samples = [
        taken(way, 1, load, cache)
        for cache, loads in (("warm", (2.0, 1.0)), ("cold", (8.0, 2.0)))
        for way, load in zip(("default", "blob int5"), loads, strict=True)
    ]
    figures = summary(samples)
    assert [figures[f"blob int5, {cache}"]["load_against_default"] for cache in STATES] == [2, 4]


@pytest.mark.parametrize("gigabytes", [0.2, 1, 2])
def test_a_checkpoint_is_about_as_large_as_asked_for(gigabytes: float) -> None:
    layers = layers_for(int(gigabytes * 1e9))
    assert layers % 4 == 0
    assert bytes_of(shapes(layers)) == pytest.approx(gigabytes * 1e9, rel=0.35)


def test_every_layer_is_of_the_kind_that_the_config_says() -> None:
    kinds = measure_load.config(8)["layer_types"]
    for layer, kind in enumerate(kinds):
        inner = "self_attn" if kind == "full_attention" else "linear_attn"
        assert any(f"model.layers.{layer}.{inner}." in name for name in shapes(8))


def test_what_a_way_needs_and_is_not_there_is_said() -> None:
    way = measure_load.Way("stranger", needs="a_module_that_nobody_has")
    assert measure_load.why(way, KeyError("x")).startswith("not installed: ")
    assert measure_load.why(WAYS["default"], KeyError("x")) == "KeyError: 'x'"
