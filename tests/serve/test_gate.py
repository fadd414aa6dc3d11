"""Keys at the gateway: who is let in, where to, and how much; told in the clients' own shapes."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from yarl import URL

from serve.gate import parsed_keys, secret_of
from serve.keys import Keys
from tests.serve.keyrings import made, written
from tests.serve.live import MODEL, Gateway, gateway, until, until_ready

ASKED = {"model": MODEL, "prompt": "one two three", "max_tokens": 5}


@asynccontextmanager
async def keyed(folder: Path, **limits: Any) -> AsyncIterator[tuple[Gateway, dict[str, str]]]:
    """A gateway that asks for one key, and the header that it lets in."""
    record, secret = made(**limits)
    keys = Keys(written(folder / "keys.json", record))
    async with gateway(folder, keys=keys) as running:
        await until_ready(running.engine)
        yield running, {"authorization": f"Bearer {secret}"}


async def complete(running: Gateway, headers: dict[str, str], **more: Any) -> tuple[int, Any]:
    asked = running.client.post("/v1/completions", json=ASKED | more, headers=headers)
    async with asked as answer:
        return answer.status, await answer.read()


async def code(running: Gateway, path: str, headers: dict[str, str]) -> tuple[int, str]:
    async with running.client.post(path, json=ASKED, headers=headers) as answer:
        return answer.status, (await answer.json())["error"]["code"]


async def test_without_a_key_or_with_a_wrong_one_nobody_is_let_in(tmp_path: Path) -> None:
    async with keyed(tmp_path) as (running, headers):
        assert await code(running, "/v1/completions", {}) == (401, "missing_api_key")
        wrong = {"authorization": "Bearer ph-00000000-" + "x" * 43}
        assert await code(running, "/v1/completions", wrong) == (401, "invalid_api_key")
        assert (await complete(running, headers))[0] == 200
        async with running.client.get("/health") as alive, running.client.get("/ready") as ready:
            assert (alive.status, ready.status) == (200, 200)
        for path in ("/variant", "/metrics", "/openapi.json", "/v1/models", "/nowhere"):
            async with running.client.get(path) as answer:
                assert answer.status == 401
        async with running.client.get("/metrics", headers=headers) as answer:
            assert answer.status == 200


async def test_both_companies_clients_raise_their_own_errors(tmp_path: Path) -> None:
    async with keyed(tmp_path) as (running, headers):
        secret = headers["authorization"].removeprefix("Bearer ")
        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="no") as client:
            with pytest.raises(openai.AuthenticationError, match="unknown, or revoked"):
                await client.completions.create(**ASKED)
        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=secret) as client:
            assert (await client.completions.create(**ASKED)).usage is not None
        talk = {"model": MODEL, "max_tokens": 5, "messages": [{"role": "user", "content": "a"}]}
        async with anthropic.AsyncAnthropic(base_url=running.url, api_key="no") as client:
            with pytest.raises(anthropic.AuthenticationError, match="unknown, or revoked"):
                await client.messages.create(**talk)
        async with anthropic.AsyncAnthropic(base_url=running.url, api_key=secret) as client:
            # The fake engine echoes what it is asked; that it was is all that is wanted.
            await client.messages.with_raw_response.create(**talk)


async def test_no_key_reaches_the_engine(tmp_path: Path) -> None:
    async with keyed(tmp_path) as (running, headers):
        secret = headers["authorization"].removeprefix("Bearer ")
        for sent in (headers, {"x-api-key": secret}):
            async with running.client.post("/v1/responses", headers=sent) as answer:
                assert secret not in await answer.text()


async def test_a_key_goes_where_it_may(tmp_path: Path) -> None:
    async with keyed(tmp_path, routes=("/v1/chat/*", "/v1/completions")) as (running, headers):
        assert (await complete(running, headers))[0] == 200
        assert await code(running, "/v1/responses", headers) == (403, "route_not_allowed")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/metrics%0A"), ("GET", "/variant%0A"), ("POST", "/admin/variant%0A")],
)
async def test_no_spelling_of_a_path_gets_around_a_key(
    tmp_path: Path, method: str, path: str
) -> None:
    async with keyed(tmp_path, routes=("/v1/completions",)) as (running, headers):
        asked = URL(running.url + path, encoded=True)
        for sent, status in ((headers, 404), ({}, 401)):
            async with running.client.request(method, asked, headers=sent) as answer:
                assert answer.status == status


async def test_what_tells_no_usage_costs_nothing_when_it_is_whole(tmp_path: Path) -> None:
    async with keyed(tmp_path, tokens_per_minute=10) as (running, headers):
        for _ in range(3):
            sent = running.client.post("/tokenize", data=b"x" * 4000, headers=headers)
            async with sent as answer:
                assert answer.status == 200
        assert (await complete(running, headers))[0] == 200


async def test_requests_of_a_minute_are_counted(tmp_path: Path) -> None:
    async with keyed(tmp_path, requests_per_minute=2) as (running, headers):
        assert [(await complete(running, headers))[0] for _ in range(3)] == [200, 200, 429]
        async with running.client.post("/v1/completions", headers=headers) as answer:
            assert 1 <= int(answer.headers["retry-after"]) <= 30
            assert (await answer.json())["error"]["code"] == "requests_per_minute"
        text = await metrics(running, headers)
    assert 'preheat_requests_refused_total{code="requests_per_minute"' in text


async def metrics(running: Gateway, headers: dict[str, str]) -> str:
    async with running.client.get("/metrics", headers=headers) as answer:
        return await answer.text()


@pytest.mark.parametrize("fields", [{}, {"stream": True}])
async def test_tokens_are_charged_as_the_engine_counts_them(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    async with keyed(tmp_path, tokens_per_minute=10) as (running, headers):
        # Eight each: the second is let in by what the first left.
        assert [(await complete(running, headers, **fields))[0] for _ in range(3)] == [
            200,
            200,
            429,
        ]
        text = await metrics(running, headers)
    said = [line for line in text.splitlines() if line.startswith("preheat_tokens_total")]
    assert {line.rpartition("kind=")[2] for line in said} == {'"read"} 6.0', '"said"} 10.0'}


async def test_what_the_engine_refused_or_died_of_costs_nothing(tmp_path: Path) -> None:
    async with keyed(tmp_path, tokens_per_minute=10) as (running, headers):
        for _ in range(5):
            sent = headers | {"x-fake": "refused"}
            assert (await complete(running, sent, prompt="long " * 100))[0] == 400
        sent = headers | {"x-fake": "crash"}
        assert (await complete(running, sent, prompt="long " * 100))[0] == 502
        # Until it is seen to be dead, a request could still be put on a connection to it.
        await until(lambda: not running.engine.ready, "seen to be dead")
        assert (await complete(running, headers))[0] == 200


async def test_a_stream_that_was_not_asked_for_its_usage_does_not_tell_it(tmp_path: Path) -> None:
    async with keyed(tmp_path, tokens_per_day=1000) as (running, headers):
        _, said = await complete(running, headers, stream=True)
        async with running.behind.post("/v1/completions", json=ASKED | {"stream": True}) as direct:
            assert said == await direct.read()
        options = {"include_usage": True}
        _, said = await complete(running, headers, stream=True, stream_options=options)
        assert said.count(b'"usage":') == 1


async def test_a_key_has_so_many_at_once(tmp_path: Path) -> None:
    async with keyed(tmp_path, concurrency=1) as (running, headers):
        asked = ASKED | {"stream": True, "token_seconds": 600}
        stream = running.client.post("/v1/completions", json=asked, headers=headers)
        async with stream as answer:
            assert answer.status == 200
            assert (await complete(running, headers))[0] == 429
        while (await complete(running, headers))[0] != 200:
            await asyncio.sleep(0.01)


async def test_the_log_tells_the_keys_id_and_never_the_key(tmp_path: Path) -> None:
    import logging

    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(json.dumps(record.__dict__, default=str))  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    logging.getLogger("access").setLevel(logging.INFO)
    try:
        async with keyed(tmp_path) as (running, headers):
            await complete(running, headers)
    finally:
        logging.getLogger().removeHandler(handler)
        logging.getLogger("access").setLevel(logging.NOTSET)
    secret = headers["authorization"].removeprefix("Bearer ")
    (line,) = [line for line in lines if "/v1/completions" in line]
    assert f'"key": "{secret.split("-")[1]}"' in line
    assert "one two three" not in line
    assert secret not in "".join(lines)


def test_a_secret_stands_in_either_header() -> None:
    assert secret_of([(b"authorization", b"Bearer  a b ")]) == "a b"
    assert secret_of([(b"authorization", b"bearer x")]) == "x"
    assert secret_of([(b"authorization", b"Basic x"), (b"x-api-key", b"y")]) == "y"
    assert secret_of([]) == ""


def test_keys_of_a_variable_stand_between_commas() -> None:
    assert parsed_keys(None) == parsed_keys("") == ()
    assert parsed_keys(" a, b ") == ("a", "b")
