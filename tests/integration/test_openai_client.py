"""The ``openai`` client gets through the gateway exactly what it gets from vLLM directly."""

import json
import time
from collections.abc import Callable
from itertools import groupby
from typing import Any

import pytest
from openai import APIStatusError, BadRequestError, NotFoundError, OpenAI

from scripts.eval_parity import restarts
from tests.integration.asked import NAMED, QUESTION, REGEX, SCHEMA, TALK, TOOL
from tests.integration.clients import direct, settled, via

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

CHATS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "seeded sampling": {"temperature": 0.8, "seed": 7},
    "stop string": {"temperature": 0, "stop": ["is"]},
    "logprobs": {"temperature": 0, "logprobs": True, "top_logprobs": 3},
    "two choices": {"temperature": 0.8, "seed": 11, "n": 2},
    "structured output": {
        "temperature": 0,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "capital", "schema": SCHEMA},
        },
    },
    "vLLM's own fields": {
        "temperature": 0,
        "extra_body": {"top_k": 5, "chat_template_kwargs": {"enable_thinking": True}},
    },
    "the variant's name": {"model": "tiny:seq8-best", "temperature": 0},
    "one of two words": {
        "temperature": 0,
        "extra_body": {"structured_outputs": {"choice": ["yes", "no"]}},
    },
    "token ids": {"temperature": 0, "extra_body": {"return_token_ids": True}},
    "tools that may not be called": {"temperature": 0, "tools": [TOOL], "tool_choice": "none"},
}
# vLLM streams none of these.
WHOLE_CHATS = CHATS | {
    "logprobs of the prompt": {"temperature": 0, "extra_body": {"prompt_logprobs": 1}}
}
LONG = [{"role": "user", "content": "word " * 5000}]
RESPONSES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "instructions and history": {
        "instructions": "Be brief.",
        "input": [*TALK, {"role": "assistant", "content": "Paris."}, *TALK],
    },
    "structured output": {
        "text": {"format": {"type": "json_schema", "name": "capital", "schema": SCHEMA}}
    },
    "logprobs": {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
}


def chat(client, **fields):
    return client.chat.completions.create(
        **{"model": "tiny", "messages": TALK, "max_tokens": 24, **fields}
    )


@pytest.mark.parametrize("case", WHOLE_CHATS)
def test_a_chat_is_the_same_through_the_gateway(seq8_best, case):
    through = chat(via(seq8_best), **WHOLE_CHATS[case])
    assert settled(through) == settled(chat(direct(seq8_best), **WHOLE_CHATS[case]))
    assert through.usage.completion_tokens > 0


@pytest.mark.parametrize("case", CHATS)
def test_a_streamed_chat_says_the_same_through_the_gateway(seq8_best, case):
    fields = CHATS[case] | {"stream": True, "stream_options": {"include_usage": True}}
    through = said(chat(via(seq8_best), **fields))
    assert through == said(chat(direct(seq8_best), **fields))
    assert through["usage"]["completion_tokens"] > 0


def said(stream) -> dict[str, Any]:
    """What a stream amounts to; how it is cut into chunks is the engine's timing."""
    chunks = [settled(chunk) for chunk in stream]
    choices: dict[int, dict[str, Any]] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        whole = choices.setdefault(choice["index"], {"text": "", "logprobs": [], "ends": []})
        whole["text"] += choice["delta"].get("content") or ""
        whole["logprobs"] += (choice.get("logprobs") or {}).get("content") or []
        whole["ends"] += [choice["finish_reason"]] if choice["finish_reason"] else []
    return {"choices": choices, "usage": chunks[-1]["usage"], "model": chunks[0]["model"]}


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0},
        {"temperature": 0.8, "seed": 3, "n": 2},
        {"temperature": 0, "logprobs": 2},
        {"temperature": 0, "stop": "\n", "echo": True},
        {"temperature": 0, "prompt": ["In the beginning", "The capital of Spain"]},
        {"temperature": 0, "prompt": [100, 200, 300]},
        {"temperature": 0, "prompt": [[994, 267, 3722], [994, 267]]},
        {"temperature": 0, "logprobs": 1, "echo": True, "max_tokens": 0},
    ],
    ids=[
        "greedy",
        "two choices",
        "logprobs",
        "echo and stop",
        "two prompts",
        "token ids",
        "two prompts of token ids",
        "echo alone",
    ],
)
def test_a_completion_is_the_same_through_the_gateway(seq8_best, fields):
    request = {"model": "tiny", "prompt": "In the beginning", "max_tokens": 16, **fields}
    through = via(seq8_best).completions.create(**request)
    assert settled(through) == settled(direct(seq8_best).completions.create(**request))


def test_every_chunk_of_a_stream_tells_the_usage_so_far(seq8_best):
    options = {"include_usage": True, "continuous_usage_stats": True}
    fields = {"temperature": 0, "stream": True, "stream_options": options}
    counts, counts_directly = (
        [chunk.usage.completion_tokens for chunk in chat(client, **fields)]
        for client in (via(seq8_best), direct(seq8_best))
    )
    assert counts == sorted(counts)
    assert counts[-1] == counts_directly[-1] > 1


@pytest.mark.parametrize("case", RESPONSES)
def test_a_response_is_the_same_through_the_gateway(seq8_best, case):
    through = respond(via(seq8_best), **RESPONSES[case])
    assert settled(through) == settled(respond(direct(seq8_best), **RESPONSES[case]))
    assert through.output_text


@pytest.mark.parametrize("case", RESPONSES)
def test_a_streamed_response_says_the_same_through_the_gateway(seq8_best, case):
    fields = RESPONSES[case] | {"stream": True}
    through = told(respond(via(seq8_best), **fields))
    assert through == told(respond(direct(seq8_best), **fields))
    assert through["kinds"][0] == "response.created"
    assert through["kinds"][-1] == "response.completed"


def respond(client, **fields):
    return client.responses.create(
        **{"model": "tiny", "input": QUESTION, "max_output_tokens": 40, "temperature": 0, **fields}
    )


def told(stream) -> dict[str, Any]:
    """What the events of a response amount to."""
    events = list(stream)
    return {
        "kinds": [kind for kind, _ in groupby(events, lambda event: event.type)],
        "text": "".join(event.delta for event in events if event.type.endswith("_text.delta")),
        "order": [event.sequence_number for event in events] == list(range(len(events))),
        "whole": settled(events[-1].response),
    }


def test_the_clients_own_stream_puts_a_chat_together(seq8_best):
    whole, directly = (_put_together(client) for client in (via(seq8_best), direct(seq8_best)))
    assert settled(whole) == settled(directly)
    said = chat(via(seq8_best), temperature=0).choices[0].message.content
    assert whole.choices[0].message.content == said


def _put_together(client):
    fields = {"model": "tiny", "messages": TALK, "max_tokens": 24, "temperature": 0}
    with client.chat.completions.stream(**fields) as stream:
        return stream.get_final_completion()


def test_a_seed_gives_the_same_sample_twice(seq8_best):
    first, second = (
        chat(via(seq8_best), temperature=1.0, seed=5).choices[0].message for _ in range(2)
    )
    assert first == second


def test_a_stop_string_ends_the_text_before_it(seq8_best):
    whole = chat(via(seq8_best), temperature=0).choices[0].message.content
    word = whole.split()[2]
    cut = chat(via(seq8_best), temperature=0, stop=[word]).choices[0]
    assert cut.message.content == whole[: whole.index(word)]
    assert cut.finish_reason == "stop"


def test_structured_output_fits_its_grammar(seq8_best):
    # Rejected drafts make steps of fewer than K+1 tokens: what `conv_state` mends.
    fields = {"temperature": 0, "max_tokens": 64}
    answer = chat(via(seq8_best), **fields, extra_body={"structured_outputs": {"regex": REGEX}})
    value = json.loads(answer.choices[0].message.content)
    assert set(value) == {"city", "known"}


def test_sampling_with_drafts_stays_in_the_language(seq8_best):
    """Noise, were temperatures not spread over drafted tokens: what `expand_values` mends."""
    sampled = [chat(via(seq8_best), temperature=0.5, seed=seed) for seed in range(5)]
    said = [answer.choices[0].message.content for answer in sampled]
    assert sum("The capital of France is" in text for text in said) >= 4, said


def test_the_models_list_names_the_variant(seq8_best):
    assert [model.id for model in via(seq8_best).models.list()] == [
        "tiny",
        "tiny:seq8-best",
    ]


def test_an_error_of_the_engine_arrives_as_the_engine_said_it(seq8_best):
    errors = []
    for client in (via(seq8_best), direct(seq8_best)):
        with pytest.raises(BadRequestError) as caught:
            chat(client, temperature=-1)
        errors.append(caught.value.body)
    assert errors[0] == errors[1]


# What this engine does not do, or not for this request, and how a client hears of it.
REFUSED: dict[str, Callable[[OpenAI], object]] = {
    "tools it has no parser for": lambda client: chat(client, tools=[TOOL]),
    "a named tool": lambda client: chat(client, tools=[TOOL], tool_choice=NAMED),
    "a prompt that is too long": lambda client: chat(client, messages=LONG),
    "a stream of no choices": lambda client: chat(client, n=0, stream=True),
    "a response by its id": lambda client: client.responses.retrieve("resp_unheard_of"),
    "to cancel a response": lambda client: client.responses.cancel("resp_unheard_of"),
    "a response in the background": lambda client: respond(client, background=True),
    "after another response": lambda client: respond(
        client, previous_response_id="resp_unheard_of"
    ),
    "embeddings": lambda client: client.embeddings.create(model="tiny", input="one"),
    "a transcription": lambda client: client.audio.transcriptions.create(
        model="tiny", file=("a.wav", b"RIFF", "audio/wav")
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_reaches_the_client_as_the_engine_put_it(seq8_best, case):
    heard = []
    for client in (via(seq8_best), direct(seq8_best)):
        with pytest.raises(APIStatusError) as caught:
            REFUSED[case](client)
        heard.append((type(caught.value), caught.value.status_code, caught.value.body))
    assert heard[0] == heard[1]


def test_an_unknown_model_is_not_found(seq8_best):
    with pytest.raises(NotFoundError, match="does not exist"):
        chat(via(seq8_best), model="gpt-unheard-of")


def test_a_client_that_leaves_stops_its_generation(seq8_best):
    def counted(name: str) -> float:
        lines = seq8_best.get("/metrics").decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"vllm:{name}{{"))

    before = counted("generation_tokens_total")
    fields = {"max_tokens": 3000, "temperature": 1, "extra_body": {"ignore_eos": True}}
    with chat(via(seq8_best), stream=True, **fields) as stream:
        next(iter(stream))
    deadline = time.monotonic() + 120
    while counted("num_requests_running") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert counted("num_requests_running") == 0
    assert 0 < counted("generation_tokens_total") - before < 3000


def test_a_seeded_prompt_of_more_than_one_step_is_answered_and_always_alike(seq8_best):
    """Stock vLLM 0.32 dies of it on a CPU: see ``serve.plugin.seeded_chunks``."""
    fields = {"model": "tiny", "temperature": 0.8, "seed": 1, "max_tokens": 16}
    # More than the 2048 tokens that a step takes at most; no prompt of this test begins alike.
    prompts = [[first, *range(100, 3100)] for first in (7, 8)]
    texts = [
        [via(seq8_best).completions.create(prompt=prompt, **fields).choices[0].text for _ in "ab"]
        for prompt in prompts
    ]
    assert all(one == again for one, again in texts)
    assert restarts(seq8_best) == 0
