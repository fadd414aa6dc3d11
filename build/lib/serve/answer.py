"""The way back to one client: what has been sent so far, and how to send more."""

from starlette.types import Send

from serve.cycle import MORE
from serve.errors import Refusal, refusal_body, sse_error
from serve.upstream import Headers

EVENT_STREAM = b"text/event-stream"


class Answer:
    """``named`` where a stream's events carry names, as Anthropic's do."""

    def __init__(self, send: Send, *, named: bool = False) -> None:
        self._send = send
        self._named = named
        self.status = 0
        self.ended = False
        self.is_event_stream = False

    @property
    def started(self) -> bool:
        """Whether a status has gone out, which cannot be taken back."""
        return self.status > 0

    async def start(
        self, status: int, headers: Headers, *, more: bool = False, trailers: bool = False
    ) -> None:
        """Status and headers; ``more`` where the body's first piece follows at once, ``trailers``
        where ``trail`` follows its last.
        """
        self.status = status
        self.is_event_stream = any(
            name == b"content-type" and value.startswith(EVENT_STREAM) for name, value in headers
        )
        message = {"type": "http.response.start", "status": status, "headers": headers}
        if trailers:
            message["trailers"] = True
        elif more:
            message[MORE] = True
        await self._send(message)

    async def write(self, chunk: bytes, *, more: bool = False) -> None:
        """A piece of the body; ``more`` where another follows at once."""
        message = {"type": "http.response.body", "body": chunk, "more_body": True}
        if more:
            message[MORE] = True
        await self._send(message)

    async def end(self, last: bytes = b"") -> None:
        """The body's last piece."""
        self.ended = True
        await self._send({"type": "http.response.body", "body": last, "more_body": False})

    async def trail(self, headers: Headers) -> None:
        """What stands behind the body."""
        await self._send({"type": "http.response.trailers", "headers": headers})

    async def refuse(self, refusal: Refusal) -> None:
        """A whole answer that says why there is no other."""
        body = refusal_body(refusal)
        said = {"content-type": "application/json", "content-length": str(len(body))}
        said |= refusal.headers
        headers = [(name.encode(), value.encode()) for name, value in said.items()]
        await self.start(refusal.status, headers, more=True)
        await self.end(body)

    async def cut(self, refusal: Refusal) -> None:
        """Say as well as can be said that the rest will not come."""
        if self.ended:
            return
        if not self.started:
            await self.refuse(refusal)
        elif self.is_event_stream:
            # The blank line ends an event that was cut short, and means nothing after a whole one.
            await self.end(b"\n\n" + sse_error(refusal, named=self._named))
        # Any other body is left unfinished: the server then closes the connection, and the
        # client sees a body that is shorter than announced instead of a whole one.
