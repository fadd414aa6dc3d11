"""Every field of vLLM 0.32 that holds token ids, both ways; what cannot be told is refused."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve import translate
from serve.boundary import Boundary
from serve.command import CPU_ENVIRONMENT
from serve.errors import ConfigError
from serve.routes import FORWARDED
from serve.translate import Answers, Refused, Requests, Vocabulary, load_map
from tests.serve.vocabularies import GONE, KEPT, SIZE, VOCABULARY, served

BOUNDARY = Boundary(VOCABULARY)
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SAMPLING = (COMPLETIONS, CHAT, "/v1/chat/completions/batch")
IDS = st.lists(st.sampled_from(KEPT), max_size=6)


def sent(route: str, **fields: Any) -> Any:
    """What the engine would see of a request."""
    return json.loads(BOUNDARY.request(route, json.dumps(fields).encode()))


def returned(route: str, answer: Any) -> Any:
    """What the client would see of an answer."""
    return json.loads(Answers(VOCABULARY).translated(route, json.dumps(answer).encode()))


def refusal(route: str, **fields: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        sent(route, **fields)
    return caught.value


@pytest.mark.parametrize("original", KEPT)
def test_every_kept_token_has_both_ids(original):
    assert VOCABULARY.original(VOCABULARY.served[original]) == original


def test_an_id_past_the_kept_ones_is_no_original_token():
    assert VOCABULARY.original(len(KEPT)) == SIZE
    assert VOCABULARY.original(len(KEPT) + 3) == SIZE + 3
    assert VOCABULARY.original(-1) == -1


def test_a_map_of_the_real_size_is_small():
    vocabulary = Vocabulary.of(range(0, 248_320, 4), 248_320)
    held = [vocabulary.kept, vocabulary.served]
    assert sum(map(sys.getsizeof, held)) < 1.5e6


@pytest.mark.parametrize(
    ("route", "field", "ids", "expected"),
    [
        (COMPLETIONS, "prompt", [3, 99], [served(3), served(99)]),
        (COMPLETIONS, "prompt", [[3], [], [99, 0]], [[served(3)], [], [served(99), served(0)]]),
        (COMPLETIONS, "prompt", "3", "3"),
        (COMPLETIONS, "prompt", ["3", "99"], ["3", "99"]),
        (COMPLETIONS, "prompt", [], []),
        (COMPLETIONS, "prompt", None, None),
        ("/invocations", "prompt", [3, 99], [served(3), served(99)]),
        ("/invocations", "input", [[3], [99]], [[served(3)], [served(99)]]),
        ("/invocations", "stop_token_ids", [3], [served(3)]),
        ("/generative_scoring", "label_token_ids", [3, 99], [served(3), served(99)]),
        ("/generative_scoring", "query", [3, 99], [served(3), served(99)]),
        ("/generative_scoring", "query", "3", "3"),
        ("/generative_scoring", "items", [[3], [99]], [[served(3)], [served(99)]]),
        ("/generative_scoring", "items", ["3"], ["3"]),
        ("/pooling", "input", [3, 99], [served(3), served(99)]),
        ("/classify", "input", [3, 99], [served(3), served(99)]),
        ("/v1/embeddings", "input", [3, 99], [served(3), served(99)]),
        ("/v1/embeddings", "input", [[3], [99]], [[served(3)], [served(99)]]),
        ("/v1/embeddings", "input", "a", "a"),
        ("/v1/embeddings", "input", [{"role": "user"}], [{"role": "user"}]),
        ("/v1/embeddings", "input", [[{"role": "user"}]], [[{"role": "user"}]]),
        ("/detokenize", "tokens", [3, 99], [served(3), served(99)]),
        *(
            (route, field, [3, 99], [served(3), served(99)])
            for route in SAMPLING
            for field in ("stop_token_ids", "allowed_token_ids", "logprob_token_ids")
        ),
        *(
            (route, "logit_bias", {"3": -1.5, " 99": 100}, {str(served(3)): -1.5, "5": 100})
            for route in (*SAMPLING, "/v1/responses")
        ),
        ("/v1/responses", "stop_token_ids", [3], [served(3)]),
        *(
            (
                route,
                "kv_transfer_params",
                {"do_remote_prefill": True, "prompt_token_ids": [3], "token_ids": [3]},
                {"do_remote_prefill": True, "prompt_token_ids": [served(3)], "token_ids": [3]},
            )
            for route in (*SAMPLING, "/v1/responses", "/v1/messages", "/cohere/v2/chat")
        ),
    ],
)
def test_ids_in_a_request_become_those_of_the_engine(route, field, ids, expected):
    others = {"model": "tiny", "seed": 3, "messages": [{"prompt": [3], "stop_token_ids": [3]}]}
    assert sent(route, **others, **{field: ids}) == {**others, field: expected}


@pytest.mark.parametrize("field", ["stop_token_ids", "allowed_token_ids", "logprob_token_ids"])
def test_null_and_nothing_are_left_to_vllm(field):
    for value in (None, [], "3", 3, {"3": 1}):
        assert sent(CHAT, **{field: value})[field] == value


def test_what_loses_nothing_is_left_out():
    assert sent(CHAT, stop_token_ids=[3, GONE])["stop_token_ids"] == [served(3)]
    assert sent(CHAT, stop_token_ids=[GONE])["stop_token_ids"] == []
    assert sent(CHAT, allowed_token_ids=[GONE, 3])["allowed_token_ids"] == [served(3)]
    bias = {str(GONE): -100, "3": 2, "52": 0, "53": "-1"}
    assert sent(CHAT, logit_bias=bias)["logit_bias"] == {str(served(3)): 2}


def test_a_bias_that_vllm_would_not_understand_is_left_to_it():
    assert sent(CHAT, logit_bias={"three": 1})["logit_bias"] == {"three": 1}
    assert sent(CHAT, logit_bias=[3])["logit_bias"] == [3]


@pytest.mark.parametrize(
    ("route", "fields", "names"),
    [
        (COMPLETIONS, {"prompt": [3, GONE]}, "prompt"),
        (COMPLETIONS, {"prompt": [[3], [GONE]]}, "prompt"),
        ("/v1/embeddings", {"input": [GONE]}, "input"),
        ("/detokenize", {"tokens": [GONE]}, "tokens"),
        (CHAT, {"logprob_token_ids": [3, GONE]}, "logprob_token_ids"),
        (CHAT, {"allowed_token_ids": [GONE, 52]}, "allowed_token_ids"),
        (CHAT, {"logit_bias": {str(GONE): 0.1}}, "logit_bias"),
        (CHAT, {"logit_bias": {str(GONE): "nan"}}, "logit_bias"),
        (CHAT, {"logit_bias": {str(GONE): None}}, "logit_bias"),
    ],
)
def test_a_pruned_token_is_refused_by_its_id_where_it_would_be_missed(route, fields, names):
    refused = refusal(route, **fields)
    assert refused.field == names
    assert refused.code == "token_id_pruned"
    assert str(GONE) in str(refused)
    assert "; " in str(refused)


@pytest.mark.parametrize("outside", [-1, SIZE, 10**30])
@pytest.mark.parametrize(
    "field", ["prompt", "stop_token_ids", "allowed_token_ids", "logprob_token_ids", "logit_bias"]
)
def test_an_id_outside_the_original_vocabulary_is_refused(field, outside):
    value = {str(outside): -1} if field == "logit_bias" else [3, outside]
    refused = refusal(COMPLETIONS, **{field: value})
    assert refused.field == field
    assert refused.code == "token_id_out_of_vocabulary"
    assert f"{outside} is out of vocabulary" in str(refused)


def test_more_ids_than_any_model_reads_are_refused_before_each_is_looked_at(monkeypatch):
    monkeypatch.setattr(translate, "MOST_IDS", 4)
    assert sent(COMPLETIONS, prompt=[3] * 4)
    refused = refusal(COMPLETIONS, prompt=[3] * 5)
    assert (refused.field, refused.code) == ("prompt", "too_many_token_ids")


def test_a_bias_of_more_tokens_than_there_are_is_refused():
    bias = dict.fromkeys(map(str, range(SIZE)), -1)
    assert sent(CHAT, logit_bias=bias)
    assert f"more than {SIZE} members" in str(refusal(CHAT, logit_bias=bias | {"more": 1}))


@pytest.mark.parametrize(
    "prompt",
    [[3, "3"], [3.0], [True], [[3], 3], [["3"]], [[None]], [[3], [{"role": "user"}]], [3, None]],
)
def test_what_vllm_might_read_as_an_id_never_goes_untranslated(prompt):
    assert refusal(COMPLETIONS, prompt=prompt).code == "invalid_token_id"


@pytest.mark.parametrize(
    "tag",
    [
        {"type": "token", "token": 3},
        {"type": "any_tokens", "exclude_tokens": ["a", 3]},
        {"type": "tag", "begin": {"type": "token", "token": 3}, "content": {"type": "any_text"}},
        {"type": "token_triggered_tags", "trigger_tokens": [3]},
        {"type": "token_dispatch", "rules": [[3, {"type": "any_text"}]]},
        {"type": "sequence", "elements": [{"type": "grammar", "grammar": "root ::= Token(3)"}]},
    ],
)
def test_a_structural_tag_that_names_ids_is_refused(tag):
    whole = {"type": "structural_tag", "format": tag}
    for fields in (
        {"response_format": whole},
        {"structured_outputs": {"structural_tag": whole}},
        {"structured_outputs": {"structural_tag": json.dumps(whole)}},
    ):
        refused = refusal(CHAT, **fields)
        assert refused.code == "token_id_in_grammar"
        assert [refused.field] == list(fields)


@pytest.mark.parametrize(
    "grammar",
    [
        "root ::= Token(9906)",
        "root ::= 'a' ExcludeToken ( 3, 4 )",
        "root ::= Token # five\n (5)",
        "root ::= TokenTagDispatch((3, a))",
        "start: <[3]>",
        'start: "a" <[3-5, 8]>',
        "start: <[^3]>",
    ],
)
def test_a_grammar_that_names_ids_is_refused(grammar):
    refused = refusal(CHAT, structured_outputs={"grammar": grammar})
    assert (refused.field, refused.code) == ("structured_outputs", "token_id_in_grammar")


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "structural_tag", "format": {"type": "token", "token": "a"}}},
        {"response_format": {"type": "json_schema", "json_schema": {"type": "token", "token": 3}}},
        {"response_format": None, "structured_outputs": None},
        {"structured_outputs": {"structural_tag": "{no json"}},
        {"structured_outputs": {"json": {"type": ["token"], "token": 3}}},
        {"response_format": {"type": "structural_tag", "format": {"type": ["token"]}}},
        {"structured_outputs": {"grammar": 'root ::= MyToken ("a") [^<[] Tokens'}},
        {"structured_outputs": {"grammar": None}},
    ],
)
def test_other_grammars_pass(fields):
    assert sent(CHAT, **fields) == fields


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"stop_token_ids":[3],"stop_token_ids":[51]}',
        b"\xff",
        b"[" * 9999,
        b'{"prompt":[3]}x',
    ],
)
def test_a_body_that_cannot_be_read_is_refused_not_passed_on(body):
    with pytest.raises(Refused) as caught:
        BOUNDARY.request(COMPLETIONS, body)
    assert caught.value.code == "invalid_json"


def test_a_request_is_otherwise_the_same_to_the_byte():
    body = rb'{ "z":1E5,"prompt" : [3 , 99],"a":"\u00e9","n":123456789012345678901, "f":0.10 }'
    expected = body.replace(b"[3 , 99]", b"[1,5]")
    assert BOUNDARY.request(COMPLETIONS, body) == expected


def test_a_route_without_ids_is_not_even_read():
    for route in (
        "/v1/messages/count_tokens",
        "/tokenize",
        "/v1/score",
        "/v1/rerank",
        "/v1/models",
    ):
        assert BOUNDARY.request(route, b'{"stop_token_ids":[3],') == b'{"stop_token_ids":[3],'


def logprob(token: str, data: str | None = None, **more: Any) -> dict[str, Any]:
    return {"token": token, "logprob": -0.5, "bytes": list((data or token).encode()), **more}


PROMPT_LOGPROBS = [None, {"3": {"logprob": -1e-07, "rank": 1, "decoded_token": "3"}}]
CHOICE = {"index": 3, "finish_reason": "stop", "text": 'stop_reason":3 token_id:3'}
# Answers in the engine's numbering are made of those in the clients', by ``in_engine_ids``.
ANSWERS: list[tuple[str, Any]] = [
    (COMPLETIONS, {"choices": [CHOICE | {"token_ids": [3, 99], "prompt_token_ids": [0]}]}),
    (COMPLETIONS, {"choices": [CHOICE | {"stop_reason": 99}], "created": 3}),
    (COMPLETIONS, {"choices": [CHOICE | {"prompt_logprobs": PROMPT_LOGPROBS}]}),
    (
        COMPLETIONS,
        {
            "choices": [
                CHOICE
                | {
                    "logprobs": {
                        "tokens": ["token_id:3", "token_id:99"],
                        "top_logprobs": [{"token_id:3": -0.5, "token_id:0": -1}, None],
                        "token_logprobs": [-0.5, None],
                        "text_offset": [0, 10],
                    }
                }
            ]
        },
    ),
    (
        CHAT,
        {
            "choices": [
                {
                    "message": {"content": "token_id:3"},
                    "token_ids": [99],
                    "logprobs": {
                        "content": [
                            logprob("token_id:3", "x", top_logprobs=[logprob("token_id:99")])
                        ]
                    },
                }
            ],
            "prompt_token_ids": [90, 8],
            "prompt_logprobs": PROMPT_LOGPROBS,
        },
    ),
    (CHAT, {"choices": [{"delta": {"content": "a"}, "token_ids": [7]}]}),
    ("/v1/chat/completions/batch", {"choices": [{"token_ids": [7]}, {"token_ids": [8]}]}),
    ("/invocations", {"choices": [{"token_ids": [7]}]}),
    ("/cohere/v2/chat", {"logprobs": [{"text": "a", "token_ids": [7], "logprobs": [-0.5]}]}),
    ("/v1/audio/transcriptions", {"segments": [{"id": 0, "tokens": [7, 8]}]}),
    ("/v1/audio/translations", {"choices": [{"delta": {"content": "a"}, "stop_reason": 7}]}),
    ("/tokenize", {"count": 3, "max_model_len": 90, "tokens": [3, 90], "token_strs": ["3", "9"]}),
    (
        "/v1/responses",
        {
            "input_messages": [{"message": "3", "tokens": [3], "type": "raw_message_tokens"}],
            "output_messages": [{"message": "3", "tokens": [99, 0]}],
            "usage": {"output_tokens": 3},
        },
    ),
    (
        "/v1/responses/{response_id}",
        {"type": "response.completed", "response": {"input_messages": [{"tokens": [3]}]}},
    ),
]


def in_engine_ids(value: Any, key: str = "") -> Any:
    """The answer as the engine gives it: made apart from the code under test."""
    if isinstance(value, dict):
        named = {k: in_engine_ids(v, k) for k, v in value.items()}
        if key == "prompt_logprobs":
            return {str(served(int(k))): v for k, v in value.items()}
        return {renamed(k) if key == "top_logprobs" else k: v for k, v in named.items()}
    if isinstance(value, list) and key == "bytes":
        return list(renamed(bytes(value).decode()).encode())
    if isinstance(value, list):
        return [in_engine_ids(item, key) for item in value]
    if type(value) is int and key in ("token_ids", "prompt_token_ids", "tokens", "stop_reason"):
        return served(value)
    return renamed(value) if isinstance(value, str) and key in ("tokens", "token") else value


def renamed(token: str) -> str:
    if not token.startswith("token_id:"):
        return token
    return f"token_id:{served(int(token.removeprefix('token_id:')))}"


@pytest.mark.parametrize(("route", "answer"), ANSWERS, ids=range(len(ANSWERS)))
def test_ids_in_an_answer_become_those_of_the_client(route, answer):
    engines = in_engine_ids(answer)
    assert engines != answer
    assert returned(route, engines) == answer


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices":[{"text":"token_ids\\":[3]","token_ids":null,"stop_reason":"3"}]}',
        b'{"choices":[{"text":"stop_reason\\":3"}], "kv_transfer_params":{"token_ids":[3]}}',
        b'{"choices":[{"message":{"content":"token_id:3"},"stop_reason":null}]}',
        b'{"choices":[{"logprobs":null,"token_ids":null}],"prompt_logprobs":null,"metrics":{}}',
        b'{"choices":[{"logprobs":{"tokens":["a"],"top_logprobs":[null]}}]}',
    ],
)
def test_an_answer_without_ids_is_the_very_same(body):
    assert Answers(VOCABULARY).translated(COMPLETIONS, body) is body


def test_an_answer_is_otherwise_the_same_to_the_byte():
    body = (
        rb'{"id":"1","choices":[{"p":1e-07,"token_ids":[0, 1],"text":"\u00e9"}],"usage":{"a":1.0}}'
    )
    expected = body.replace(b"[0, 1]", b"[90,3]")
    assert Answers(VOCABULARY).translated(COMPLETIONS, body) == expected


@given(IDS, IDS, st.lists(st.sampled_from(KEPT), unique=True, max_size=4))
def test_in_and_out_again_is_the_identity(prompt, stops, favoured):
    bias = {str(token): number / 2 for number, token in enumerate(favoured)}
    engine = sent(COMPLETIONS, prompt=prompt, stop_token_ids=stops, logit_bias=bias)
    answer = {"choices": [{"prompt_token_ids": engine["prompt"], "token_ids": stops}]}
    answer["choices"][0]["token_ids"] = engine["stop_token_ids"]
    answer["prompt_logprobs"] = [engine["logit_bias"]]
    back = returned(COMPLETIONS, answer)
    assert back["choices"] == [{"prompt_token_ids": prompt, "token_ids": stops}]
    assert back["prompt_logprobs"] == [bias]


@given(st.permutations(range(40)), st.integers(0, 40), st.lists(st.integers(0, 39)))
def test_any_vocabulary_tells_what_is_left_of_it(order, size, asked):
    vocabulary = Vocabulary.of(order[:size], 40)
    left = [token for token in asked if token in order[:size]]
    body = json.dumps({"stop_token_ids": asked}).encode()
    engine = json.loads(Boundary(vocabulary).request(CHAT, body))["stop_token_ids"]
    assert [vocabulary.original(token) for token in engine] == left


def test_every_route_is_known():
    """A route that is added is looked at: does it hold ids?"""
    without = {
        "/v1/messages/count_tokens",
        "/v1/systemone",
        "/v2/embed",
        "/score",
        "/v1/score",
        "/rerank",
        "/v1/rerank",
        "/v2/rerank",
        "/v1/models",
        "/tokenizer_info",
        "/version",
        "/load",
        "/ping",
        "/kv_event_sources",
    }
    requests, answers = Requests(VOCABULARY), Answers(VOCABULARY)
    with_ids = {r.path for r in FORWARDED if requests.shape(r.path) or answers.shape(r.path)}
    assert with_ids | without == {route.path for route in FORWARDED}
    assert not with_ids & without


# Asked of vLLM itself: what a later one adds shows here, and wants a line in ``translate``.
FIELDS = """
import json, re
from pydantic import BaseModel
import vllm.entrypoints.openai.completion.protocol as a
import vllm.entrypoints.openai.chat_completion.protocol as b
import vllm.entrypoints.openai.responses.protocol as c
import vllm.entrypoints.anthropic.protocol as d
import vllm.entrypoints.serve.tokenize.protocol as e
import vllm.entrypoints.pooling.embed.protocol as f
import vllm.entrypoints.pooling.scoring.protocol as g
import vllm.entrypoints.generate.generative_scoring.serving as i
import vllm.entrypoints.generate.structured_decisions.protocol as j
import vllm.entrypoints.pooling.base.protocol as k
import vllm.entrypoints.pooling.pooling.protocol as l
import vllm.entrypoints.pooling.classify.protocol as m
import vllm.entrypoints.speech_to_text.transcription.protocol as n
import vllm.entrypoints.speech_to_text.translation.protocol as o
NAMES = "prompt_logprobs prompt input query items tokens stop_reason"
IDS = re.compile(rf"token_ids$|logit_bias|^({NAMES.replace(' ', '|')})$")
found = set()
for module in (a, b, c, d, e, f, g, i, j, k, l, m, n, o):
    for model in vars(module).values():
        if isinstance(model, type) and issubclass(model, BaseModel):
            if model.__module__ == module.__name__:
                found |= {f"{model.__name__}.{n}" for n in model.model_fields if IDS.search(n)}
print(json.dumps(sorted(found)))
"""
REQUEST = "logit_bias logprob_token_ids return_token_ids return_tokens_as_token_ids"
CHOICES = "stop_reason token_ids"
KNOWN = {
    "AnthropicContentBlock": "input",  # of a tool: no ids
    "AnthropicDelta": "stop_reason",  # in words
    "AnthropicMessagesResponse": "stop_reason",
    "BatchChatCompletionRequest": REQUEST,
    "ChatCompletionRequest": REQUEST + " allowed_token_ids prompt_logprobs stop_token_ids",
    "ChatCompletionResponse": "prompt_logprobs prompt_token_ids",
    "ChatCompletionResponseChoice": CHOICES,
    "ChatCompletionResponseStreamChoice": CHOICES,
    "ChatCompletionStreamResponse": "prompt_token_ids",
    "CompletionLogProbs": "tokens",
    "CompletionRequest": REQUEST + " allowed_token_ids prompt_logprobs stop_token_ids prompt",
    "CompletionResponseChoice": CHOICES + " prompt_logprobs prompt_token_ids",
    "CompletionResponseStreamChoice": CHOICES + " prompt_token_ids",
    "DetokenizeRequest": "tokens",
    "DetokenizeResponse": "prompt",  # text
    "EmbeddingBatchChatInputRequest": "input",  # messages
    "EmbeddingChatInputRequest": "input",
    "EmbeddingCompletionRequest": "input",
    "ResponseRawMessageAndToken": "tokens",
    "ResponsesRequest": "input logit_bias prompt stop_token_ids",  # input and prompt: no ids
    "ResponsesResponse": "prompt",
    "ClassificationCompletionRequest": "input",
    "CompletionRequestMixin": "input",  # of those that pool
    "GenerativeScoringRequest": "items label_token_ids query",
    "PoolingCompletionRequest": "input",
    "RerankRequest": "query",  # text
    "ScoreQueriesItemsRequest": "items",  # texts
    "TokenizeCompletionRequest": "prompt",  # text
    "TokenizeResponse": "tokens",
    "TranscriptionRequest": "prompt",  # text
    "TranscriptionResponseStreamChoice": "stop_reason",
    "TranscriptionSegment": "tokens",
    "TranslationRequest": "prompt",  # text
    "TranslationResponseStreamChoice": "stop_reason",
    "TranslationSegment": "tokens",
}


@pytest.mark.torch
@pytest.mark.timeout(300)
def test_vllm_has_no_other_fields_of_ids():
    child = subprocess.run(
        [sys.executable, "-c", FIELDS],
        env={**os.environ, **CPU_ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    found = json.loads(child.stdout.splitlines()[-1])
    assert found == sorted(f"{model}.{name}" for model in KNOWN for name in KNOWN[model].split())


# Its class names none of these: they pass as what it does not know.
BATCH = """
import json, sys
from vllm.entrypoints.openai.chat_completion.protocol import BatchChatCompletionRequest
batch = BatchChatCompletionRequest.model_validate_json(sys.argv[1])
one = batch.to_chat_completion_request(batch.messages[0])
print(json.dumps([one.thinking_token_budget, one.stop_token_ids, one.allowed_token_ids]))
"""


@pytest.mark.torch
@pytest.mark.timeout(300)
def test_a_batch_hands_on_what_was_put_into_its_body():
    fields = {"messages": [[{"role": "user", "content": "a"}]], "model": "m"}
    body = json.dumps(fields | {"stop_token_ids": [3], "allowed_token_ids": [99]}).encode()
    asked = Boundary(VOCABULARY, 24).request("/v1/chat/completions/batch", body)
    child = subprocess.run(
        [sys.executable, "-c", BATCH, asked.decode()],
        env={**os.environ, **CPU_ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    assert json.loads(child.stdout.splitlines()[-1]) == [24, [served(3)], [served(99)]]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"schema":2,"original_size":3,"kept":[]}',
        '{"schema":1,"original_size":3,"kept":[3]}',
        '{"schema":1,"original_size":3,"kept":[1,1]}',
        '{"schema":1,"original_size":3,"kept":[-1]}',
        '{"schema":1,"original_size":3,"kept":["1"]}',
        '{"schema":1,"original_size":"3","kept":[1]}',
        '{"schema":1,"original_size":3,"kept":[5000000000]}',
    ],
)
def test_a_damaged_map_is_told(tmp_path, text):
    path = tmp_path / "vocab_map.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"vocab_map\.json") as caught:
        load_map(path)
    assert "derive" in caught.value.hint


def test_a_map_is_read(tmp_path):
    path = tmp_path / "vocab_map.json"
    path.write_text(json.dumps({"schema": 1, "original_size": SIZE, "kept": KEPT, "more": 1}))
    assert load_map(path) == VOCABULARY
