"""The gateway of a pruned and of a capped variant over HTTP: ids both ways, streams, refusals."""

import asyncio
import base64
import json
import tempfile
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from serve.boundary import LARGE_BYTES, MOST_MEMBERS, Back, Boundary, boundary_of
from serve.errors import ConfigError
from serve.model import Model
from serve.plan import Plan
from serve.routes import FORWARDED
from serve.target import Target
from serve.translate import Refused
from serve.variant import Variant
from tests.serve.live import DEADLINE_SECONDS, MODEL, Gateway, fake_command, gateway, until_ready
from tests.serve.vocabularies import GONE, KEPT, SIZE, VOCABULARY, served

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
BUDGET = 24


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def pruned() -> AsyncIterator[Gateway]:
    with tempfile.TemporaryDirectory() as folder:
        async with gateway(Path(folder), boundary=Boundary(VOCABULARY)) as started:
            await until_ready(started.engine)
            yield started


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def capped() -> AsyncIterator[Gateway]:
    with tempfile.TemporaryDirectory() as folder:
        async with gateway(Path(folder), boundary=Boundary(budget=BUDGET)) as started:
            await until_ready(started.engine)
            yield started


async def seen(through: Gateway, route: str, body: bytes) -> bytes:
    """The body as it arrived at the engine."""
    async with through.client.post(route, data=body, headers={"x-fake": "seen"}) as answer:
        assert answer.status == 200, await answer.text()
        return base64.b64decode((await answer.json())["body"])


async def said(through: Gateway, route: str, say: str | list[str]) -> bytes:
    """What the client gets of an answer of the engine, whole or in pieces."""
    headers = {"x-fake": "say"}
    async with through.client.post(route, json={"say": say}, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        length = answer.headers.get("content-length")
        body = await answer.read()
        assert length is None or int(length) == len(body)
        return body


def event(value: object) -> str:
    return f"data: {json.dumps(value)}\n\n"


def delta(**fields: Any) -> dict[str, Any]:
    return {"id": "1", "choices": [{"index": 0, "delta": {"content": "é\n data: "}, **fields}]}


def stream(ids: Any) -> str:
    """A stream in the numbering that ``ids`` makes of the original one."""
    return "".join(
        [
            event(delta() | {"prompt_token_ids": ids([90, 3])}),
            event(delta(token_ids=ids([99]), stop_reason=None)),
            event(delta(text='"token_ids":[3]')),
            ": a comment\n\nevent: x\r\ndata:" + json.dumps(delta(token_ids=ids([0]))) + "\r\n\r\n",
            event(delta(token_ids=ids([]), stop_reason=ids([8])[0])),
            event({"choices": [], "usage": {"total_tokens": 3}}),
            "data: [DONE]\n\n",
        ]
    )


CLIENTS = stream(list)
ENGINES = stream(lambda ids: [served(one) for one in ids])


def settled(body: bytes) -> bytes:
    """Without the blank after a comma in a list of ids, which is the translation's own."""
    return body.replace(b"[90, 3]", b"[90,3]")


def test_a_stream_may_be_cut_at_every_byte():
    whole = ENGINES.encode()
    expected = settled(CLIENTS.encode())
    back = Boundary(VOCABULARY).back(CHAT)
    assert back
    for at in range(len(whole) + 1):
        events = back.events()
        pieces = [events.feed(whole[:at]), events.feed(whole[at:]), events.end()]
        assert b"".join(pieces) == expected
    events = back.events()
    pieces = [events.feed(whole[at : at + 1]) for at in range(len(whole))]
    assert b"".join([*pieces, events.end()]) == expected


@given(st.lists(st.integers(0, len(ENGINES))))
def test_a_stream_may_be_cut_anywhere(cuts):
    back = Boundary(VOCABULARY).back(CHAT)
    assert back
    whole, events = ENGINES.encode(), back.events()
    ends = sorted({*(min(cut, len(whole)) for cut in cuts), len(whole)})
    pieces = [events.feed(whole[a:b]) for a, b in zip([0, *ends], ends, strict=False)]
    assert b"".join([*pieces, events.end()]) == settled(CLIENTS.encode())


def test_a_line_passes_as_soon_as_it_is_whole():
    back = Boundary(VOCABULARY).back(CHAT)
    assert back
    events = back.events()
    assert events.feed(b'data: {"choices":[{"token_ids":[1]}]}\n\ndata: {"ch') == (
        b'data: {"choices":[{"token_ids":[3]}]}\n\n'
    )
    assert events.feed(b'oices":[{"token_ids":[0]') == b""
    assert events.feed(b"}]}\n") == b'data: {"choices":[{"token_ids":[90]}]}\n'
    assert events.feed(b'data: {"choices":[{"token_ids":[1]}]}') == b""
    assert events.end() == b'data: {"choices":[{"token_ids":[3]}]}'


async def test_a_request_is_translated_on_its_way(pruned):
    body = b'{"prompt": [3, 99], "stop_token_ids":[ 0 ], "temperature":1E-1}'
    expected = b'{"prompt": [1,5], "stop_token_ids":[4], "temperature":1E-1}'
    assert await seen(pruned, COMPLETIONS, body) == expected


async def test_an_answer_is_translated_on_its_way(pruned):
    engines = '{"choices":[{"token_ids":[1,5],"stop_reason":4,"p":1E-1}]}'
    clients = b'{"choices":[{"token_ids":[3,99],"stop_reason":0,"p":1E-1}]}'
    assert await said(pruned, COMPLETIONS, engines) == clients


async def test_a_stream_is_translated_on_its_way(pruned):
    pieces = [ENGINES[at : at + 7] for at in range(0, len(ENGINES), 7)]
    assert await said(pruned, CHAT, pieces) == settled(CLIENTS.encode())


async def test_tokens_come_in_the_clients_numbering(pruned):
    answer = json.loads(await said(pruned, "/tokenize", '{"count":2,"tokens":[1,5]}'))
    assert answer == {"count": 2, "tokens": [3, 99]}
    assert json.loads(await seen(pruned, "/detokenize", b'{"tokens":[3,99]}')) == {"tokens": [1, 5]}


async def test_what_is_stored_is_told_in_the_clients_numbering(pruned):
    async with pruned.client.get("/v1/responses/resp_1", headers={"x-fake": "seen"}) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt": [3, GONE]}, "prompt", f"token id {GONE} .* send the prompt as text"),
        ({"prompt": [SIZE]}, "prompt", f"{SIZE} is out of vocabulary"),
        ({"prompt": "a", "logit_bias": {str(GONE): 5}}, "logit_bias", f"{GONE}"),
    ],
)
async def test_a_refusal_has_the_shape_that_clients_know(pruned, fields, param, words):
    async with openai.AsyncOpenAI(base_url=f"{pruned.url}/v1", api_key="x", max_retries=0) as ai:
        with pytest.raises(openai.BadRequestError, match=words) as caught:
            await ai.completions.create(**{"model": MODEL, **fields})
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert caught.value.body["src"] == "gateway"


async def test_the_openai_client_sees_only_its_own_numbering(pruned):
    answer = {
        "id": "1",
        "object": "text_completion",
        "created": 1,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "text": "a",
                "finish_reason": "stop",
                "token_ids": [served(7)],
                "prompt_logprobs": [{str(served(12)): {"logprob": -0.5}}],
                "logprobs": {"tokens": [f"token_id:{served(7)}"], "token_logprobs": [-0.5]},
            }
        ],
    }
    async with openai.AsyncOpenAI(base_url=f"{pruned.url}/v1", api_key="x", max_retries=0) as ai:
        choice = (
            await ai.completions.create(
                model=MODEL,
                prompt=list(KEPT),
                extra_headers={"x-fake": "say"},
                extra_body={"say": json.dumps(answer)},
            )
        ).choices[0]
    assert choice.token_ids == [7]
    assert choice.prompt_logprobs == [{"12": {"logprob": -0.5}}]
    assert choice.logprobs.tokens == ["token_id:7"]


async def test_an_error_of_the_engine_passes_as_it_is(pruned):
    async with pruned.client.post(CHAT, json={}, headers={"x-fake": "refused"}) as answer:
        assert answer.status == 400
        assert await answer.read() == b'{"error":{}}'


async def test_an_answer_that_is_cut_short_is_told(pruned):
    async with pruned.client.post(CHAT, json={}, headers={"x-fake": "cut-short"}) as answer:
        assert answer.status == 502
        assert (await answer.json())["error"]["code"] == "engine_connection_lost"
    async with pruned.client.post(CHAT, json={}, headers={"x-fake": "cut-event"}) as answer:
        assert answer.status == 200
        assert b"engine_connection_lost" in await answer.read()


async def test_an_answer_that_cannot_be_read_is_not_passed_on(pruned):
    headers = {"x-fake": "say"}
    broken = '{"choices":[{"token_ids":[1'
    async with pruned.client.post(CHAT, json={"say": broken}, headers=headers) as answer:
        assert answer.status == 502
        assert (await answer.json())["error"]["code"] == "engine_answer_unreadable"
    async with pruned.client.post(CHAT, json={"say": [f"data: {broken}\n\n"]}, headers=headers) as (
        answer
    ):
        assert b"engine_answer_unreadable" in await answer.read()


async def test_nothing_compressed_is_asked_of_the_engine(pruned):
    async with pruned.client.post(
        "/v1/responses", json={}, headers={"accept-encoding": "gzip"}
    ) as answer:
        names = [name.lower() for name, _ in (await answer.json())["headers"]]
    assert "accept-encoding" not in names


# What would be changed, refused or written anew by anything that read it.
DELICATE = [
    b'{"prompt":[3,51],"stop_token_ids":[99999],"logit_bias":{"51":9}}',
    b'{"a":1,"a":2, "prompt" : [3] ,"t":1E5,"messages":[]}',
    b"\xff\xfe no JSON",
    b'{"thinking_token_budget": null, "messages": ["\\u00e9"]}',
    b"",
]


@pytest.mark.parametrize("body", DELICATE)
@pytest.mark.parametrize("route", [r.path for r in FORWARDED if "POST" in r.methods])
async def test_without_a_boundary_every_body_passes_to_the_byte(shared, route, body):
    assert await seen(shared, route.format(response_id="r"), body) == body


@pytest.mark.parametrize("body", DELICATE)
def test_without_a_boundary_nothing_is_even_copied(body):
    boundary = Boundary()
    for route in FORWARDED:
        assert boundary.request(route.path, body) is body
        assert boundary.back(route.path) is None


async def test_without_a_boundary_answers_pass_to_the_byte(shared):
    whole = '{"choices": [{"token_ids": [1, 5], "stop_reason": 4}]}'
    assert await said(shared, COMPLETIONS, whole) == whole.encode()
    pieces = [ENGINES[at : at + 7] for at in range(0, len(ENGINES), 7)]
    assert await said(shared, CHAT, pieces) == ENGINES.encode()


@pytest.mark.parametrize("route", [CHAT, "/v1/chat/completions/batch"])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"messages":[ ] }', b'{"thinking_token_budget": 24, "messages":[ ] }'),
        (b" { } ", b' {"thinking_token_budget": 24 } '),
        (b'{"a":1,"a":1E5}', b'{"thinking_token_budget": 24, "a":1,"a":1E5}'),
        (b'{"thinking_token_budget":null}', b'{"thinking_token_budget":24}'),
        (b'{"thinking_token_budget":7}', b'{"thinking_token_budget":7}'),
        (b'{"thinking_token_budget":-1}', b'{"thinking_token_budget":-1}'),
        (b'{"thinking_token\\u005fbudget":0}', b'{"thinking_token\\u005fbudget":0}'),
        (
            b'{"x":{"thinking_token_budget":7}}',
            b'{"thinking_token_budget": 24, "x":{"thinking_token_budget":7}}',
        ),
        (b"[]", b"[]"),
        (b'"{"', b'"{"'),
        (b'{"messages":', b'{"messages":'),
        (b"\xff", b"\xff"),
        (b"", b""),
    ],
)
async def test_thoughts_are_capped_where_a_request_names_no_cap(capped, route, body, expected):
    assert await seen(capped, route, body) == expected


@pytest.mark.parametrize("route", [COMPLETIONS, "/v1/responses", "/v1/messages", "/tokenize"])
async def test_elsewhere_no_cap_is_set(capped, route):
    assert await seen(capped, route, b'{"messages":[]}') == b'{"messages":[]}'


def test_a_cap_and_a_vocabulary_go_together():
    body = b'{"stop_token_ids":[3],"a":1.0}'
    expected = b'{"thinking_token_budget": 24, "stop_token_ids":[1],"a":1.0}'
    assert Boundary(VOCABULARY, BUDGET).request(CHAT, body) == expected


@given(st.dictionaries(st.text(), st.none() | st.floats() | st.text() | st.lists(st.integers())))
def test_any_object_keeps_what_it_said_beside_the_cap(value):
    body = json.dumps(value).encode()
    capped = Boundary(budget=BUDGET).request(CHAT, body)
    assert capped.endswith(body[1:])
    assert repr(json.loads(capped)) == repr({"thinking_token_budget": BUDGET, **value})


@pytest.mark.parametrize("boundary", [Boundary(VOCABULARY), Boundary(VOCABULARY, BUDGET)])
def test_a_body_of_very_many_members_is_refused_where_it_must_be_read(boundary):
    body = json.dumps(dict.fromkeys(map(str, range(MOST_MEMBERS + 1)))).encode()
    with pytest.raises(Refused, match=f"more than {MOST_MEMBERS} members"):
        boundary.request(CHAT, body)
    assert Boundary(budget=BUDGET).request(CHAT, body) == body


class Slow(Boundary):
    """Changes a body, or an answer, only once the loop has done something else meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = threading.Event(), threading.Event()

    def _change(self, body: bytes) -> bytes:
        self.begun.set()
        return body if self.go_on.wait(DEADLINE_SECONDS) else b""

    def request(self, route: str, body: bytes) -> bytes:
        return self._change(body) if route == COMPLETIONS else body

    def back(self, route: str) -> Back | None:
        return Back(self._change) if route == CHAT else None


LONG = "x" * (LARGE_BYTES + 1)


@pytest.mark.parametrize(
    ("route", "say", "headers"),
    [
        (COMPLETIONS, LONG, {"x-fake": "seen"}),
        (CHAT, json.dumps({"a": LONG}), {"x-fake": "say"}),
        (CHAT, [f'data: {{"a":"{LONG[:99]}', LONG, '"}\n\n'], {"x-fake": "say"}),
    ],
)
async def test_others_are_answered_while_a_large_body_is_changed(tmp_path, route, say, headers):
    boundary = Slow()
    async with gateway(tmp_path, boundary=boundary) as slow:
        await until_ready(slow.engine)
        asked = asyncio.create_task(slow.client.post(route, json={"say": say}, headers=headers))
        assert await asyncio.to_thread(boundary.begun.wait, DEADLINE_SECONDS)
        async with slow.client.get("/health") as health:
            assert health.status == 200
        boundary.go_on.set()
        async with await asked as answer:
            assert answer.status == 200
            assert LONG in await answer.text() or route == COMPLETIONS


def planned(folder: Path, vocab_map: Path | None, **levers: Any) -> Plan:
    variant = Variant.model_validate({"NAME": "v", "SUMMARY": "s", **levers})
    model = Model(MODEL, folder, "Fake", 0, has_mtp=False, vocab_map=vocab_map)
    target = Target.model_validate({"NAME": "here", "DEVICE": "cpu", "DEFAULT_MODEL": MODEL})
    return Plan(variant, model, target, None, fake_command(folder))


def test_the_plan_says_what_is_changed(tmp_path):
    path = tmp_path / "vocab_map.json"
    path.write_text(json.dumps({"schema": 1, "original_size": SIZE, "kept": KEPT}))
    body = b'{"stop_token_ids":[3]}'
    assert boundary_of(planned(tmp_path, None)).request(CHAT, body) is body
    assert boundary_of(planned(tmp_path, path)).request(CHAT, body) == b'{"stop_token_ids":[1]}'
    bigger = planned(tmp_path, path)
    bigger = replace(bigger, model=replace(bigger.model, vocab_size=len(KEPT) + 1))
    with pytest.raises(ConfigError, match=f"{len(KEPT)} tokens, and the model beside it has"):
        boundary_of(bigger)
    capped = planned(tmp_path, None, THINKING_TOKEN_BUDGET="5", REASONING_PARSER="qwen3")
    assert json.loads(boundary_of(capped).request(CHAT, body))["thinking_token_budget"] == 5


def test_a_damaged_map_stops_the_start(tmp_path):
    path = tmp_path / "vocab_map.json"
    path.write_text("{")
    with pytest.raises(ConfigError, match="no map of a vocabulary"):
        boundary_of(replace(planned(tmp_path, path)))


NAMES = {"gpt-4o": "tiny", "mine": "tiny"}


@pytest.mark.parametrize("name", NAMES)
def test_another_name_of_the_model_becomes_its_own_and_all_else_stays(name: str) -> None:
    asked = b'{ "model" : "%s" , "n":1.0, "messages":[{"model":"gpt-4o"}] }' % name.encode()
    made = Boundary(aliases=NAMES).request("/v1/chat/completions", asked)
    assert made == asked.replace(b'"model" : "%s"' % name.encode(), b'"model" : "tiny"')


@pytest.mark.parametrize("asked", [b'{"model":"tiny"}', b'{"model":["gpt-4o"]}', b"{}", b"[", b""])
def test_what_is_no_other_name_stays_as_it_is(asked: bytes) -> None:
    assert Boundary(aliases=NAMES).request("/v1/completions", asked) == asked
