"""The ``openai`` client gets through the gateway exactly what it gets from vLLM directly."""

import json
import time
from functools import cache
from typing import Any

import httpx2
import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from scripts.eval_parity import restarts
from scripts.served import Served

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

TALK = [{"role": "user", "content": "What is the capital of France?"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "known": {"type": "boolean"}},
    "required": ["city", "known"],
    "additionalProperties": False,
}
# What differs between any two answers to the same request.
CHANGING = ("id", "created", "request_id")

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
}


# Kept until the run ends: a client that is thrown away warns of its open socket.
@cache
def via(served: Served) -> OpenAI:
    return OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0)


@cache
def direct(served: Served) -> OpenAI:
    """The same client, past the gateway: straight to vLLM's socket."""
    client = httpx2.Client(transport=httpx2.HTTPTransport(uds=str(served.socket)))
    return OpenAI(base_url="http://engine/v1", api_key="unused", max_retries=0, http_client=client)


def settled(answer: Any) -> dict[str, Any]:
    return {k: v for k, v in answer.model_dump().items() if k not in CHANGING}


def chat(client, **fields):
    return client.chat.completions.create(
        **{"model": "tiny", "messages": TALK, "max_tokens": 24, **fields}
    )


@pytest.mark.parametrize("case", CHATS)
def test_a_chat_is_the_same_through_the_gateway(seq8_best, case):
    through = chat(via(seq8_best), **CHATS[case])
    assert settled(through) == settled(chat(direct(seq8_best), **CHATS[case]))
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
    ],
    ids=["greedy", "two choices", "logprobs", "echo and stop", "two prompts"],
)
def test_a_completion_is_the_same_through_the_gateway(seq8_best, fields):
    request = {"model": "tiny", "prompt": "In the beginning", "max_tokens": 16, **fields}
    through = via(seq8_best).completions.create(**request)
    assert settled(through) == settled(direct(seq8_best).completions.create(**request))


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
    grammar = r'\{"city": "[A-Z][a-z]{2,9}", "known": (true|false)\}'
    fields = {"temperature": 0, "max_tokens": 64}
    answer = chat(via(seq8_best), **fields, extra_body={"structured_outputs": {"regex": grammar}})
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
