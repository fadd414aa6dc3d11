"""What is recorded is what was said, token by token, and nothing odd is recorded at all."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bake.answer import LEAST_TOKENS, TOKENS, Answer, differs, dump, load, parse, record, request
from bake.errors import BakeError

SAID = Answer(prompt_token_ids=(5, 6), token_ids=tuple(range(20)), text="Paris…")
# As vLLM 0.32 answers /v1/completions with return_token_ids, less most of what it adds.
CHOICE: dict[str, Any] = {
    "index": 0,
    "text": "Paris…",
    "logprobs": None,
    "finish_reason": "length",
    "token_ids": [*range(20)],
    "prompt_token_ids": [5, 6],
}


def reply(**changes: Any) -> bytes:
    """A completion, its one choice with ``changes``."""
    body = {"id": "cmpl-1", "object": "text_completion", "choices": [CHOICE | changes]}
    return json.dumps(body).encode()


def test_the_request_is_greedy_and_leaves_the_variants_penalties_as_they_are():
    asked = request("tiny")
    assert asked.path == "/v1/completions"
    assert asked.body["model"] == "tiny"
    assert (asked.body["temperature"], asked.body["seed"]) == (0, 0)
    # Neither an early end nor a missing field may make the answer short.
    assert asked.body["ignore_eos"]
    assert asked.body["return_token_ids"]
    assert asked.body["max_tokens"] == TOKENS >= LEAST_TOKENS
    assert isinstance(asked.body["prompt"], str)
    assert not [name for name in asked.body if "penalty" in name or name.startswith("top")]


def test_an_answer_is_read_from_what_vllm_says():
    assert parse(reply()) == SAID


ODD = {
    "not JSON": (b"<html>", "Invalid JSON"),
    "no object": (b"[]", "Input should be an object"),
    "an error": (b'{"error":{"message":"no"}}', "choices: Field required"),
    "no choice": (b'{"choices":[]}', "choices: "),
    "two choices": (json.dumps({"choices": [CHOICE, CHOICE]}).encode(), "choices: "),
    "no token ids": (reply(token_ids=None), "choices.0.token_ids: "),
    "no prompt token ids": (reply(prompt_token_ids=None), "choices.0.prompt_token_ids: "),
    "an empty prompt": (reply(prompt_token_ids=[]), "choices.0.prompt_token_ids: "),
    "too few tokens": (reply(token_ids=[*range(LEAST_TOKENS - 1)]), "choices.0.token_ids: "),
    "a token that is text": (reply(token_ids=["1"] * 20), "choices.0.token_ids.0: "),
    "a token that is true": (reply(token_ids=[True] * 20), "choices.0.token_ids.0: "),
    "a token below zero": (reply(token_ids=[3, -1] * 10), "choices.0.token_ids.1: "),
    "no text": (reply(text=""), "choices.0.text: "),
    "text that is none": (reply(text=None), "choices.0.text: "),
}


@pytest.mark.parametrize("odd", ODD)
def test_anything_odd_is_refused_and_named(odd):
    raw, words = ODD[odd]
    with pytest.raises(BakeError, match="the fixed prompt: no answer to record: ") as refused:
        parse(raw)
    assert words in str(refused.value)


def test_a_record_survives_being_written_and_has_one_spelling():
    recorded = record(request("tiny"), SAID)
    raw = dump(recorded)
    assert load(raw) == recorded
    told = json.loads(raw)
    assert sorted(told) == ["body", "path", "prompt_token_ids", "schema", "text", "token_ids"]
    assert told["schema"] == 1
    assert raw == (json.dumps(told, sort_keys=True, separators=(",", ":")) + "\n").encode()


def spelled(**changes: Any) -> bytes:
    told = json.loads(dump(record(request("tiny"), SAID))) | changes
    return (json.dumps(told, sort_keys=True, separators=(",", ":")) + "\n").encode()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "Invalid JSON"),
        (spelled(schema=2), "schema: "),
        (spelled(more=1), "more: "),
        (spelled(path="v1/completions"), "path: "),
        (spelled(path="/v1 \n"), "path: "),
        (spelled(body=[]), "body: "),
        (spelled(token_ids=[]), "token_ids: "),
        (spelled() + b"\n", "not in canonical form"),
        (spelled().replace(b'"schema":1', b'"schema": 1'), "not in canonical form"),
    ],
)
def test_a_record_that_is_none_is_refused_and_named(raw, words):
    with pytest.raises(BakeError, match=r"answer\.json: ") as refused:
        load(raw)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"token_ids": (*range(7), 99, *range(8, 20))}, "token 7 of 20: expected 7, got 99\n"),
        ({"token_ids": tuple(range(19))}, "token 19 of 20: expected 19, got the end\n"),
        ({"token_ids": tuple(range(21))}, "token 20 of 20: expected the end, got 20\n"),
        (
            {"prompt_token_ids": (5, 7)},
            "the prompt was read as other tokens: token 1 of 2: expected 6, got 7",
        ),
        ({"text": "Paris."}, "the same tokens are other text: expected 'Paris…', got 'Paris.'"),
    ],
)
def test_where_two_answers_part_is_told_by_position_expected_and_got(changes, words):
    where = differs(SAID, SAID.model_copy(update=changes))
    assert where.startswith(words)
    assert bool(where) == bool(words)


def test_a_record_is_compared_as_it_is_with_an_answer():
    recorded = record(request("tiny"), SAID)
    assert differs(recorded, SAID) == ""
    assert differs(recorded, SAID.model_copy(update={"token_ids": (1,)})).startswith("token 0 of")


IDS = st.lists(st.integers(0, 3), min_size=LEAST_TOKENS, max_size=LEAST_TOKENS + 2).map(tuple)


@given(IDS, IDS)
def test_no_two_different_answers_are_called_the_same(one, other):
    first, second = (Answer(prompt_token_ids=(1,), token_ids=i, text="x") for i in (one, other))
    assert (differs(first, second) == "") == (one == other)
