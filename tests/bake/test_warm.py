"""Every shape that serving will meet is asked for, and none that the engine must refuse."""

from hypothesis import given, settings
from hypothesis import strategies as st

from bake.warm import COMPLETIONS, NEW_TOKENS, Limits, batch_sizes, rounds


def lengths(limits: Limits) -> set[int]:
    """Of the prompts that go out alone."""
    alone = (one.requests for one in rounds(limits) if len(one.requests) == 1)
    return {len(one.body["prompt"]) for (one,) in alone if one.path == COMPLETIONS}


def batches(limits: Limits) -> set[int]:
    return {len(one.requests) for one in rounds(limits)}


def test_prompts_fill_a_step_fall_short_of_it_and_go_beyond():
    assert {1, 2047, 2048, 2049, 4099} <= lengths(Limits(2048, 8, 32768))


def test_a_short_model_gets_no_prompt_that_it_cannot_hold():
    assert max(lengths(Limits(64, 8, 64))) == 64 - NEW_TOKENS


def test_every_batch_up_to_the_limit_goes_out():
    assert set(range(1, 9)) <= batches(Limits(2048, 8, 4096))
    assert batch_sizes(24) == [*range(1, 17), 24]
    assert batch_sizes(1) == [1]


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(1, 300), st.integers(64, 300_000))
def test_no_round_exceeds_the_limits(chunk, sequences, length):
    limits = Limits(min(chunk, length), sequences, length)
    for one in rounds(limits):
        assert 1 <= len(one.requests) <= max(sequences, 1)
        for request in one.requests:
            if request.path == COMPLETIONS:
                tokens = len(request.body["prompt"])
                assert tokens
                assert tokens + NEW_TOKENS <= length


def test_all_kinds_of_sampling_go_out():
    names = " ".join(one.name for one in rounds(Limits(2048, 8, 4096)))
    for kind in ("temperature", "top-p", "logprobs", "structured output", "stream", "two choices"):
        assert kind in names


def test_no_two_prompts_of_a_batch_begin_alike():
    """Or the prefix cache would serve one from the other, and its shape would not be met."""
    for one in rounds(Limits(2048, 8, 4096)):
        first = [r.body["prompt"][:3] for r in one.requests if r.path == COMPLETIONS]
        assert len({tuple(tokens) for tokens in first}) == len(first)
