"""One connection and one request on it, byte by byte, for clients that do what no library does.

async with raw(url) as wire:
wire.ask("POST", "/v1/completions", {"authorization": …}, body)
status, headers = await wire.head()
async for piece in wire.body(headers): …
"""

import asyncio
import json
import re
import socket
import struct
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

from scripts.gateway.soaking.visits import WHOLE, Amiss

# Closing then sends a reset, whatever is still to be read or sent.
RESET = struct.pack("ii", 1, 0)
EVENT = "text/event-stream"
DONE = "data: [DONE]"
# The gateway's, the engine's; the name of an event may stand before it.
ERROR = re.compile(r'(event: error\n)?data: \{("type": ?"error"|"error":)')
ID = re.compile(r'"id": ?"((?:chat)?cmpl-[^"]*)"')
FINISHED = re.compile(r'"finish_reason": ?"')
SAID_BYTES = 300
Headers = dict[str, str]


class Wire:
    """A connection; what is read of it is what was asked first."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._host = host
        self._ids: list[str] = []

    def send(self, data: bytes) -> None:
        """Bytes as they are."""
        self._writer.write(data)

    def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> None:
        """A whole request, with an id of its own."""
        self.send(self.request(method, path, headers, body))

    def request(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes = b""
    ) -> bytes:
        """What ``ask`` would send. Its answer must bear its id."""
        self._ids.append(uuid.uuid4().hex)
        lines = [f"{method} {path} HTTP/1.1", f"host: {self._host}"]
        lines += [f"x-request-id: {self._ids[-1]}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body:
            lines += ["content-type: application/json", f"content-length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + body

    async def head(self) -> tuple[int, Headers]:
        """Status and headers of the next answer.

        :raises Amiss: it is somebody else's.
        """
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines[1:] if line)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        status, wanted = int(lines[0].split(" ")[1]), self._ids.pop(0) if self._ids else None
        given = headers.get("x-request-id")
        # What was no request has no id that could come back.
        if given != wanted and not (given is None and status in (400, 408, 431)):
            raise Amiss(f"the answer's x-request-id is {given}, not {wanted}")
        return status, headers

    async def body(self, headers: Headers, pause: float = 0.0) -> AsyncIterator[bytes]:
        """What follows the head, in the server's own pieces, so many seconds apart."""
        if headers.get("transfer-encoding") != "chunked":
            yield await self._reader.readexactly(int(headers.get("content-length", 0)))
            return
        while size := int(await self._reader.readline(), 16):
            yield (await self._reader.readexactly(size + 2))[:-2]
            await asyncio.sleep(pause)
        await self._reader.readexactly(2)

    async def whole(self, headers: Headers, pause: float = 0.0) -> bytes:
        """All of that."""
        return b"".join([piece async for piece in self.body(headers, pause)])

    async def leave(self, *, reset: bool = False) -> None:
        """Close without a word more; with a reset, without even waiting for what was sent."""
        if reset and not self._writer.is_closing():
            where: socket.socket = self._writer.get_extra_info("socket")
            where.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self._writer.transport.abort()
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


@asynccontextmanager
async def raw(url: str, *, buffer: int = 0) -> AsyncIterator[Wire]:
    """A connection that is closed at the end; ``buffer`` bytes are all that it holds unread."""
    where = urlsplit(url)
    made = socket.socket()
    made.setblocking(False)
    try:
        if buffer:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        await asyncio.get_running_loop().sock_connect(made, (where.hostname, where.port))
        reader, writer = await asyncio.open_connection(sock=made, limit=buffer or 2**16)
    except BaseException:
        made.close()
        raise
    wire = Wire(reader, writer, where.netloc)
    try:
        yield wire
    finally:
        await wire.leave()


async def exchange(
    url: str, method: str, path: str, headers: Mapping[str, str], body: bytes = b""
) -> tuple[int, Headers, bytes]:
    """One request on a connection of its own, and its whole answer."""
    async with raw(url) as wire:
        wire.ask(method, path, headers, body)
        status, found = await wire.head()
        return status, found, await wire.whole(found)


def end_of(status: int, headers: Headers, body: bytes) -> str:
    """How a visit ended, by its answer."""
    if status != 200:
        return refusal(status, body)
    return end_of_events(body.decode()) if headers["content-type"].startswith(EVENT) else WHOLE


def end_of_events(text: str) -> str:
    """How a stream of OpenAI's ended: whole, with an error that it tells, or with neither."""
    *_, last, rest = ["", *text.split("\n\n")]
    events = [event for event in text.split("\n\n") if ERROR.match(event)]
    if events:
        return f"error event {code_of(events[0].partition('data: ')[2].encode())}"
    if last != DONE or rest:
        return f"cut without a word after {text[-SAID_BYTES:]!r}"
    if len(ids := set(ID.findall(text))) > 1:
        return f"events of several answers: {sorted(ids)}"
    return WHOLE if FINISHED.search(text) else "no finish_reason"


def refusal(status: int, body: bytes) -> str:
    """An answer that is an error: its status, and the gateway's code or that it is the engine's."""
    return f"{status} {code_of(body)}"


def code_of(body: bytes) -> str:
    """The gateway's code in an error's body; ``engine`` where the gateway only passed it on."""
    try:
        error = json.loads(body).get("error", {})
        return str(error["code"]) if error.get("src") == "gateway" else "engine"
    except (ValueError, KeyError, AttributeError):
        return f"in another form: {body[:SAID_BYTES]!r}"
