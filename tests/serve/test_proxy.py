"""The gateway between real clients and the fake engine: nothing added, nothing lost."""

import asyncio
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from aiohttp import ClientPayloadError, ClientSession

from serve.proxy import request_headers
from tests.serve.live import MODEL, Gateway, gateway, until, until_ready

ECHO = "/v1/responses"


async def echoed(shared: Gateway, body: bytes = b"{}", **headers: str) -> dict[str, Any]:
    """What the engine saw of a request; ``x_request_id`` is written ``x-request-id``."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    async with shared.client.post(ECHO, data=body, headers=sent) as answer:
        assert answer.status == 200
        seen: dict[str, Any] = await answer.json()
        return seen


async def raw(shared: Gateway, request: bytes) -> bytes:
    """The answer to bytes that no client library would send."""
    address = urlsplit(shared.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


def values(seen: dict[str, Any], name: str) -> list[str]:
    return [value for key, value in seen["headers"] if key.lower() == name]


@pytest.mark.parametrize("size", [0, 1, 65536, 1024 * 1024])
async def test_bodies_arrive_byte_for_byte(shared: Gateway, size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    seen = await echoed(shared, body[:size])
    assert seen["length"] == size
    assert seen["sha256"] == hashlib.sha256(body[:size]).hexdigest()


async def test_a_chunked_body_arrives_whole(shared: Gateway) -> None:
    async def parts() -> Any:
        for number in range(50):
            yield b"%d," % number

    async with shared.client.post(ECHO, data=parts()) as answer:
        seen = await answer.json()
    assert seen["sha256"] == hashlib.sha256(b"".join(b"%d," % n for n in range(50))).hexdigest()


async def test_a_client_that_expects_a_continue_gets_it(shared: Gateway) -> None:
    async with shared.client.post(ECHO, data=b"body", expect100=True) as answer:
        seen = await answer.json()
    assert seen["length"] == 4
    assert not values(seen, "expect")


@pytest.mark.parametrize(
    "target",
    [
        "/v1/responses/a%20b?x=%2f&y=1+2&&z",
        "/v1/responses/%C3%A9?include[]=a&include[]=b",
        "/v1/responses/..?q=%00",
        "/v1/responses/%2E%2E",
        "/v1/responses/a'b(c)!*,;:@&=+$~",
    ],
)
async def test_paths_and_queries_arrive_byte_for_byte(shared: Gateway, target: str) -> None:
    answer = await raw(
        shared, f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    )
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["target"] == target


@pytest.mark.parametrize(
    "target", ["/v1/models%2f..", "/v1//models", "/v1/models/", "/%2e/metrics"]
)
async def test_a_path_that_only_looks_like_a_listed_one_does_not_exist(
    shared: Gateway, target: str
) -> None:
    answer = await raw(
        shared, f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    )
    assert answer.startswith(b"HTTP/1.1 404 ")


async def test_headers_of_the_connection_and_keys_stay_at_the_gateway(shared: Gateway) -> None:
    request = (
        b"POST /v1/responses HTTP/1.1\r\nHost: gateway.example\r\nAuthorization: Bearer secret\r\n"
        b"Connection: close, X-Private\r\nX-Private: 1\r\nTE: trailers\r\nKeep-Alive: timeout=9\r\n"
        b"Proxy-Authorization: Basic x\r\nX-Kept: a\r\nX-Kept: b\r\nContent-Length: 2\r\n\r\n{}"
    )
    answer = await raw(shared, request)
    seen = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert values(seen, "x-kept") == ["a", "b"]
    assert values(seen, "host") == ["engine"]
    assert values(seen, "content-length") == ["2"]
    names = {name.lower() for name, _ in seen["headers"]}
    assert names == {"host", "x-kept", "content-length", "x-request-id"}


async def test_a_smuggled_connection_header_cannot_remove_the_request_id(shared: Gateway) -> None:
    sent = [(b"connection", b"close, x-request-id"), (b"x-a", b"1")]
    ours = [(b"x-request-id", b"1")]
    assert dict(request_headers(sent, ours)).keys() == {b"x-a", b"x-request-id"}


async def test_the_engine_sees_what_the_client_accepts_and_nothing_of_ours(shared: Gateway) -> None:
    seen = await echoed(shared, accept="text/x", accept_encoding="br", user_agent="me")
    assert (values(seen, "accept"), values(seen, "accept-encoding")) == (["text/x"], ["br"])
    assert values(seen, "user-agent") == ["me"]


async def test_a_request_id_is_passed_on_and_returned(shared: Gateway) -> None:
    async with shared.client.post(ECHO, headers={"x-request-id": "run-7:a.b_c"}) as answer:
        assert answer.headers.getall("x-request-id") == ["run-7:a.b_c"]
        assert values(await answer.json(), "x-request-id") == ["run-7:a.b_c"]


@pytest.mark.parametrize("bad", ["", "a b", "x" * 129, "a\tb", "é", "{}"])
async def test_an_unsafe_request_id_is_replaced_by_one_of_ours(shared: Gateway, bad: str) -> None:
    seen = await echoed(shared, x_request_id=bad)
    (given,) = values(seen, "x-request-id")
    assert len(given) == 32
    assert int(given, 16)


async def test_repeated_response_headers_and_odd_bytes_return_as_they_are(shared: Gateway) -> None:
    answer = await raw(
        shared,
        b"GET /version HTTP/1.1\r\nHost: x\r\nx-fake: repeated-headers\r\n"
        b"Connection: close\r\n\r\n",
    )
    head = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert [line for line in head if line.startswith(b"set-cookie")] == [
        b"set-cookie: a=1",
        b"set-cookie: b=2",
    ]
    assert "warning: é".encode() in head
    assert sum(line.startswith(b"date:") for line in head) == 1


async def test_an_encoded_answer_returns_encoded(shared: Gateway) -> None:
    answer = await raw(
        shared,
        b"POST /tokenize HTTP/1.1\r\nHost: x\r\nx-fake: compressed\r\nConnection: close\r\n"
        b"Content-Length: 4\r\n\r\ntext",
    )
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-encoding: gzip" in head
    assert b"keep-alive:" not in head
    assert body == gzip.compress(b"text", mtime=0)


async def test_chunks_and_what_stands_behind_them_return_as_they_are(shared: Gateway) -> None:
    answer = await raw(
        shared,
        b"GET /version HTTP/1.1\r\nHost: x\r\nx-fake: trailed\r\nConnection: close\r\n\r\n",
    )
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"trailer: X-Sum" in head
    assert body == b"3\r\none\r\n3\r\ntwo\r\n0\r\nx-sum: 6\r\n\r\n"


async def test_a_redirect_is_returned_and_not_followed(shared: Gateway) -> None:
    headers = {"x-fake": "redirected"}
    async with shared.client.post(ECHO, headers=headers, allow_redirects=False) as answer:
        assert (answer.status, answer.headers["location"]) == (307, "/v1/models")


async def test_an_engines_refusal_is_returned_as_it_came(shared: Gateway) -> None:
    async with shared.client.post(ECHO, headers={"x-fake": "refused"}) as answer:
        assert answer.status == 400
        assert await answer.read() == b'{"error":{}}'


async def test_head_returns_the_headers_of_get_and_no_body(shared: Gateway) -> None:
    async with shared.client.head(f"{ECHO}/1") as answer:
        assert answer.status == 200
        assert int(answer.headers["content-length"]) > 0
        assert await answer.read() == b""


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", {"POST"}),
        ("OPTIONS", "/v1/chat/completions", {"POST"}),
        ("DELETE", "/v1/models", {"GET", "HEAD"}),
        ("POST", "/health", {"GET", "HEAD"}),
    ],
)
async def test_a_wrong_method_is_told_in_openais_shape(
    shared: Gateway, method: str, path: str, allowed: set[str]
) -> None:
    async with shared.client.request(method, path) as answer:
        assert answer.status == 405
        assert set(answer.headers["allow"].split(", ")) == allowed
        error = (await answer.json())["error"]
    assert (error["code"], error["src"]) == ("method_not_allowed", "gateway")
    assert error["message"] == f"{method} {path}: method not allowed"


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/redoc", "/v1/load_lora_adapter", "/sleep", "/scale_elastic_ep"]
)
async def test_a_route_that_is_not_listed_is_told_in_openais_shape(
    shared: Gateway, path: str
) -> None:
    async with shared.client.get(path) as answer:
        assert answer.status == 404
        error = (await answer.json())["error"]
    assert error["type"] == "invalid_request_error"
    assert (error["code"], error["message"]) == ("unknown_route", f"GET {path}: not found")


async def test_a_bad_host_header_is_no_reason_to_fail(shared: Gateway) -> None:
    answer = await raw(shared, b"GET /nowhere HTTP/1.1\r\nHost: [\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 404 ")


async def test_a_body_that_is_too_large_is_refused(shared: Gateway) -> None:
    async with httpx.AsyncClient(base_url=shared.url) as client:
        answer = await client.post(ECHO, content=b"x" * (1024 * 1024 + 1))
    assert answer.status_code == 413
    error = answer.json()["error"]
    assert error["code"] == "body_too_large"
    assert "1048576 bytes" in error["message"]
    # And the connection, or the next one, still works.
    assert (await echoed(shared, b"small"))["length"] == 5


async def test_a_body_announced_too_large_is_refused_before_it_comes(shared: Gateway) -> None:
    head = f"POST {ECHO} HTTP/1.1\r\nHost: h\r\nContent-Length: 1048577\r\n\r\n"
    assert (await raw(shared, head.encode())).startswith(b"HTTP/1.1 413 ")


async def test_a_stream_comes_in_pieces_as_the_engine_sends_them(shared: Gateway) -> None:
    asked = {"prompt": "p", "max_tokens": 3, "stream": True, "unknown_field": [1]}
    async with shared.client.post("/v1/completions", json=asked) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        said = await answer.read()
    async with shared.behind.post("/v1/completions", json=asked) as answer:
        assert await answer.read() == said


async def test_the_first_token_does_not_wait_for_the_last(shared: Gateway) -> None:
    asked = {"prompt": "p", "stream": True, "token_seconds": 0.01, "max_tokens": 10**6}
    async with shared.client.post("/v1/completions", json=asked) as answer:
        assert (await answer.content.readline()).startswith(b"data: ")


async def test_concurrent_streams_do_not_mix(shared: Gateway) -> None:
    client = openai.AsyncOpenAI(base_url=f"{shared.url}/v1", api_key="none")

    async def said(name: str) -> str:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": name}],
            max_tokens=20,
            stream=True,
            extra_body={"token_seconds": 0.001},
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    names = [f"client{number}" for number in range(24)]
    answers = await asyncio.gather(*map(said, names))
    await client.close()
    for name, answer in zip(names, answers, strict=True):
        assert answer == "".join(f"{name}-{number} " for number in range(20))


async def test_the_openai_client_works_without_streaming_too(shared: Gateway) -> None:
    async with openai.AsyncOpenAI(base_url=f"{shared.url}/v1", api_key="none") as client:
        assert [model.id async for model in client.models.list()] == [MODEL]
        answer = await client.completions.create(model=MODEL, prompt="p", max_tokens=2)
        assert answer.choices[0].text == "p-0 p-1 "


async def aborted(shared: Gateway) -> int:
    async with shared.behind.get("/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return int(float(next(line for line in lines if line.startswith("fake_aborted")).split()[1]))


async def until_aborted(shared: Gateway, more_than: int) -> None:
    for _ in range(4000):
        if await aborted(shared) > more_than:
            return
        await asyncio.sleep(0.01)
    pytest.fail("the engine never heard that the client left")


@pytest.mark.parametrize("when", ["before the first byte", "mid-stream"])
async def test_a_client_that_leaves_cancels_its_request_in_the_engine(
    shared: Gateway, when: str
) -> None:
    before = await aborted(shared)
    slow = 600 if when == "before the first byte" else 0.01
    asked = {"prompt": "p", "stream": True, "token_seconds": slow, "max_tokens": 10**6}
    async with httpx.AsyncClient(base_url=shared.url) as client:
        request = client.build_request("POST", "/v1/completions", json=asked)
        answer = await client.send(request, stream=True)
        if when == "mid-stream":
            assert b"p-0" in await anext(answer.aiter_bytes())
        await answer.aclose()
    await until_aborted(shared, before)
    assert "preheat_requests_in_flight 0.0" in await shared.metrics()
    assert "preheat_requests_cancelled_total 0.0" not in await shared.metrics()


async def test_a_client_that_leaves_while_the_engine_is_silent_is_noticed(shared: Gateway) -> None:
    before = await aborted(shared)
    async with ClientSession(shared.url) as client:
        waiting = asyncio.create_task(client.post(ECHO, headers={"x-fake": "silent"}))
        while "preheat_requests_in_flight 1.0" not in await shared.metrics():
            await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.wait({waiting})
    await until_aborted(shared, before)


async def test_a_client_that_leaves_before_its_body_ended_reaches_no_engine(
    shared: Gateway,
) -> None:
    address = urlsplit(shared.url)
    _, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    left = 'preheat_requests_total{key="-",route="/v1/responses",status="left"}'
    while left not in await shared.metrics():
        await asyncio.sleep(0.01)


async def test_an_answer_that_is_cut_short_is_seen_as_such(shared: Gateway) -> None:
    async with shared.client.post(ECHO, headers={"x-fake": "cut-short"}) as answer:
        assert answer.status == 200
        with pytest.raises(ClientPayloadError):
            await answer.read()


async def test_a_stream_that_is_cut_ends_with_an_error_event_of_its_own(shared: Gateway) -> None:
    async with shared.client.post(ECHO, headers={"x-fake": "cut-event"}) as answer:
        said = await answer.read()
    half, _, last = said.removesuffix(b"\n\n").rpartition(b"\n\n")
    assert half == b'data: {"half":'
    error = json.loads(last.removeprefix(b"event: error\ndata: "))["error"]
    assert (error["code"], error["src"]) == ("engine_connection_lost", "gateway")


async def test_an_engine_that_crashes_mid_stream_is_an_error_to_the_openai_client(
    tmp_path: Path,
) -> None:
    async with gateway(tmp_path, "--crash-mid-stream") as running:
        await until_ready(running.engine)
        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none") as client:
            stream = await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "p"}], stream=True
            )
            with pytest.raises(openai.APIError, match="the engine ended the connection"):
                async for _ in stream:
                    pass


async def test_before_the_first_engine_a_request_is_refused_with_the_phase(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running:
        async with running.client.post(ECHO) as answer:
            assert answer.status == 503
            assert answer.headers["retry-after"] == "2"
            error = (await answer.json())["error"]
        assert error["code"] == "engine_not_ready"
        assert "the engine is not ready (st" in error["message"]


async def test_a_request_that_says_how_long_it_waits_waits_for_the_first_engine(
    tmp_path: Path,
) -> None:
    async with (
        gateway(tmp_path) as running,
        running.client.post(ECHO, headers={"x-request-timeout": "40"}) as answer,
    ):
        assert answer.status == 200


async def test_a_request_waits_for_the_next_engine_and_the_reason_is_told(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running:
        await until_ready(running.engine)
        async with running.client.post(ECHO, headers={"x-fake": "crash"}) as answer:
            assert answer.status == 502
            assert (await answer.json())["error"]["code"] == "engine_connection_lost"
        await until(lambda: not running.engine.ready, "noticed")
        async with running.client.get("/ready") as answer:
            assert answer.status == 503
            assert (await answer.json())["reason"] == "the engine ended with exit status 9"
        async with running.client.get("/health") as answer:
            assert answer.status == 200
        async with running.client.post(ECHO) as answer:
            assert answer.status == 200
        assert running.engine.status.restarts == 1


async def test_a_pipelined_second_request_is_answered_after_the_first(shared: Gateway) -> None:
    one = b"GET /v1/responses/1 HTTP/1.1\r\nHost: x\r\n\r\n"
    two = b"GET /v1/responses/2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = await raw(shared, one + two)
    assert answer.index(b'"/v1/responses/1"') < answer.index(b'"/v1/responses/2"')
