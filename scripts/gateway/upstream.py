"""A fake engine that costs little: OpenAI's routes on a Unix socket and on a TCP port, at a pace.

    python -m scripts.gateway.upstream --uds PATH --port 0 [--pace 'first=… gap=… tokens=…'] …

The pace of an answer stands in its request, anywhere in the body, in words that no proxy drops if
they are said in the prompt: ``pace first=0.02 gap=0.002 tokens=24``. The first token comes after
``first`` seconds, each further one ``gap`` later, counted from the request and not from one
another; a whole answer comes when the last would. Log and socket are as a supervisor of vLLM
expects them; flags that are vLLM's are taken and not heeded.
"""

import argparse
import asyncio
import functools
import gc
import os
import re
import resource
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import httptools
import uvloop

from scripts.gateway.alarm import Alarm, Bell

MODEL = "fake"
BACKLOG = 4096
LISTENING = "upstream on "
PACE = re.compile(rb"pace first=([\d.]+) gap=([\d.]+) tokens=(\d+)")
STREAM = re.compile(rb'"stream"\s*:\s*true')
USAGE = re.compile(rb'"include_usage"\s*:\s*true')
PROMPT_TOKENS = 9
CREATED = 1795292911
LENGTH = '"length"'


@dataclass(frozen=True)
class Pace:
    """When tokens come, in seconds after the request."""

    first: float = 0.0
    gap: float = 0.0
    tokens: int = 16

    @property
    def words(self) -> str:
        """As a request says it."""
        return f"pace first={self.first:g} gap={self.gap:g} tokens={self.tokens}"

    def within(self, body: bytes) -> "Pace":
        """The pace that a body asks for; without, this one."""
        found = PACE.search(body)
        return Pace(float(found[1]), float(found[2]), int(found[3])) if found else self


@dataclass(frozen=True)
class Shape:
    """Answers of one route as vLLM writes them, the serial number of the answer left open."""

    whole: bytes
    role: bytes
    token: bytes
    finish: bytes
    usage: bytes


def _json(kind: str, prefix: str, rest: str) -> bytes:
    head = f'{{"id":"{prefix}-%016x","object":"{kind}","created":{CREATED},"model":"{MODEL}",'
    return (head + rest + "}").encode()


def _usage(tokens: int) -> str:
    total = PROMPT_TOKENS + tokens
    said = f'"prompt_tokens":{PROMPT_TOKENS},"total_tokens":{total},"completion_tokens":{tokens}'
    return f'"usage":{{{said},"prompt_tokens_details":null}}'


@functools.cache
def shape(tokens: int, *, chat: bool) -> Shape:
    """Every answer of so many tokens, but for its number."""
    kind, prefix = ("chat.completion", "chatcmpl") if chat else ("text_completion", "cmpl")
    chunk = "chat.completion.chunk" if chat else kind
    text = " word" * tokens
    message = f'"message":{{"role":"assistant","content":"{text}","tool_calls":[]}}'
    said = message if chat else f'"text":"{text}"'

    def choice(what: str, reason: str = "null") -> str:
        return f'"choices":[{{"index":0,{what},"logprobs":null,"finish_reason":{reason}}}]'

    token = '"delta":{"content":" word"}' if chat else '"text":" word"'
    nothing = '"delta":{"content":""}' if chat else '"text":""'
    role = choice('"delta":{"role":"assistant","content":""}')
    return Shape(
        whole=_json(kind, prefix, f"{choice(said, LENGTH)},{_usage(tokens)}"),
        role=_json(chunk, prefix, role) if chat else b"",
        token=_json(chunk, prefix, choice(token)),
        finish=_json(chunk, prefix, choice(nothing, LENGTH)),
        usage=_json(chunk, prefix, f'"choices":[],{_usage(tokens)}'),
    )


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
JSON, TEXT = b"application/json", b"text/plain; version=0.0.4"
ROUTES = {b"/v1/chat/completions": True, b"/v1/completions": False}


def answer(status: bytes, body: bytes, kind: bytes = JSON) -> bytes:
    """A whole answer."""
    head = b"HTTP/1.1 %b\r\nserver: uvicorn\r\ncontent-length: %d\r\ncontent-type: %b\r\n\r\n"
    return head % (status, len(body), kind) + body


@dataclass
class Engine:
    """What all connections share, and what ``/metrics`` tells of it."""

    alarm: Alarm
    pace: Pace = field(default_factory=Pace)
    serial: int = 0
    running: int = 0
    answered: int = 0
    aborted: int = 0

    def metrics(self) -> bytes:
        """As Prometheus reads it."""
        return (
            "# TYPE vllm:num_requests_running gauge\n"
            f'vllm:num_requests_running{{engine="0",model_name="{MODEL}"}} {self.running}.0\n'
            "# TYPE upstream_answered counter\n"
            f"upstream_answered_total {self.answered}.0\n"
            "# TYPE upstream_aborted counter\n"
            f"upstream_aborted_total {self.aborted}.0\n"
        ).encode()


class Connection(asyncio.Protocol):
    """One client: its requests are answered one after the other."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._parser = httptools.HttpRequestParser(self)
        self._url = self._body = b""
        self._waiting: deque[tuple[bytes, bytes]] = deque()
        self._bell: Bell | asyncio.Handle | None = None
        self._generating = self._last = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It came."""
        # uvloop's own kind of transport is no subclass.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, _: Exception | None) -> None:
        """It left; what is being generated for it ends."""
        if self._bell:
            self._bell.cancel()
        if self._generating:
            self._engine.running -= 1
            self._engine.aborted += 1
        # Each holds the other.
        del self._parser

    def data_received(self, data: bytes) -> None:
        """Bytes of requests."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.write(answer(b"400 Bad Request", b"{}"))
            self._transport.close()

    def on_message_begin(self) -> None:
        """A request begins (httptools)."""
        self._url = self._body = b""

    def on_url(self, url: bytes) -> None:
        """A part of its target."""
        self._url += url

    def on_body(self, body: bytes) -> None:
        """A part of its body."""
        self._body += body

    def on_message_complete(self) -> None:
        """It is whole."""
        self._waiting.append((self._url.partition(b"?")[0], self._body))
        self._last = not self._parser.should_keep_alive()
        self._next()

    def _next(self) -> None:
        while self._waiting and not self._generating:
            path, body = self._waiting.popleft()
            if path in ROUTES:
                self._generate(body, chat=ROUTES[path])
            else:
                self._transport.write(self._told(path))
        if self._last and not self._generating:
            self._transport.close()

    def _told(self, path: bytes) -> bytes:
        if path == b"/health":
            return answer(b"200 OK", b"")
        if path == b"/metrics":
            return answer(b"200 OK", self._engine.metrics(), TEXT)
        if path == b"/v1/models":
            model = f'{{"id":"{MODEL}","object":"model","max_model_len":4096}}'
            return answer(b"200 OK", f'{{"object":"list","data":[{model}]}}'.encode())
        return answer(b"404 Not Found", b'{"error":{"message":"Not Found","code":404}}')

    def _generate(self, body: bytes, *, chat: bool) -> None:
        now = time.perf_counter()
        self._engine.running += 1
        self._engine.serial += 1
        self._generating = True
        pace = self._engine.pace.within(body)
        answering = Answering(shape(pace.tokens, chat=chat), self._engine.serial, now, pace)
        if STREAM.search(body):
            answering.usage = bool(USAGE.search(body))
            self._later(now + pace.first if pace.first else None, self._step, answering)
        else:
            seconds = pace.first + pace.gap * (pace.tokens - 1)
            self._later(now + seconds if seconds else None, self._whole, answering)

    def _later(
        self, when: float | None, step: Callable[["Answering"], None], answering: "Answering"
    ) -> None:
        """A step when it is due; None: at once."""
        if when is None:
            step(answering)
        else:
            self._bell = self._engine.alarm.at(when, functools.partial(step, answering))

    def _whole(self, answering: "Answering") -> None:
        self._transport.write(answer(b"200 OK", answering.shape.whole % answering.serial))
        self._end()

    def _step(self, answering: "Answering") -> None:
        """One token of a stream, and what stands before the first and after the last."""
        shape, pace = answering.shape, answering.pace
        if not answering.said:
            self._transport.write(STREAM_HEAD)
            if shape.role:
                self._event(shape.role, answering)
        self._event(shape.token, answering)
        answering.said += 1
        if answering.said < pace.tokens:
            if pace.gap:
                due = answering.began + pace.first + pace.gap * answering.said
                self._bell = self._engine.alarm.at(due, functools.partial(self._step, answering))
            else:
                # uvloop joins what is written in one turn of the loop.
                soon = asyncio.get_running_loop().call_soon
                self._bell = soon(self._step, answering)
            return
        self._event(shape.finish, answering)
        if answering.usage:
            self._event(shape.usage, answering)
        self._transport.write(END)
        self._end()

    def _event(self, piece: bytes, answering: "Answering") -> None:
        said = b"data: %b\n\n" % (piece % answering.serial)
        self._transport.write(b"%x\r\n%b\r\n" % (len(said), said))

    def _end(self) -> None:
        self._bell = None
        self._generating = False
        self._engine.running -= 1
        self._engine.answered += 1
        self._next()


@dataclass
class Answering:
    """An answer on its way: how much of it is said."""

    shape: Shape
    serial: int
    began: float
    pace: Pace
    usage: bool = False
    said: int = 0


async def serve(asked: argparse.Namespace) -> None:
    """Listen until SIGTERM; the Unix socket is bound first, as vLLM binds its own."""
    loop = asyncio.get_running_loop()
    engine = Engine(Alarm(loop), asked.pace)
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)

    def connected() -> Connection:
        return Connection(engine)

    if asked.uds:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(asked.uds)
    tcp = await loop.create_server(connected, "127.0.0.1", asked.port, backlog=BACKLOG)
    port = tcp.sockets[0].getsockname()[1]
    say("[core.py:133] Initializing a V1 LLM engine (fake) with config: model=fake")
    say(f"{LISTENING}http://127.0.0.1:{port}")
    if asked.uds:
        await loop.create_unix_server(connected, sock=listener, backlog=BACKLOG)
    say("INFO:     Application startup complete.")
    # What is there now stays: a collection only looks at what came since.
    gc.freeze()
    await stopped.wait()
    # At once, streams or not: it is a measuring device, and what measures has stopped.
    os._exit(0)


def say(line: str) -> None:
    """One line, as vLLM's worker says it."""
    print(f"(Worker pid={os.getpid()}) INFO 11-21 04:07:46 {line}", flush=True)


def pace_of(text: str) -> Pace:
    """A pace as requests say it, with or without the word itself.

    :raises argparse.ArgumentTypeError: it is none.
    """
    found = PACE.fullmatch(b"pace " + text.removeprefix("pace ").encode())
    if not found:
        words = Pace().words.removeprefix("pace ")
        raise argparse.ArgumentTypeError(f"expected a pace like {words!r}, got {text!r}")
    return Pace().within(found[0])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.gateway.upstream",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--uds", help="path of a Unix socket to listen on, too")
    top.add_argument("--port", type=int, default=0, help="TCP port on loopback; 0: a free one (0)")
    top.add_argument("--pace", type=pace_of, default=Pace(), help="of requests that name none")
    return top


def main() -> int:
    """Until SIGTERM."""
    asked, _ = parser().parse_known_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    uvloop.run(serve(asked))
    return 0


if __name__ == "__main__":
    sys.exit(main())
