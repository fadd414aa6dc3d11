"""Forwards one request to the engine and its answer back, byte for byte, chunk by chunk.

A raw ASGI application: bodies and unknown fields pass as they came, streams are not buffered,
and a client that leaves closes the upstream connection, which makes vLLM abort the request. Only
where a variant has a ``Boundary`` are bodies read on their way.
"""

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import MappingProxyType

from aiohttp import ClientError, ClientResponse, ClientSession
from starlette.types import Receive, Scope, Send
from yarl import URL

from serve.boundary import Back, Boundary, aside
from serve.engine import Engine
from serve.errors import envelope, sse_error
from serve.telemetry import REQUEST_ID, Metrics
from serve.translate import Refused
from serve.translate_json import Unreadable

logger = logging.getLogger(__name__)

# Meant for one connection only (RFC 9110, 7.6.1), plus what each side states for itself.
HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
# The gateway's keys are no business of the engine's; length and host belong to the connection.
NOT_SENT = HOP_BY_HOP | {b"host", b"content-length", b"authorization", b"x-request-id", b"expect"}
NOT_RETURNED = HOP_BY_HOP | {b"server", b"date", b"x-request-id"}
EVENT_STREAM = b"text/event-stream"
NONE: Mapping[str, str] = MappingProxyType({})
UNBOUND = Boundary()


class BodyTooLarge(Exception):
    """The client sends more than the gateway takes."""


class ClientGone(Exception):
    """The client closed its connection before it had sent everything."""


class Proxy:
    """The ASGI application behind every forwarded route."""

    def __init__(
        self,
        engine: Engine,
        session: ClientSession,
        metrics: Metrics,
        max_body_bytes: int,
        boundary: Boundary = UNBOUND,
    ) -> None:
        self._engine = engine
        self._session = session
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._boundary = boundary

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        answer = Answer(send)
        if not self._engine.ready:
            await self._not_ready(answer)
            return
        try:
            body = await read_body(scope, receive, self._max_body_bytes)
            body = await aside(partial(self._boundary.request, scope["route"].path), body)
        except Refused as refused:
            await answer.refuse(refused)
            return
        except BodyTooLarge:
            message = f"the request body is larger than {self._max_body_bytes} bytes"
            kind, code = "invalid_request_error", "body_too_large"
            # Closed, because the rest of the body is still to come and nobody will read it.
            await answer.error(413, message, kind=kind, code=code, headers={"connection": "close"})
            return
        except ClientGone:
            return
        with self._metrics.in_flight.track_inprogress():
            await self._until_gone(scope, receive, body, answer)

    async def _until_gone(
        self, scope: Scope, receive: Receive, body: bytes, answer: "Answer"
    ) -> None:
        forward = asyncio.create_task(self._forward(scope, body, answer))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({forward, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not forward.done():
                # A client that has everything may leave before the upstream connection is free.
                self._metrics.cancelled.inc(not answer.ended)
                forward.cancel()
            # Until the upstream connection is closed, vLLM has not heard of it.
            await asyncio.wait({forward})
        if not forward.cancelled():
            forward.result()

    async def _forward(self, scope: Scope, body: bytes, answer: "Answer") -> None:
        url = URL.build(
            scheme="http",
            host="engine",
            path=scope["raw_path"].decode("latin-1"),
            query_string=scope["query_string"].decode("latin-1"),
            encoded=True,
        )
        back = self._boundary.back(scope["route"].path)
        headers = request_headers(scope["headers"])
        if back:
            # What is compressed could not be read.
            headers = [(name, value) for name, value in headers if name != "accept-encoding"]
        try:
            async with self._session.request(
                scope["method"],
                url,
                data=body or None,
                headers=headers,
                skip_auto_headers=("Content-Type",),
                allow_redirects=False,
            ) as upstream:
                if back and upstream.status == 200:
                    await _changed(upstream, answer, back)
                else:
                    await _as_it_is(upstream, answer)
        except (ClientError, OSError, TimeoutError) as error:
            await self._upstream_failed(answer, error)
        except Unreadable as error:
            message = f"the engine's answer cannot be translated: {error}"
            await self._cut(answer, message, "engine_answer_unreadable")

    async def _not_ready(self, answer: "Answer") -> None:
        status = self._engine.status
        where = f"{status.state}, phase {status.phase!r}" if status.phase else str(status.state)
        message = f"the engine is not ready ({where}){': ' if status.reason else ''}{status.reason}"
        await answer.error(
            503,
            message,
            kind="service_unavailable",
            code="engine_not_ready",
            headers={"retry-after": "2"},
        )

    async def _upstream_failed(self, answer: "Answer", error: Exception) -> None:
        message = f"the engine ended the connection: {error or type(error).__name__}"
        await self._cut(answer, message, "engine_connection_lost")

    async def _cut(self, answer: "Answer", message: str, code: str) -> None:
        logger.warning("%s", message)
        kind = "server_error"
        if not answer.started:
            await answer.error(502, message, kind=kind, code=code)
        elif answer.is_event_stream:
            # The blank line ends an event that was cut short, and means nothing after a whole one.
            await answer.write(b"\n\n" + sse_error(message, kind=kind, code=code))
            await answer.end()
        # Any other body is left unfinished: the server then closes the connection, and the
        # client sees a body that is shorter than announced instead of a whole one.


class Answer:
    """The way back to one client: what has been sent so far, and how to send more."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self.ended = False
        self.is_event_stream = False

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        self.is_event_stream = any(
            name == b"content-type" and value.startswith(EVENT_STREAM) for name, value in headers
        )
        message = {"type": "http.response.start", "status": status, "headers": headers}
        await self._send(message)

    async def write(self, chunk: bytes) -> None:
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end(self) -> None:
        self.ended = True
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def error(
        self, status: int, message: str, *, kind: str, code: str, headers: Mapping[str, str] = NONE
    ) -> None:
        await self._whole(status, envelope(message, kind=kind, code=code), headers)

    async def refuse(self, refused: Refused) -> None:
        kind, param = "invalid_request_error", refused.field or None
        await self._whole(400, envelope(str(refused), kind=kind, code=refused.code, param=param))

    async def _whole(self, status: int, body: bytes, headers: Mapping[str, str] = NONE) -> None:
        said = {"content-type": "application/json", "content-length": str(len(body)), **headers}
        await self.start(status, [(k.encode(), v.encode()) for k, v in said.items()])
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


async def _as_it_is(upstream: ClientResponse, answer: Answer) -> None:
    await answer.start(upstream.status, response_headers(upstream))
    async for chunk in upstream.content.iter_any():
        await answer.write(chunk)
    await answer.end()


async def _changed(upstream: ClientResponse, answer: Answer, back: Back) -> None:
    """A stream event by event, any other answer as a whole.

    :raises Unreadable: it is no JSON.
    """
    headers = [(k, v) for k, v in response_headers(upstream) if k != b"content-length"]
    if upstream.headers.get("content-type", "").encode().startswith(EVENT_STREAM):
        events = back.events()
        await answer.start(upstream.status, headers)
        async for chunk in upstream.content.iter_any():
            if lines := await aside(events.feed, chunk, events.held_bytes):
                await answer.write(lines)
        await answer.write(events.end())
    else:
        body = await aside(back.whole, await upstream.read())
        await answer.start(upstream.status, [*headers, (b"content-length", b"%d" % len(body))])
        await answer.write(body)
    await answer.end()


def request_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """What the engine is told: the client's headers less those that end at the gateway."""
    headers = list(headers)
    # Whatever Connection names is meant for this connection only, too.
    named = {
        token.strip().lower()
        for name, value in headers
        if name == b"connection"
        for token in value.split(b",")
    }
    kept = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in headers
        if name not in NOT_SENT and name not in named
    ]
    return [*kept, ("x-request-id", REQUEST_ID.get())]


def response_headers(upstream: ClientResponse) -> list[tuple[bytes, bytes]]:
    """What the client is told: the engine's headers less those of the connection."""
    return list(_returned(upstream.raw_headers))


def _returned(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    for name, value in headers:
        if (lower := name.lower()) not in NOT_RETURNED:
            yield lower, value


async def read_body(scope: Scope, receive: Receive, most: int) -> bytes:
    """The whole request body.

    :raises BodyTooLarge: it has, or is announced to have, more than ``most`` bytes.
    :raises ClientGone: the client left before the end.
    """
    announced = dict(scope["headers"]).get(b"content-length", b"0")
    # The server has checked that it is a number.
    if int(announced) > most:
        raise BodyTooLarge
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise BodyTooLarge
        if not message.get("more_body", False):
            return b"".join(parts)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
