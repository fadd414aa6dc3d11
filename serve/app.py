"""Composition root of the gateway: which path is answered by whom.

``finder`` alone decides what a path is; one that it does not know reaches nobody. FastAPI is given
the gateway's own, and would take more for them than their names (`/metrics%0A`).

Knows neither how the engine is started nor what a variant means; both are passed in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from serve import openapi
from serve.admission import Admission
from serve.answer import Answer
from serve.engine import Status
from serve.errors import Refusal, ServeError, refusal_body
from serve.flight import Flights
from serve.gate import Gate
from serve.proxy import Patience, Proxy
from serve.routes import ADMIN, FORWARDED, OPEN, OWN, UNKNOWN, finder
from serve.serving import Changed, Prepare, Serving
from serve.telemetry import SEEN, Metrics, Observed, Seen
from serve.tracing import Tracer

# Of a body that names a variant.
MOST_BYTES = 4096
EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Rooms:
    """All that the gateway is made of, besides its paths."""

    metrics: Metrics
    serving: Serving
    admission: Admission
    flights: Flights
    gate: Gate
    patience: Patience
    prepare: Prepare | None = None
    tracer: Tracer | None = None
    log_lost: Callable[[], int] = lambda: 0


class Wanted(BaseModel):
    """What ``POST /admin/variant`` is asked with."""

    model_config = ConfigDict(extra="forbid")

    variant: str = Field(description="A folder of experiments/.", min_length=1, max_length=200)


def create_app(rooms: Rooms) -> ASGIApp:
    """The gateway. Forwarded paths go straight to the proxy: what a framework does for each
    request costs more than the rest of the way.
    """
    proxy = Proxy(
        rooms.serving, rooms.gate, rooms.admission, rooms.flights, rooms.metrics, rooms.patience
    )
    own = guarded(_own(rooms), rooms.gate)

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (seen := scope[SEEN]).route in forwarded:
            if scope["method"] in seen.route.methods:
                await proxy(scope, receive, send)
            else:
                await _refuse(scope, send, _wrong_method(scope, seen.route.methods))
        else:
            await own(scope, receive, send)

    forwarded = frozenset(FORWARDED)
    return Observed(dispatch, rooms.metrics, finder((*FORWARDED, *OWN, *ADMIN)), rooms.tracer)


def guarded(app: ASGIApp, gate: Gate) -> ASGIApp:
    """The gateway's own paths; all but the first two ask for a key where keys are on."""
    free = frozenset(OPEN)

    def denied(scope: Scope, seen: Seen) -> Refusal | None:
        route = seen.route
        if route not in free:
            key = gate.caller(scope["headers"])
            if isinstance(key, Refusal):
                return key
            seen.key = key.id
            if route is UNKNOWN:
                return _unknown(scope)
            if isinstance(refusal := gate.admitted(key, route), Refusal):
                return refusal
        return None if scope["method"] in route.methods else _wrong_method(scope, route.methods)

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := denied(scope, scope[SEEN])):
            await _refuse(scope, send, refusal)
        else:
            await app(scope, receive, send)

    return guard


def _own(rooms: Rooms) -> FastAPI:
    serving = rooms.serving
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)

    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> dict[str, str]:
        """The gateway is alive, whatever the engine does: no reason to restart it."""
        return {"status": "ok", "engine": serving.status.state}

    @app.api_route("/ready", methods=["GET", "HEAD"])
    async def ready() -> JSONResponse:
        """200 while requests should come; 503 with the phase until they can be answered, and when
        the gateway leaves.
        """
        headers = {} if serving.ready else {"retry-after": "2"}
        status = 200 if serving.ready else 503
        state = {"state": "leaving"} if serving.leaving else {}
        return JSONResponse(state_of(serving.status) | state, status, headers=headers)

    @app.api_route("/variant", methods=["GET", "HEAD"])
    async def what_is_on() -> dict[str, Any]:
        """What is on, what was dropped and why, versions, and the start as it went."""
        return {**serving.told, "engine": state_of(serving.status)}

    @app.api_route("/metrics", methods=["GET", "HEAD"])
    async def exposition() -> Response:
        """Ours, then the engine's own, in one Prometheus text."""
        ours = await rooms.metrics.expose(serving.status, rooms.log_lost())
        return Response(ours + await serving.metrics(), media_type=EXPOSITION)

    @app.api_route("/openapi.json", methods=["GET", "HEAD"])
    async def description() -> dict[str, Any]:
        """What can be asked, for programs."""
        return openapi.document()

    @app.post("/admin/variant")
    async def change(request: Request) -> JSONResponse:
        """Serve another variant; answers when it is ready, or this one is again."""
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > MOST_BYTES:
                message = f"the body is larger than {MOST_BYTES} bytes"
                headers = {"connection": "close"}
                return _told(request, Refusal(413, "body_too_large", message, headers=headers))
        outcome = await _change(rooms, body)
        if isinstance(outcome, Refusal):
            return _told(request, outcome)
        return JSONResponse({"variant": outcome.variant, "seconds": round(outcome.seconds, 3)})

    @app.exception_handler(Exception)
    async def our_own_fault(request: Request, error: Exception) -> Response:
        # The traceback goes to the log; a client can do nothing with it.
        message = f"the gateway failed: {type(error).__name__}"
        return _told(request, Refusal(500, "internal_error", message))

    return app


async def _change(rooms: Rooms, body: bytes) -> Changed | Refusal:
    try:
        wanted = Wanted.model_validate_json(body)
    except ValidationError as error:
        what = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        return Refusal(400, "invalid_body", f'expected {{"variant": NAME}}: {what}')
    if rooms.prepare is None:
        return Refusal(501, "not_changeable", "this gateway serves one variant")
    try:
        outcome = await rooms.serving.change(rooms.prepare, wanted.variant)
    except ServeError as error:
        return Refusal(400, "not_possible", f"nothing was changed: {error}")
    if isinstance(outcome, Changed) and outcome.fault:
        return Refusal(500, "change_failed", outcome.fault)
    return outcome


async def _refuse(scope: Scope, send: Send, refusal: Refusal) -> None:
    scope[SEEN].refused = refusal.code
    await Answer(send).refuse(refusal)


def _told(request: Request, refusal: Refusal) -> JSONResponse:
    request.scope[SEEN].refused = refusal.code
    answer = JSONResponse(None, refusal.status, headers=dict(refusal.headers))
    answer.body = refusal_body(refusal)
    answer.headers["content-length"] = str(len(answer.body))
    return answer


def _unknown(scope: Scope) -> Refusal:
    # Not a request's URL: it is built with the client's Host header and fails on a bad one.
    return Refusal(404, "unknown_route", f"{scope['method']} {scope['path']}: not found")


def _wrong_method(scope: Scope, methods: tuple[str, ...]) -> Refusal:
    message = f"{scope['method']} {scope['path']}: method not allowed"
    return Refusal(405, "method_not_allowed", message, headers={"allow": ", ".join(methods)})


def state_of(status: Status) -> dict[str, Any]:
    """The engine's status as JSON; ``seconds`` per phase of the last start."""
    return {
        "state": status.state,
        "phase": status.phase,
        "seconds": status.phases,
        "compile_cache": {
            "loaded": len(status.loaded),
            "compiled": len(status.compiled),
            "refused": list(status.refused),
        },
        "weights": list(status.weights),
        "patches": list(status.patches),
        "restarts": status.restarts,
        "reason": status.reason,
        "without_baked_cache": status.fell_back,
    }
