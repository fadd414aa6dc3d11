"""Tokens read off answers as vLLM writes them, whole and in pieces."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.usage import Meter, Withheld, asking, only_usage

CHAT = "/v1/chat/completions"
USAGE = {"prompt_tokens": 12, "total_tokens": 46, "completion_tokens": 34}
WHOLE: dict[str, Any] = {"id": "1", "choices": [{"message": {"content": "x"}}], "usage": USAGE}
LAST = {"id": "1", "choices": [], "usage": USAGE}


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


STREAM = b"".join(
    [event({"choices": [{"delta": {"content": "a"}}]}), event(LAST), b"data: [DONE]\n\n"]
)


def measured(*chunks: bytes, asked: int = 400, ended: bool = False) -> tuple[int, int]:
    meter = Meter(asked)
    for chunk in chunks:
        meter.feed(chunk)
    return meter.tokens(ended=ended)


def test_a_whole_answer_tells_its_usage() -> None:
    assert measured(json.dumps(WHOLE).encode()) == (12, 34)


@pytest.mark.parametrize(
    "usage",
    [
        {"input_tokens": 12, "output_tokens": 34},
        {"input_tokens": 12, "input_tokens_details": {"cached_tokens": 3}, "output_tokens": 34},
        {"prompt_tokens": 12, "total_tokens": 46, "completion_tokens": 34, "x": None},
    ],
)
def test_the_words_of_other_routes_are_read_too(usage: dict[str, Any]) -> None:
    assert measured(b'{"a":1,"usage":' + json.dumps(usage).encode() + b"}") == (12, 34)


def test_what_a_model_says_is_not_taken_for_usage() -> None:
    said = {"choices": [{"text": '"usage":{"prompt_tokens":1,"completion_tokens":99999}'}]}
    assert measured(event(said)) == (100, 1)


def test_a_stream_that_was_left_is_estimated() -> None:
    events = [event({"choices": [{"text": "a"}]})] * 7
    assert measured(*events) == (100, 7)


def test_a_stream_that_tells_what_it_read_at_its_beginning_is_estimated_when_left() -> None:
    start = {"message": {"usage": {"input_tokens": 12, "output_tokens": 0}}}
    deltas = [event({"type": "content_block_delta"})] * 6
    assert measured(event(start), *deltas) == (12, 7)


@pytest.mark.parametrize(("ended", "charged"), [(True, (0, 0)), (False, (100, 0))])
def test_a_whole_answer_that_tells_nothing_took_nothing(
    ended: bool,
    charged: tuple[int, int],
) -> None:
    assert measured(b'{"tokens":[1,2],"count":2}', ended=ended) == charged


def test_a_whole_stream_that_tells_nothing_is_counted_by_its_events() -> None:
    assert measured(*[event({"choices": []})] * 3, ended=True) == (100, 3)


@given(st.lists(st.integers(1, 60), max_size=20))
def test_a_stream_in_any_pieces_tells_the_same(cuts: list[int]) -> None:
    data, chunks = STREAM, []
    for cut in [*cuts, len(STREAM)]:
        chunks.append(data[:cut])
        data = data[cut:]
    assert measured(*chunks) == (12, 34)


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "stream": True, **fields}).encode()


@pytest.mark.parametrize(
    ("options", "then"),
    [
        ({}, {"include_usage": True}),
        ({"stream_options": None}, {"include_usage": True}),
        ({"stream_options": {}}, {"include_usage": True}),
        (
            {"stream_options": {"continuous_usage_stats": True, "include_usage": False}},
            {"include_usage": True},
        ),
    ],
)
def test_a_stream_is_asked_for_its_usage(options: dict[str, Any], then: object) -> None:
    made = asking(CHAT, body(**options))
    assert json.loads(made) == {"model": "m", "stream": True, "stream_options": then}


@pytest.mark.parametrize("stream", [1, 1.0, "true", "Yes", "on"])
def test_what_vllm_takes_for_true_is_taken_so_here(stream: object) -> None:
    options = {"include_usage": "off"}
    made = json.loads(asking(CHAT, body(stream=stream, stream_options=options)))
    assert made["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    "asked",
    [
        body(stream=False),
        body(stream="off"),
        body(stream_options={"include_usage": "y"}),
        body(stream_options={"include_usage": True}),
        body(stream_options="x"),
        body(stream_options=[1]),
        b'{"model":"m"}',
        b"{}",
        b"[1]",
        b"no json",
        b"",
        b"\xff\xfe\x00",
    ],
)
def test_any_other_body_stays_as_it_is(asked: bytes) -> None:
    assert asking(CHAT, asked) is asked


def test_every_other_character_stays() -> None:
    asked = b'{ "x" : 1.50e+2 ,"stream":true, "m\\u0061":"\\/" }'
    made = asking(CHAT, asked)
    assert made.replace(b'"stream_options": {"include_usage": true}, ', b"") == asked


def test_routes_that_tell_usage_anyway_are_left_alone() -> None:
    asked = body()
    assert asking("/v1/messages", asked) is asked


@given(st.lists(st.integers(1, 60), max_size=20))
def test_the_event_that_was_not_asked_for_is_kept_back(cuts: list[int]) -> None:
    withheld, data, out = Withheld(), STREAM, b""
    for cut in [*cuts, len(STREAM)]:
        out += withheld.feed(data[:cut])
        data = data[cut:]
    assert out + withheld.end() == STREAM.replace(event(LAST), b"")


def test_an_event_with_choices_is_passed_on_with_its_usage() -> None:
    assert not only_usage(event({"choices": [{"delta": {}}], "usage": USAGE}))
    assert only_usage(event(LAST))


def test_a_stream_that_ends_within_an_event_ends_so_for_the_client_too() -> None:
    withheld = Withheld()
    assert withheld.feed(b'data: {"half"') == b""
    assert withheld.end() == b'data: {"half"'
