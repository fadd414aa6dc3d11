"""Composition root of the gateway: which path is answered by whom.

Knows neither how the engine is started nor what a variant means; both are passed in.
"""

from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp

from serve.boundary import Boundary
from serve.engine import Engine, Status
from serve.errors import envelope
from serve.proxy import UNBOUND, Proxy
from serve.routes import FORWARDED
from serve.telemetry import Metrics, Observed

ENGINE_METRICS = ClientTimeout(total=5)
EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


def create_app(
    engine: Engine,
    session: ClientSession,
    variant: dict[str, Any],
    max_body_bytes: int,
    boundary: Boundary = UNBOUND,
) -> ASGIApp:
    """The gateway over ``engine``.

    ``session`` is connected to the engine's socket; ``variant`` is what ``/variant`` tells
    beside the engine's own state; ``boundary`` is what is changed of bodies on their way.
    """
    metrics = Metrics()
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    proxy = Proxy(engine, session, metrics, max_body_bytes, boundary)
    for route in FORWARDED:
        app.router.routes.append(Route(route.path, proxy, methods=list(route.methods)))

    @app.get("/health")
    async def health() -> dict[str, str]:
        """The gateway is alive, whatever the engine does: no reason to restart it."""
        return {"status": "ok", "engine": engine.status.state}

    @app.get("/ready")
    async def ready() -> JSONResponse:
        """200 once requests can be answered, 503 with the current phase until then."""
        headers = {} if engine.ready else {"retry-after": "2"}
        return JSONResponse(state_of(engine.status), 200 if engine.ready else 503, headers=headers)

    @app.get("/variant")
    async def what_is_on() -> dict[str, Any]:
        """What is on, what was dropped and why, versions, and the start as it went."""
        return {**variant, "engine": state_of(engine.status)}

    @app.get("/metrics")
    async def exposition() -> Response:
        """Ours, then the engine's own, in one Prometheus text."""
        ours = metrics.expose(engine.status)
        theirs = await engine_metrics(session) if engine.ready else b""
        return Response(ours + theirs, media_type=EXPOSITION)

    @app.exception_handler(HTTPException)
    async def no_such_route(request: Request, error: HTTPException) -> Response:
        # Not request.url: it is built with the client's Host header and fails on a bad one.
        message = f"{request.method} {request.scope['path']}: {error.detail.lower()}"
        code = "method_not_allowed" if error.status_code == 405 else "unknown_route"
        body = envelope(message, kind="invalid_request_error", code=code)
        return Response(body, error.status_code, error.headers, "application/json")

    @app.exception_handler(Exception)
    async def our_own_fault(request: Request, error: Exception) -> Response:
        # The traceback goes to the log; a client can do nothing with it.
        message = f"the gateway failed: {type(error).__name__}"
        body = envelope(message, kind="server_error", code="internal_error")
        return Response(body, 500, media_type="application/json")

    return Observed(app, metrics)


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


async def engine_metrics(session: ClientSession) -> bytes:
    """The engine's exposition, or nothing when it does not answer in time."""
    try:
        async with session.get("/metrics", timeout=ENGINE_METRICS) as answer:
            return await answer.read() if answer.status == 200 else b""
    except (ClientError, OSError, TimeoutError):
        return b""
