from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from serve.app import create_app, state_of
from serve.engine import State, Status
from serve.routes import ADMIN, OWN, Route
from serve.upstream import Upstream
from tests.serve.live import Gateway, fake_setup, gateway, rooms, until, until_ready
from tests.serve.test_proxy import raw


async def test_health_says_the_gateway_lives_whatever_the_engine_does(tmp_path: Path) -> None:
    async with (
        gateway(tmp_path, "--ready-after", "600") as running,
        running.client.get("/health") as answer,
    ):
        assert answer.status == 200
        assert (await answer.json())["status"] == "ok"


async def test_ready_names_the_phase_until_requests_can_be_answered(tmp_path: Path) -> None:
    async with gateway(tmp_path, "--ready-after", "600") as running:
        await until(lambda: running.engine.status.phase == "first token", "warmed up")
        async with running.client.get("/ready") as answer:
            assert (answer.status, answer.headers["retry-after"]) == (503, "2")
            told = await answer.json()
    assert (told["state"], told["phase"]) == ("starting", "first token")
    assert "weights" in told["seconds"]


async def test_ready_is_200_when_the_engine_is(shared: Gateway) -> None:
    async with shared.client.get("/ready") as answer:
        assert answer.status == 200
        assert "retry-after" not in answer.headers
        assert (await answer.json())["state"] == "ready"


async def test_variant_tells_the_plan_and_the_engine(shared: Gateway) -> None:
    async with shared.client.get("/variant") as answer:
        told = await answer.json()
    assert told["variant"] == "fake"
    assert told["engine"]["state"] == "ready"
    assert told["engine"]["compile_cache"] == {"loaded": 1, "compiled": 1, "refused": []}


async def test_our_own_fault_is_told_in_openais_shape_without_details(tmp_path: Path) -> None:
    setup = replace(fake_setup(tmp_path), told={"not": {"json"}, "secret": object()})
    transport = httpx.ASGITransport(create_app(rooms(setup)), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        answer = await client.get("/variant")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "secret" not in answer.text


async def test_metrics_answer_without_the_engine(tmp_path: Path) -> None:
    async with gateway(tmp_path, "--ready-after", "600") as running:
        assert 'preheat_engine_state{state="starting"} 1.0' in await running.metrics()


async def test_metrics_answer_when_the_engine_has_just_died(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running:
        await until_ready(running.engine)
        running.rooms.serving._upstream = Upstream("/no/such/socket")
        assert 'preheat_engine_state{state="ready"} 1.0' in await running.metrics()


async def test_a_listed_route_is_not_redirected_to_by_its_like(shared: Gateway) -> None:
    async with shared.client.get("/health/", allow_redirects=False) as answer:
        assert answer.status == 404


@pytest.mark.parametrize("route", [*OWN, *ADMIN], ids=lambda route: route.path)
@pytest.mark.parametrize("more", ["%0A", "%0a%0a", "%20", "/", "%00", ";a"])
async def test_what_is_nearly_a_path_of_ours_is_none(
    shared: Gateway, route: Route, more: str
) -> None:
    """What one router takes for a path, the one behind it must not take for another."""
    line = f"{route.methods[0]} {route.path}{more} HTTP/1.1"
    answer = await raw(shared, f"{line}\r\nhost: a\r\nconnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"unknown_route" in answer


def test_the_status_becomes_json_without_loss() -> None:
    status = Status(
        State.STARTING,
        "compile",
        {"imports": 1.5},
        ("a",),
        ("b", "c"),
        ("why",),
        2,
        "died",
        weights=({"seconds": {"decode": 0.5}},),
        patches=("conv_state",),
    )
    assert state_of(status) == {
        "state": "starting",
        "phase": "compile",
        "seconds": {"imports": 1.5},
        "compile_cache": {"loaded": 1, "compiled": 2, "refused": ["why"]},
        "weights": [{"seconds": {"decode": 0.5}}],
        "patches": ["conv_state"],
        "restarts": 2,
        "reason": "died",
        "without_baked_cache": False,
    }
