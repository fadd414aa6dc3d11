"""A process that looks like vLLM's API server from outside: flags, log, socket, children, faults.

    python fake_engine.py --uds PATH [--ready-after S] [--crash-at-start] … and any flag of vLLM

Answers ``/health``, ``/metrics``, ``/v1/models``, completions, and echoes every other request as
JSON: method, target, headers and body digest as they arrived. A request can ask for a fault of
its own by the header ``x-fake``, which the gateway passes on like any other; see ``FAULTS``.
"""

import argparse
import asyncio
import base64
import contextlib
import gzip
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

WORKER = f"(Worker pid={os.getpid()}) INFO 11-21 04:07:46 "
START = (
    "[api_utils.py:286] non-default args: {'model': '/weights/tiny'}",
    "[core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='/weights/tiny'",
    "[cpu_model_runner.py:68] Starting to load model /weights/tiny...",
    "[base_loader.py:82] Initializing model took 0.258868 seconds",
    "[default_loader.py:501] Loading weights took 0.09 seconds",
    "[cpu_model_runner.py:87] Warming up model for the compilation...",
    "[decorators.py:319] [backbone] Directly load AOT compilation from path /cache/aaaa/model",
    "[decorators.py:319] [eagle_head] saved AOT compiled function to /cache/bbbb/model",
    "[cpu_model_runner.py:91] Warming up done.",
    "[core.py:402] init engine (profile, create kv cache, warmup model) took 6.53 s",
    "INFO:     Application startup complete.",
)
VOCABULARY = 16384
MODEL = {"id": "tiny", "object": "model", "max_model_len": 64}
CORE = "(EngineCore pid=12) ERROR 11-21 03:55:30 [core.py:1] "
TRACEBACK = (
    CORE + "EngineCore failed to start.",
    CORE + "Traceback (most recent call last):",
    CORE + '  File "vllm/v1/engine/core.py", line 849, in run_engine_core',
    CORE + "ValueError: No available memory for the cache blocks.",
    "(APIServer pid=11) Traceback (most recent call last):",
    "(APIServer pid=11) RuntimeError: Engine core initialization failed. See root cause above.",
)
# Not empty once the core behind the front end is dead.
SICK: list[bool] = []
# Not empty once the core hangs: the front end answers, and no token comes.
HUNG: list[bool] = []


@dataclass
class Request:
    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")


class Channel:
    """One connection: ``gone`` is set when the other side closes it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self.gone = False

    async def head(self, status: str, *headers: str) -> None:
        await self.send("\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode())

    async def answer(self, status: str, body: bytes, *headers: str) -> None:
        await self.head(status, f"Content-Length: {len(body)}", *headers)
        await self.send(body)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    async def wait(self, seconds: float | None) -> None:
        """Sleep (None: for ever), or raise ConnectionError as soon as the other side leaves."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._reader.read(1)
                raise ConnectionResetError


class FakeEngine:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.running = 0
        self.aborted = 0
        self.answered = 0
        self.said = 0
        # As many sequences as are worked on at once; whoever comes then waits.
        self.slots = asyncio.Semaphore(options.slots)

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        channel = Channel(reader, writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await self.request(await read_request(reader), channel)
        writer.close()

    async def request(self, request: Request, channel: Channel) -> None:
        path = request.target.partition("?")[0]
        self.running += 1
        try:
            if self.options.hang:
                await channel.wait(None)
            if fault := FAULTS.get(request.header("x-fake")):
                await fault(request, channel)
            elif path == "/health":
                await channel.answer("503 Service Unavailable" if SICK else "200 OK", b"")
            elif path == "/metrics":
                await channel.answer("200 OK", self.metrics(), "Content-Type: text/plain")
            elif path == "/v1/models":
                await answer_json(channel, {"object": "list", "data": [MODEL]})
            elif path.endswith("/completions"):
                async with self.slots:
                    if HUNG:
                        await channel.wait(None)
                    await self.complete(request, channel, chat="chat" in path)
            else:
                await echo(request, channel)
        except ConnectionError:
            self.aborted += 1
            raise
        finally:
            self.running -= 1

    def metrics(self) -> bytes:
        # /metrics itself is running while it is asked.
        lines = [
            "# HELP vllm:num_requests_running Number of requests in model execution batches.",
            "# TYPE vllm:num_requests_running gauge",
            f'vllm:num_requests_running{{engine="0",model_name="tiny"}} {self.running - 1}.0',
            "# HELP fake_aborted_total Requests whose client left.",
            "# TYPE fake_aborted_total counter",
            f"fake_aborted_total {self.aborted}.0",
            "# HELP vllm:generation_tokens_total Number of generation tokens processed.",
            "# TYPE vllm:generation_tokens_total counter",
            f'vllm:generation_tokens_total{{engine="0",model_name="tiny"}} {self.said}.0',
        ]
        return "\n".join([*lines, ""]).encode()

    async def complete(self, request: Request, channel: Channel, *, chat: bool) -> None:
        """Tokens that repeat the prompt, so that mixed streams would show."""
        asked = json.loads(request.body)
        said = asked["messages"][-1]["content"] if chat else asked["prompt"]
        if isinstance(said, list):
            # A prompt of token ids; a word for each.
            said = " ".join(map(str, said))
        tokens = [f"{said}-{number} " for number in range(asked.get("max_tokens", 16))]
        seconds = asked.get("token_seconds", self.options.slow_tokens)
        shape = chat_chunk if chat else text_chunk
        if not asked.get("stream"):
            for _ in tokens if seconds else ():
                await channel.wait(seconds)
                self.said += 1
            choice = {"index": 0, "finish_reason": "length"}
            whole = "".join(tokens)
            choice |= {"message": message(whole)} if chat else {"text": whole}
            if asked.get("return_token_ids"):
                choice |= {"prompt_token_ids": ids(said), "token_ids": ids(*tokens)}
            kind = "chat.completion" if chat else "text_completion"
            body = {"id": "1", "object": kind, "created": 1, "model": "tiny", "choices": [choice]}
            await answer_json(channel, body | {"usage": usage(said, tokens)})
        else:
            kind = "Content-Type: text/event-stream; charset=utf-8"
            await channel.head("200 OK", kind, "Transfer-Encoding: chunked")
            for number, token in enumerate(tokens):
                await channel.wait(seconds)
                self.said += 1
                await channel.chunk(event(shape(token)))
                if self.options.crash_mid_stream and number == 1:
                    os._exit(9)
            if (asked.get("stream_options") or {}).get("include_usage"):
                last = {**shape(""), "choices": [], "usage": usage(said, tokens)}
                await channel.chunk(event(last))
            await channel.chunk(b"data: [DONE]\n\n")
            await channel.send(b"0\r\n\r\n")
        self.answered += 1
        if self.options.crash_after is not None and self.answered == 1:
            asyncio.get_running_loop().call_later(self.options.crash_after, os._exit, 3)


def ids(*tokens: str) -> list[int]:
    """A number for each text, the same in every process."""
    return [zlib.crc32(token.encode()) % VOCABULARY for token in tokens]


def usage(said: str, tokens: list[str]) -> dict[str, int]:
    read, told = len(said.split()), len(tokens)
    return {"prompt_tokens": read, "total_tokens": read + told, "completion_tokens": told}


def event(value: object) -> bytes:
    # As vLLM writes it: without blanks.
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def message(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def chat_chunk(token: str) -> dict[str, object]:
    choice = {"index": 0, "delta": message(token), "finish_reason": None}
    kind = "chat.completion.chunk"
    return {"id": "1", "object": kind, "created": 1, "model": "tiny", "choices": [choice]}


def text_chunk(token: str) -> dict[str, object]:
    choice = {"index": 0, "text": token, "finish_reason": None}
    kind = "text_completion"
    return {"id": "1", "object": kind, "created": 1, "model": "tiny", "choices": [choice]}


async def answer_json(channel: Channel, value: object, *headers: str) -> None:
    body = json.dumps(value, separators=(",", ":")).encode()
    await channel.answer("200 OK", body, "Content-Type: application/json", *headers)


async def echo(request: Request, channel: Channel) -> None:
    digest = hashlib.sha256(request.body).hexdigest()
    seen = {"method": request.method, "target": request.target, "headers": request.headers}
    body = json.dumps({**seen, "sha256": digest, "length": len(request.body)}).encode()
    kind = "Content-Type: application/json"
    if request.method == "HEAD":
        await channel.head("200 OK", kind, f"Content-Length: {len(body)}")
    else:
        await channel.answer("200 OK", body, kind)


async def repeated_headers(_: Request, channel: Channel) -> None:
    await answer_json(channel, {}, "Set-Cookie: a=1", "Set-Cookie: b=2", "Warning: \xe9")


async def compressed(request: Request, channel: Channel) -> None:
    body = gzip.compress(request.body, mtime=0)
    await channel.answer("200 OK", body, "Content-Encoding: gzip", "Keep-Alive: timeout=5")


async def trailed(_: Request, channel: Channel) -> None:
    head = ("Content-Type: text/plain", "Trailer: X-Sum", "Transfer-Encoding: chunked")
    await channel.head("200 OK", *head)
    # Two chunks in one write, and what stands behind them.
    await channel.send(b"3\r\none\r\n3\r\ntwo\r\n0\r\nX-Sum: 6\r\n\r\n")


async def redirected(_: Request, channel: Channel) -> None:
    await channel.answer("307 Temporary Redirect", b"", "Location: /v1/models")


async def refused(_: Request, channel: Channel) -> None:
    await channel.answer("400 Bad Request", b'{"error":{}}', "Content-Type: application/json")


async def cut_short(_: Request, channel: Channel) -> None:
    await channel.head("200 OK", "Content-Length: 1000")
    await channel.send(b"x" * 10)
    channel.writer.close()
    raise ConnectionResetError


async def cut_event(_: Request, channel: Channel) -> None:
    await channel.head("200 OK", "Content-Type: text/event-stream", "Transfer-Encoding: chunked")
    await channel.chunk(b'data: {"half":')
    channel.writer.close()
    raise ConnectionResetError


async def silent(_: Request, channel: Channel) -> None:
    await channel.wait(None)


async def seen(request: Request, channel: Channel) -> None:
    """The body as it arrived, in a form that nothing on the way takes for ids."""
    await answer_json(channel, {"body": base64.b64encode(request.body).decode()})


async def say(request: Request, channel: Channel) -> None:
    """What the request's ``say`` is: a whole answer, or the pieces of a stream."""
    said = json.loads(request.body)["say"]
    if isinstance(said, str):
        await channel.answer("200 OK", said.encode(), "Content-Type: application/json")
        return
    kind = "Content-Type: text/event-stream; charset=utf-8"
    await channel.head("200 OK", kind, "Transfer-Encoding: chunked")
    for piece in said:
        await channel.chunk(piece.encode())
    await channel.send(b"0\r\n\r\n")


async def core_dies(_: Request, channel: Channel) -> None:
    SICK.append(True)
    await channel.answer("500 Internal Server Error", b"{}")


async def core_hangs(_: Request, channel: Channel) -> None:
    HUNG.append(True)
    await channel.answer("200 OK", b"{}")


async def crash(_: Request, __: Channel) -> None:
    print("torch.OutOfMemoryError: CUDA out of memory.", flush=True)
    os._exit(9)


FAULTS: dict[str, Callable[[Request, Channel], Awaitable[None]]] = {
    "repeated-headers": repeated_headers,
    "compressed": compressed,
    "redirected": redirected,
    "trailed": trailed,
    "refused": refused,
    "cut-short": cut_short,
    "cut-event": cut_event,
    "silent": silent,
    "crash": crash,
    "core-dies": core_dies,
    "core-hangs": core_hangs,
    "seen": seen,
    "say": say,
}


async def read_request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    request = Request(method, target, headers, b"")
    request.body = await reader.readexactly(int(request.header("content-length") or 0))
    return request


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--uds", required=True)
    parser.add_argument("--ready-after", type=float, default=0, metavar="S")
    parser.add_argument("--crash-at-start", action="store_true")
    parser.add_argument("--crash-times-file", type=Path, help="crash at start as often as it says")
    parser.add_argument("--crash-after", type=float, metavar="S", help="after the first completion")
    parser.add_argument("--crash-mid-stream", action="store_true")
    parser.add_argument("--hang", action="store_true", help="accept, never answer")
    parser.add_argument("--slots", type=int, default=10_000, metavar="N")
    parser.add_argument("--slow-tokens", type=float, default=0, metavar="S")
    parser.add_argument("--garbage", action="store_true", help="binary output without line ends")
    parser.add_argument("--ignore-sigterm", action="store_true")
    return parser.parse_known_args()[0]


def crashes_now(asked: argparse.Namespace) -> bool:
    if not asked.crash_times_file:
        return bool(asked.crash_at_start)
    left = int(asked.crash_times_file.read_text())
    asked.crash_times_file.write_text(str(max(left - 1, 0)))
    return left > 0


async def serve(asked: argparse.Namespace) -> None:
    # As vLLM does: bound early and without unlinking, listening only when the model is loaded.
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(asked.uds)
    stopped = asyncio.Event()
    if not asked.ignore_sigterm:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    for line in START:
        print(WORKER + line, flush=True)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stopped.wait(), asked.ready_after)
    if not stopped.is_set():
        await asyncio.start_unix_server(FakeEngine(asked).connection, sock=listener)
        await stopped.wait()
    # At once, and without our children: vLLM too leaves its own when it is killed.
    os._exit(0)


def main() -> int:
    asked = options()
    if asked.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if asked.garbage:
        sys.stdout.buffer.write(bytes(range(256)).replace(b"\n", b"") * 4096)
        sys.stdout.buffer.flush()
    if crashes_now(asked):
        print("\n".join(TRACEBACK), flush=True)
        return 1
    # A worker in our process group, and one that left it: neither may outlive the gateway.
    with subprocess.Popen(["/bin/sh", "-c", "setsid sleep 600 & exec sleep 600"]):
        asyncio.run(serve(asked))
    return 0


if __name__ == "__main__":
    sys.exit(main())
