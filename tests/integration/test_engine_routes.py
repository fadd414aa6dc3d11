"""Every route that vLLM has is either passed on or kept back, and somebody has decided which."""

import ast
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.served import Served
from serve.routes import ADMIN, FORWARDED, OWN
from tests.integration.exchange import Answer, exchange, past, request, through

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

DECORATORS = frozenset(("get", "post", "put", "patch", "delete", "head", "options", "websocket"))
CALLS = frozenset(("add_api_route", "add_api_websocket_route", "add_route", "mount"))
LOGGED = re.compile(r"Route: (/\S*), Methods: (.+)")

# What the engine of a model that generates has, and clients may reach.
PASSED_ON = {
    "/detokenize": {"POST"},
    "/generative_scoring": {"POST"},
    "/invocations": {"POST"},
    "/kv_event_sources": {"GET"},
    "/load": {"GET"},
    "/ping": {"GET", "POST"},
    "/tokenize": {"POST"},
    "/v1/chat/completions": {"POST"},
    "/v1/chat/completions/batch": {"POST"},
    "/v1/completions": {"POST"},
    "/v1/messages": {"POST"},
    "/v1/messages/count_tokens": {"POST"},
    "/v1/models": {"GET"},
    "/v1/responses": {"POST"},
    "/v1/responses/{response_id}": {"GET"},
    "/v1/responses/{response_id}/cancel": {"POST"},
    "/v1/systemone": {"POST"},
    "/version": {"GET"},
}
# What it has, too, and the gateway answers itself.
OURS = frozenset(("/health", "/metrics", "/openapi.json"))
# What no client may reach, by what it could do there.
KEPT_BACK = {
    "change how many engines there are": ("/scale_elastic_ep", "/is_scaling_elastic_ep"),
    "do half of a request, or end those of others": (
        "/abort_requests",
        "/cohere/v2/chat/render",
        "/inference/v1/abort_requests",
        "/inference/v1/generate",
        "/v1/chat/completions/derender",
        "/v1/chat/completions/render",
        "/v1/completions/derender",
        "/v1/completions/render",
        "/v1/messages/render",
        "/v1/responses/render",
    ),
    "load weights": (
        "/finish_weight_update",
        "/get_world_size",
        "/init_weight_transfer_engine",
        "/shutdown_weight_transfer_engine",
        "/start_draft_weight_update",
        "/start_weight_update",
        "/update_weight_version",
        "/update_weights",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/weight_checker",
        "/weight_info",
    ),
    "stop or slow the engine, or run code in it": (
        "/collective_rpc",
        "/fault_tolerance/apply",
        "/fault_tolerance/status",
        "/is_paused",
        "/is_sleeping",
        "/pause",
        "/release_kv_cache_memory",
        "/reset_encoder_cache",
        "/reset_mm_cache",
        "/reset_prefix_cache",
        "/resume",
        "/sleep",
        "/start_profile",
        "/stop_profile",
        "/wake_up",
    ),
    "read how it is made": (
        "/docs",
        "/docs/oauth2-redirect",
        "/redoc",
        "/server_info",
        "/static",
    ),
    "open a WebSocket, which the gateway does not pass on": ("/v1/realtime",),
    "ask a supervisor that does not run here": ("/readyz",),
}
HIDDEN = sorted(path for paths in KEPT_BACK.values() for path in paths)


def routes_in_source() -> Iterator[str]:
    """The paths that vLLM's own code names where it makes routes, whatever switches them on."""
    found = importlib.util.find_spec("vllm")
    assert found is not None
    assert found.origin is not None
    for file in (Path(found.origin).parent / "entrypoints").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                path, name = node.args[0], node.func.attr
                is_path = isinstance(path, ast.Constant) and str(path.value).startswith("/")
                if is_path and name in DECORATORS | CALLS:
                    yield str(path.value)


def routes_of(served: Served) -> dict[str, set[str]]:
    """The routes that the running engine says it has, those that its OpenAPI hides included."""
    routes: dict[str, set[str]] = {}
    for path, methods in LOGGED.findall(served.log.read_text(errors="replace")):
        routes.setdefault(path, set()).update(set(methods.split(", ")) - {"HEAD"})
    return routes


def is_the_gateways(answer: Answer) -> bool:
    try:
        return json.loads(answer.body)["error"]["src"] == "gateway"
    except (ValueError, KeyError, TypeError):
        return False


def test_every_route_in_vllms_source_has_been_decided_about():
    known = {route.path for route in (*FORWARDED, *OWN, *ADMIN)} | set(HIDDEN)
    assert set(routes_in_source()) - known == set()


def test_every_route_that_is_passed_on_or_kept_back_exists_in_vllm(seq8):
    there = set(routes_in_source()) | set(routes_of(seq8))
    assert {route.path for route in FORWARDED} - there == set()
    assert set(HIDDEN) - there == set()


def test_the_running_engine_has_no_route_that_nobody_has_decided_about(seq8):
    routes = routes_of(seq8)
    assert set(routes) - set(HIDDEN) - OURS == set(PASSED_ON)
    assert {path: routes[path] for path in PASSED_ON} == PASSED_ON


def test_what_its_openapi_tells_is_among_what_it_logs(seq8):
    told = json.loads(exchange(past(seq8), request("GET", "/openapi.json")).body)["paths"]
    assert set(told) <= set(routes_of(seq8))
    assert {path: {method.upper() for method in told[path]} for path in PASSED_ON} == PASSED_ON


def test_exactly_these_are_passed_on(seq8):
    reached: dict[str, set[str]] = {}
    for path, methods in routes_of(seq8).items():
        for method in methods:
            asked = request(method, path.replace("{response_id}", "resp_unheard_of"))
            answer = exchange(through(seq8), asked)
            if path not in OURS and not is_the_gateways(answer):
                reached.setdefault(path, set()).add(method)
    assert reached == PASSED_ON


@pytest.mark.parametrize("path", HIDDEN)
def test_what_is_kept_back_is_kept_back_whatever_the_method(seq8, path):
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        asked = request(method, path, ("Content-Type: application/json",))
        answer = exchange(through(seq8), asked)
        # A response may be called "render": that is read, and not there.
        if (method, path) != ("GET", "/v1/responses/render"):
            assert answer.status in (404, 405)
            assert is_the_gateways(answer)


@pytest.mark.parametrize(
    "target",
    [
        "//scale_elastic_ep",
        "/scale_elastic_ep/",
        "/./scale_elastic_ep",
        "/v1/../scale_elastic_ep",
        "/v1/responses/../../scale_elastic_ep",
        "/v1/responses/..%2f..%2fscale_elastic_ep/cancel",
        "/v1/responses/%2e%2e/cancel/../../../scale_elastic_ep",
        "/%73cale_elastic_ep",
        "/scale%5Felastic_ep",
        "/scale_elastic_ep%00",
        "/scale_elastic_ep%20",
        "/scale_elastic_ep?x=/v1/models",
        "/scale_elastic_ep;/v1/models",
        "/SCALE_ELASTIC_EP",
        "/v1/models/../../scale_elastic_ep",
        "/v1/chat/completions/render/",
        "/v1/chat/completions%2frender",
        "http://engine/scale_elastic_ep",
        "/inference%2Fv1%2Fabort_requests",
    ],
)
def test_no_other_spelling_reaches_it(seq8, target):
    answer = exchange(through(seq8), request("POST", target, ("Content-Type: application/json",)))
    assert answer.status in (400, 404, 405)
    assert is_the_gateways(answer)


@pytest.mark.parametrize("path", ["/v1/realtime", "/v1/chat/completions"])
def test_no_websocket_is_opened(seq8, path):
    upgrade = (
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )
    answer = exchange(through(seq8), request("GET", path, upgrade))
    assert 400 <= answer.status < 500
