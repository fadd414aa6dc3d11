"""How much at once, how long, and what is said to those for whom there is no room."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse

from serve.admission import Bounds
from serve.limits import WireLimits
from serve.preflight import MIB
from tests.serve.live import ROOMY, WAITING, Gateway, gateway, until, until_ready

ONE = Bounds(at_work=1, waiting=1, held_bytes=2000)
SLOW = {"prompt": "p", "stream": True, "token_seconds": 600, "max_tokens": 2}
QUICK = {"prompt": "p", "max_tokens": 1}


@asynccontextmanager
async def narrow(folder: Path, **more: Any) -> AsyncIterator[Gateway]:
    async with gateway(folder, **{"bounds": ONE, **more}) as running:
        await until_ready(running.engine)
        yield running


@asynccontextmanager
async def occupied(running: Gateway) -> AsyncIterator[ClientResponse]:
    """Within: somebody has the only place."""
    async with running.client.post("/v1/completions", json=SLOW) as answer:
        assert answer.status == 200
        yield answer


async def code(answer: ClientResponse) -> tuple[int, str]:
    return answer.status, (await answer.json())["error"]["code"]


async def test_one_waits_and_the_next_is_told_when_to_come_again(tmp_path: Path) -> None:
    async with narrow(tmp_path) as running:
        async with occupied(running):
            second = asyncio.create_task(ask(running))
            await until(lambda: running.rooms.admission.waiting == 1, "queued")
            async with running.client.post("/v1/completions", json=QUICK) as third:
                assert await code(third) == (429, "queue_full")
                assert 1 <= int(third.headers["retry-after"]) <= 60
            assert "preheat_requests_waiting 1.0" in await running.metrics()
        assert await second == 200
        await until(lambda: running.rooms.admission.at_work == 0, "nothing is at work")
        assert "preheat_requests_in_flight 0.0" in await running.metrics()


async def ask(running: Gateway, prompt: str = "p") -> int:
    async with running.client.post("/v1/completions", json=QUICK | {"prompt": prompt}) as answer:
        return answer.status


async def test_a_wait_that_is_too_long_ends(tmp_path: Path) -> None:
    async with (
        narrow(tmp_path, patience=replace(WAITING, queue=0.05)) as running,
        occupied(running),
        running.client.post("/v1/completions", json=QUICK) as answer,
    ):
        assert await code(answer) == (503, "queue_timeout")
        assert running.rooms.admission.waiting == 0


@pytest.mark.parametrize("seconds", ["0.05", "5e-2"])
async def test_a_deadline_ends_a_wait(tmp_path: Path, seconds: str) -> None:
    headers = {"x-request-timeout": seconds}
    async with (
        narrow(tmp_path) as running,
        occupied(running),
        running.client.post("/v1/completions", json=QUICK, headers=headers) as answer,
    ):
        assert await code(answer) == (504, "deadline_exceeded")


async def test_a_deadline_ends_a_stream_with_an_error_event(tmp_path: Path) -> None:
    headers = {"x-request-timeout": "0.2"}
    async with narrow(tmp_path) as running:
        asked = running.client.post("/v1/completions", json=SLOW, headers=headers)
        async with asked as answer:
            assert answer.status == 200
            said = await answer.read()
        error = json.loads(said.strip().removeprefix(b"data: "))["error"]
        assert error["code"] == "deadline_exceeded"
        # The engine hears of it, too.
        assert await ask(running) == 200


async def test_the_gateways_own_deadline_holds_where_a_client_names_none(tmp_path: Path) -> None:
    async with (
        narrow(tmp_path, patience=replace(WAITING, request=0.05)) as running,
        running.client.post("/v1/completions", json=SLOW | {"stream": False}) as answer,
    ):
        assert await code(answer) == (504, "deadline_exceeded")


async def test_a_slow_readers_stream_that_is_cut_ends_with_an_error_event_too(
    tmp_path: Path,
) -> None:
    wired = WireLimits(write_buffer=10_000)
    async with narrow(tmp_path, wired=wired) as running:
        asked = {"prompt": "p" * 30_000, "stream": True, "max_tokens": 300}
        headers = {"x-request-timeout": "1"}
        asking = running.client.post("/v1/completions", json=asked, headers=headers)
        async with asking as answer:
            # Meanwhile it reads nothing: what is on the way fills up, and the gateway waits.
            await until(lambda: len(running.rooms.flights) == 0, "cut")
            last = (await answer.read()).strip().rpartition(b"\n\n")[2]
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize("seconds", ["", "soon", "0", "-1", "nan", "1s"])
async def test_a_deadline_that_is_none_is_refused(tmp_path: Path, seconds: str) -> None:
    headers = {"x-request-timeout": seconds}
    async with (
        narrow(tmp_path) as running,
        running.client.post("/v1/completions", json=QUICK, headers=headers) as answer,
    ):
        assert await code(answer) == (400, "invalid_timeout")


# A large body arrives in pieces, of which the last one stops the reading of more.
@pytest.mark.parametrize("size", [1, 100_000, 900_000])
async def test_a_client_that_leaves_the_queue_takes_no_place(tmp_path: Path, size: int) -> None:
    async with narrow(tmp_path, bounds=replace(ONE, held_bytes=MIB)) as running:
        async with occupied(running):
            waiting = asyncio.create_task(ask(running, "p" * size))
            await until(lambda: running.rooms.admission.waiting == 1, "queued")
            waiting.cancel()
            await until(lambda: running.rooms.admission.waiting == 0, "noticed")
        assert await ask(running) == 200
        await until(lambda: running.rooms.admission.at_work == 0, "nothing is at work")


async def test_bodies_that_wait_are_bounded_together(tmp_path: Path) -> None:
    large = json.dumps(QUICK | {"prompt": "p" * 1500})
    async with narrow(tmp_path, bounds=replace(ONE, waiting=9)) as running:
        async with occupied(running):
            waiting = asyncio.create_task(running.client.post("/v1/completions", data=large))
            await until(lambda: running.rooms.admission.waiting == 1, "queued")
            async with running.client.post("/v1/completions", data=large) as answer:
                assert await code(answer) == (429, "bodies_full")
        async with await waiting as answer:
            assert answer.status == 200
        await until(lambda: running.rooms.admission.held_bytes == 0, "nothing is held")


async def test_bursts_over_the_limit_are_all_answered_and_each_once(tmp_path: Path) -> None:
    bounds = Bounds(at_work=4, waiting=50, held_bytes=ROOMY.held_bytes)
    async with narrow(tmp_path, bounds=bounds) as running:
        answers = await asyncio.gather(*(burst(running, client) for client in range(100)))
    each = [one for several in answers for one in several]
    assert len(each) == 2_000
    assert set(each) == {200, 429}


async def burst(running: Gateway, client: int) -> list[int]:
    """Twenty requests one after the other; an answer must be to its own request."""
    statuses = []
    for number in range(20):
        asked = {"prompt": f"{client}.{number}", "max_tokens": 1}
        async with running.client.post("/v1/completions", json=asked) as answer:
            said = await answer.json()
            statuses.append(answer.status)
        if answer.status == 200:
            assert said["choices"][0]["text"] == f"{client}.{number}-0 "
    return statuses
