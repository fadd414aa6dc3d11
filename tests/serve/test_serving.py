"""The change to another variant under a socket that stays, and what waits meanwhile."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from aiohttp import ClientResponse

from serve.boundary import Boundary
from serve.engine import Limits
from serve.errors import ConfigError
from serve.keys import Keys
from serve.serving import Setup
from tests.serve.keyrings import made, written
from tests.serve.live import PATIENT, Gateway, fake_setup, gateway, until, until_ready


class Prepared:
    """Makes setups over the fake engine, with switches for each variant."""

    def __init__(self, folder: Path, **switches: tuple[str, ...]) -> None:
        self.folder = folder
        self.switches = switches
        self.asked: list[str] = []
        self.hold: asyncio.Event | None = None
        self.at_once: int | None = None

    async def __call__(self, variant: str) -> Setup:
        self.asked.append(variant)
        if variant not in self.switches:
            raise ConfigError(f"no variant {variant!r}", "there are: other")
        if self.hold:
            await self.hold.wait()
        folder = self.folder / f"change-{len(self.asked)}"
        folder.mkdir()
        setup = fake_setup(folder, *self.switches[variant], name=variant)
        return replace(setup, at_once=self.at_once, folder=folder)


@asynccontextmanager
async def changeable(
    folder: Path, prepare: Prepared, limits: Limits = PATIENT, **more: Any
) -> AsyncIterator[Gateway]:
    keys = Keys(folder / "keys.json")
    async with gateway(folder, keys=keys, prepare=prepare, limits=limits, **more) as running:
        await until_ready(running.engine)
        yield running


class Callers:
    """The headers of a key that administers, and of one that does not."""

    admin: ClassVar[dict[str, str]]
    user: ClassVar[dict[str, str]]


@pytest.fixture(autouse=True)
def keys(tmp_path: Path) -> None:
    (admin, one), (user, other) = made(admin=True), made()
    written(tmp_path / "keys.json", admin, user)
    Callers.admin = {"authorization": f"Bearer {one}"}
    Callers.user = {"authorization": f"Bearer {other}"}


async def change(
    running: Gateway, variant: str, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    asked = running.client.post(
        "/admin/variant", json={"variant": variant}, headers=headers or Callers.admin
    )
    async with asked as answer:
        return answer.status, await answer.json()


async def served(running: Gateway) -> str:
    async with running.client.get("/variant", headers=Callers.admin) as answer:
        return str((await answer.json())["variant"])


async def test_another_variant_takes_the_place_of_the_first(tmp_path: Path) -> None:
    async with changeable(tmp_path, Prepared(tmp_path, other=())) as running:
        before = running.engine
        status, told = await change(running, "other")
        assert (status, told["variant"]) == (200, "other")
        assert told["seconds"] > 0
        assert await served(running) == "other"
        assert running.engine is not before
        assert not before.ready
        async with running.client.post("/v1/responses", headers=Callers.admin) as answer:
            assert answer.status == 200


async def test_one_that_does_not_get_ready_is_rolled_back(tmp_path: Path) -> None:
    prepared = Prepared(tmp_path, broken=("--crash-at-start",))
    async with changeable(tmp_path, prepared) as running:
        status, told = await change(running, "broken")
        assert (status, told["error"]["code"]) == (500, "change_failed")
        assert "broken did not get ready, fake is served: the engine died at start" in " ".join(
            told["error"]["message"].split()
        )
        assert await served(running) == "fake"
        async with running.client.post("/v1/responses", headers=Callers.admin) as answer:
            assert answer.status == 200


async def test_a_change_leaves_nothing_of_what_is_served_no_more(tmp_path: Path) -> None:
    prepared = Prepared(tmp_path, other=(), broken=("--crash-at-start",))
    async with changeable(tmp_path, prepared) as running:
        for variant in ("other", "broken", "other"):
            await change(running, variant)
        assert sorted(path.name for path in tmp_path.glob("change-*")) == ["change-3"]
    assert list(tmp_path.glob("change-*")) == []


async def test_each_variant_has_its_own_number_of_places(tmp_path: Path) -> None:
    prepared = Prepared(tmp_path, other=(), broken=("--crash-at-start",))
    async with changeable(tmp_path, prepared) as running:
        admission = running.rooms.admission
        before = admission.bounds
        prepared.at_once = 3
        await change(running, "other")
        assert admission.bounds == replace(before, at_work=3)
        prepared.at_once = 5
        await change(running, "broken")
        assert admission.bounds == replace(before, at_work=3)


async def test_the_way_back_that_fails_is_told_too(tmp_path: Path) -> None:
    prepared = Prepared(tmp_path, broken=("--crash-at-start",))
    async with changeable(tmp_path, prepared) as running:
        # What is served cannot be started again.
        serving = running.rooms.serving
        gone = replace(serving._setup.command, argv=("/no/such/engine",))
        serving._setup = replace(serving._setup, command=gone)
        status, told = await change(running, "broken")
        assert (status, told["error"]["code"]) == (500, "change_failed")
        assert "nor did fake again" in told["error"]["message"]
        assert "is served" not in told["error"]["message"]
        await asyncio.wait({running.running})
        assert running.running.exception() is not None


async def test_one_that_cannot_be_prepared_changes_nothing(tmp_path: Path) -> None:
    async with changeable(tmp_path, Prepared(tmp_path)) as running:
        before = running.engine
        status, told = await change(running, "seq9")
        assert (status, told["error"]["code"]) == (400, "not_possible")
        assert "no variant 'seq9'" in told["error"]["message"]
        assert running.engine is before
        assert before.ready


@asynccontextmanager
async def draining(
    running: Gateway, tokens: int
) -> AsyncIterator[tuple[ClientResponse, "asyncio.Task[tuple[int, Any]]"]]:
    """Within: a stream that a change to ``other`` waits for, and that change."""
    asked = {"prompt": "p", "stream": True, "token_seconds": 0.05, "max_tokens": tokens}
    stream = running.client.post("/v1/completions", json=asked, headers=Callers.admin)
    async with stream as answer:
        assert (await answer.content.readline()).startswith(b"data: ")
        changing = asyncio.create_task(change(running, "other"))
        await until(lambda: not running.rooms.admission.open, "the gate is shut")
        yield answer, changing


async def test_requests_wait_for_the_change_and_streams_finish_before_it(tmp_path: Path) -> None:
    async with changeable(tmp_path, Prepared(tmp_path, other=())) as running:
        async with draining(running, 10) as (answer, changing):
            waiting = asyncio.create_task(until_answered(running))
            said = await answer.content.read()
        assert said.endswith(b"data: [DONE]\n\n")
        assert (await changing)[0] == 200
        assert await waiting == 200


async def until_answered(running: Gateway) -> int:
    async with running.client.post("/v1/responses", headers=Callers.admin) as answer:
        return answer.status


async def test_a_stream_longer_than_the_drain_time_is_told_so(tmp_path: Path) -> None:
    async with changeable(tmp_path, Prepared(tmp_path, other=()), drain_seconds=0.1) as running:
        asked = {"prompt": "p", "stream": True, "token_seconds": 0.05, "max_tokens": 10**6}
        stream = running.client.post("/v1/completions", json=asked, headers=Callers.admin)
        async with stream as answer:
            assert (await answer.content.readline()).startswith(b"data: ")
            assert (await change(running, "other"))[0] == 200
            last = (await answer.content.read()).strip().rpartition(b"\n\n")[2]
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "engine_changing"


async def test_one_change_at_a_time(tmp_path: Path) -> None:
    prepared = Prepared(tmp_path, other=())
    prepared.hold = asyncio.Event()
    async with changeable(tmp_path, prepared) as running:
        first = asyncio.create_task(change(running, "other"))
        await until(lambda: bool(prepared.asked), "asked")
        status, told = await change(running, "other")
        assert (status, told["error"]["code"]) == (409, "change_under_way")
        prepared.hold.set()
        assert (await first)[0] == 200
        assert (await change(running, "other"))[0] == 200


async def test_only_a_key_that_administers_may_change(tmp_path: Path) -> None:
    async with changeable(tmp_path, Prepared(tmp_path, other=())) as running:
        status, told = await change(running, "other", Callers.user)
        assert (status, told["error"]["code"]) == (403, "admin_key_required")
        async with running.client.post("/admin/variant", json={"variant": "other"}) as answer:
            assert answer.status == 401
        assert await served(running) == "fake"


async def test_where_keys_are_off_nobody_may_change(tmp_path: Path) -> None:
    async with (
        gateway(tmp_path, prepare=Prepared(tmp_path, other=())) as running,
        running.client.post("/admin/variant", json={"variant": "other"}) as answer,
    ):
        assert answer.status == 403


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"no", b'{"variant":1}', b'{"variant":"a","b":1}']
)
async def test_a_body_that_names_no_variant_is_refused(tmp_path: Path, body: bytes) -> None:
    async with changeable(tmp_path, Prepared(tmp_path, other=())) as running:
        asked = running.client.post("/admin/variant", data=body, headers=Callers.admin)
        async with asked as answer:
            assert answer.status == 400
            assert 'expected {"variant": NAME}' in (await answer.json())["error"]["message"]


async def test_a_body_that_is_larger_than_any_name_is_not_read(tmp_path: Path) -> None:
    async with changeable(tmp_path, Prepared(tmp_path, other=())) as running:
        large = b'{"variant":"' + b"a" * 10_000
        asked = running.client.post("/admin/variant", data=large, headers=Callers.admin)
        async with asked as answer:
            assert answer.status == 413


async def test_a_stop_in_the_middle_of_a_change_ends_it(tmp_path: Path) -> None:
    prepared = Prepared(tmp_path, slow=("--ready-after", "600"))
    async with changeable(tmp_path, prepared) as running:
        changing = asyncio.create_task(change(running, "slow"))
        before = running.engine
        await until(lambda: running.engine is not before, "the other is starting")
        running.rooms.serving.stop()
        status, told = await changing
        assert (status, told["error"]["code"]) == (500, "change_failed")
        await asyncio.wait({running.running})
        assert running.running.exception() is None


async def test_a_stop_while_a_change_drains_leaves_the_engine_to_those_who_were_accepted(
    tmp_path: Path,
) -> None:
    async with changeable(tmp_path, Prepared(tmp_path, other=()), drain_seconds=30) as running:
        async with draining(running, 20) as (answer, changing):
            waiting = asyncio.create_task(until_answered(running))
            await until(lambda: running.rooms.admission.waiting == 1, "queued")
            # As at a SIGTERM: no more requests, and those that were taken go on.
            running.rooms.serving.close()
            status, told = await changing
            assert (status, told["error"]["code"]) == (500, "change_failed")
            assert await waiting == 200
            assert (await answer.content.read()).endswith(b"data: [DONE]\n\n")
        assert running.engine.ready


async def test_who_waits_when_all_is_to_end_is_served_by_the_engine_that_starts(
    tmp_path: Path,
) -> None:
    prepared = Prepared(tmp_path, other=("--ready-after", "1"))
    async with changeable(tmp_path, prepared, drain_seconds=30) as running:
        before = running.engine
        changing = asyncio.create_task(change(running, "other"))
        await until(lambda: not running.rooms.admission.open, "the gate is shut")
        waiting = asyncio.create_task(until_answered(running))
        await until(lambda: running.rooms.admission.waiting == 1, "queued")
        await until(lambda: running.engine is not before, "the other is starting")
        running.rooms.serving.close()
        assert await waiting == 200
        assert (await changing)[0] == 200


async def test_a_change_that_is_prepared_when_all_ends_is_answered_and_left(tmp_path: Path) -> None:
    prepared = Prepared(tmp_path, other=())
    prepared.hold = asyncio.Event()
    async with changeable(tmp_path, prepared) as running:
        changing = asyncio.create_task(change(running, "other"))
        await until(lambda: bool(prepared.asked), "asked")
        running.rooms.serving.stop()
        await asyncio.wait({running.running})
        prepared.hold.set()
        status, told = await changing
        assert (status, told["error"]["code"]) == (503, "gateway_stopping")


async def test_who_waits_for_a_change_is_told_apart_by_the_variant_that_answers(
    tmp_path: Path,
) -> None:
    class Renaming(Prepared):
        async def __call__(self, variant: str) -> Setup:
            made = await super().__call__(variant)
            return replace(made, boundary=Boundary(aliases={"any": "new"}))

    async with changeable(tmp_path, Renaming(tmp_path, other=())) as running:
        changing = asyncio.create_task(change(running, "other"))
        await until(lambda: not running.rooms.admission.open, "the gate is shut")
        asked = Callers.admin | {"x-fake": "seen"}
        async with running.client.post(
            "/v1/responses", json={"model": "any"}, headers=asked
        ) as answer:
            seen = base64.b64decode((await answer.json())["body"])
        assert json.loads(seen) == {"model": "new"}
        assert (await changing)[0] == 200
