"""Raw requests are answered through the gateway byte for byte as vLLM answers them directly.

Every header and every byte of the body but ids, times and what belongs to the connection. One
request at a time: the engine's answer then depends on nothing but the request and, where it cuts
text into events, on its own timing.
"""

import json
from pathlib import Path

import pytest

from scripts.served import Served
from tests.integration.asked import QUESTION, STREAMED, TALK, WHOLE, bodies
from tests.integration.exchange import (
    Answer,
    Settled,
    exchange,
    exchanges,
    past,
    posted,
    request,
    settled,
    through,
)

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

RECORDED = sorted(Path(__file__).with_name("recorded").glob("*.http"))
# A delta holds what the engine had when its server looked: one token, or sometimes two.
ATTEMPTS = 10
INFORMATION = (
    "/v1/models",
    "/v1/responses/resp_unheard_of",
    "/version",
    "/load",
    "/ping",
    "/kv_event_sources",
    "/tokenizer_info",
)


def named(cases):
    """As parameters, by route and name."""
    return [pytest.param(route, body, id=f"{route} {name}") for route, name, body in cases]


def answered_alike(served: Served, asked: bytes) -> Answer:
    """The gateway's answer, which is one that the engine gives directly, too."""
    passed: dict[Settled, Answer] = {}
    given: set[Settled] = set()
    for _ in range(ATTEMPTS):
        answer, directly = exchange(through(served), asked), exchange(past(served), asked)
        passed[settled(answer)] = answer
        given.add(settled(directly))
        if alike := given.intersection(passed):
            return passed[alike.pop()]
    assert settled(answer) == settled(directly)
    return answer


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_recorded_request_is_answered_alike(seq8, path):
    answered_alike(seq8, path.read_bytes())


@pytest.mark.parametrize(("route", "body"), named(bodies(WHOLE)))
def test_a_request_is_answered_alike(seq8, route, body):
    answered_alike(seq8, posted(route, body))


@pytest.mark.parametrize(("route", "body"), named(bodies(STREAMED)))
def test_a_stream_is_passed_on_event_by_event(seq8, route, body):
    answer = answered_alike(seq8, posted(route, body))
    # vLLM sends every event as a chunk of its own.
    assert not answer.chunked or answer.chunks == answer.events


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("route", INFORMATION)
def test_what_is_asked_without_a_body_is_answered_alike(seq8, method, route):
    answered_alike(seq8, request(method, route))


def test_a_ping_may_be_posted(seq8):
    assert answered_alike(seq8, request("POST", "/ping")).status == 200


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/messages"])
def test_a_long_answer_is_passed_on_whole(seq8, route):
    body = {"model": "tiny", "messages": TALK, "max_tokens": 600, "temperature": 0}
    answer = answered_alike(seq8, posted(route, {**body, "ignore_eos": True, "min_tokens": 600}))
    assert answer.status == 200


def test_a_large_body_arrives_whole(seq8):
    # More than one read, and more than any buffer on the way.
    body = {"tokens": [*range(100, 16000)] * 20}
    assert len(json.dumps(body)) > 2_000_000
    answer = answered_alike(seq8, posted("/detokenize", body))
    assert answer.status == 200
    assert len(answer.body) > 1_000_000


def test_an_id_that_the_client_gives_is_the_engines_too(seq8):
    answer = exchange(
        through(seq8),
        posted("/v1/completions", _completion(), ("X-Request-Id: mine-1",)),
    )
    assert json.loads(answer.body)["id"] == "cmpl-mine-1"
    assert answer.header("x-request-id") == "mine-1"


def test_an_id_in_the_body_gives_way_to_the_one_in_the_log(seq8):
    """vLLM prefers the header to the body, and the gateway always sends one."""
    asked = posted("/v1/completions", {**_completion(), "request_id": "mine-2"})
    answer = exchange(through(seq8), asked)
    assert json.loads(answer.body)["id"] == f"cmpl-{answer.header('x-request-id')}"
    assert json.loads(exchange(past(seq8), asked).body)["id"] == "cmpl-mine-2"


def _completion() -> dict[str, object]:
    return {"model": "tiny", "prompt": QUESTION, "max_tokens": 2, "temperature": 0}


@pytest.mark.parametrize(
    ("method", "route"),
    [
        ("OPTIONS", "/v1/models"),
        ("DELETE", "/v1/responses/resp_unheard_of"),
        ("GET", "/v1/chat/completions"),
        ("HEAD", "/v1/chat/completions"),
        ("PUT", "/tokenize"),
        ("POST", "/version"),
    ],
)
def test_a_method_that_a_route_has_not_is_refused_by_the_gateway_with_the_engines_status(
    seq8, method, route
):
    asked = request(method, route)
    answer, directly = exchange(through(seq8), asked), exchange(past(seq8), asked)
    assert answer.status == directly.status == 405
    assert directly.header("allow") in answer.header("allow").split(", ")
    assert method == "HEAD" or json.loads(answer.body)["error"]["src"] == "gateway"


def test_requests_one_after_another_on_one_connection_are_answered_alike(seq8):
    asked = [
        posted("/v1/completions", _completion()),
        request("GET", "/version"),
        posted("/v1/chat/completions", {"model": "none"}),
        posted("/tokenize", {"prompt": "x"}),
    ]
    answers, directly = (
        [settled(answer) for answer in exchanges(connect, asked)]
        for connect in (through(seq8), past(seq8))
    )
    assert answers == directly
