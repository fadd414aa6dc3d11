"""The load generator: a process of its own that reads jobs from stdin and writes what it saw.

A job is one line of JSON: ``url``, ``requests`` (each a path and a body), ``concurrency`` or ``at``
(seconds at which each request is sent), ``timeout`` of a request and ``deadline`` of all, seconds.
While a job runs, lines are only stamped and kept; they are parsed when it is over, so that the
client costs the engine beside it as little as it can. Whatever a server does, a job ends.
"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import uvloop
from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector

# Events of one stream; a line longer than this is no token.
LINE_BYTES = 2**20
LAG_EVERY = 0.02
TOLD = 200


@dataclass
class Stream:
    """One answer as it came: seconds since the job began, and the lines of its events.

    An arrival is sent when it is due; ``late`` is how much later this process got to it, which
    counts as waiting.
    """

    sent: float = 0.0
    at: list[float] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    failed: str = ""
    done: bool = False
    late: float = 0.0


def main() -> int:
    """Jobs until standard input ends."""
    # Not sys.stdout: with PYTHONUNBUFFERED it has no buffer, and loses what a pipe does not take.
    with open(sys.stdout.fileno(), "wb", closefd=False) as out:
        for line in sys.stdin:
            answer = uvloop.run(run(json.loads(line)))
            out.write(json.dumps(answer).encode() + b"\n")
            out.flush()
    return 0


async def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """One job, and what it took this process: CPU seconds, and how late its loop ran."""
    streams = [Stream() for _ in job["requests"]]
    lags: list[float] = []
    connector = TCPConnector(limit=0)
    async with ClientSession(
        job["url"],
        connector=connector,
        cookie_jar=DummyCookieJar(),
        read_bufsize=LINE_BYTES,
        timeout=ClientTimeout(total=job["timeout"]),
    ) as session:
        watch = asyncio.create_task(_lag(lags))
        began, cpu = time.perf_counter(), time.process_time()
        try:
            async with asyncio.timeout(job["deadline"]):
                await _send(session, job, streams, began)
        except TimeoutError:
            for stream in streams:
                if not stream.done:
                    stream.failed = stream.failed or "deadline of all requests"
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        watch.cancel()
    seen = [outcome(stream) for stream in streams]
    ends = [one["sent"] + one["latency"] for one in seen if not one["failed"]]
    return {
        "requests": seen,
        # To the last token that counts.
        "wall": max(ends, default=wall),
        "cpu": cpu,
        "late": max((stream.late for stream in streams), default=0.0),
        "lag_p99": sorted(lags)[int(0.99 * len(lags))] if lags else 0.0,
    }


async def _send(
    session: ClientSession, job: Mapping[str, Any], streams: Sequence[Stream], began: float
) -> None:
    pairs = list(zip(job["requests"], streams, strict=True))
    async with asyncio.TaskGroup() as group:
        if job.get("at") is not None:
            for (request, stream), at in zip(pairs, job["at"], strict=True):
                group.create_task(_arrive(session, request, stream, began, at))
            return
        rest = iter(pairs)

        async def client() -> None:
            for request, stream in rest:
                await _ask(session, request, stream, began)

        for _ in range(job["concurrency"]):
            group.create_task(client())


async def _arrive(
    session: ClientSession, request: Mapping[str, Any], stream: Stream, began: float, at: float
) -> None:
    await asyncio.sleep(began + at - time.perf_counter())
    await _ask(session, request, stream, began, at)


async def _ask(
    session: ClientSession,
    request: Mapping[str, Any],
    stream: Stream,
    began: float,
    due: float | None = None,
) -> None:
    ready = time.perf_counter() - began
    stream.sent = ready if due is None else due
    stream.late = ready - stream.sent
    try:
        async with session.post(request["path"], json=request["body"]) as answer:
            if answer.status != 200:
                said = (await answer.content.read(TOLD)).decode(errors="replace")
                stream.failed = f"status {answer.status}: {said}"
                return
            async for line in answer.content:
                if line.startswith(b"data:"):
                    stream.at.append(time.perf_counter() - began)
                    stream.lines.append(line)
        stream.done = True
    except TimeoutError:
        stream.failed = "timeout"
    except (ClientError, OSError, ValueError) as error:
        stream.failed = f"disconnected: {type(error).__name__}: {error}"[:TOLD]


async def _lag(lags: list[float]) -> None:
    """How late this process wakes up: its own share in what it measures."""
    while True:
        due = time.perf_counter() + LAG_EVERY
        await asyncio.sleep(LAG_EVERY)
        lags.append(max(0.0, time.perf_counter() - due))


def outcome(stream: Stream) -> dict[str, Any]:
    """Times in seconds since the request was sent: of the first token's chunk, of the last, and the
    gaps between chunks. ``failed`` is empty when the stream was whole.
    """
    times: list[float] = []
    text: list[str] = []
    usage: Mapping[str, Any] = {}
    failed, ended = stream.failed, False
    for at, line in zip(stream.at, stream.lines, strict=True):
        payload = line[5:].strip()
        if payload == b"[DONE]":
            ended = True
            continue
        try:
            chunk = json.loads(payload)
            if "error" in chunk:
                failed = failed or f"error in the stream: {chunk['error']}"[:TOLD]
            usage = chunk.get("usage") or usage
            said = said_in(chunk)
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            failed = failed or f"no event of the API: {type(error).__name__}: {error}"[:TOLD]
            continue
        if said is not None:
            times.append(at)
            text.append(said)
    tokens = int(usage.get("completion_tokens") or 0)
    failed = failed or _missing(times, tokens, ended=ended)
    return {
        "failed": failed,
        "sent": stream.sent,
        "ttft": times[0] - stream.sent if times else None,
        "latency": times[-1] - stream.sent if times else None,
        "gaps": [later - sooner for sooner, later in pairwise(times)],
        "tokens": tokens,
        "prompt_tokens": int(usage.get("prompt_tokens") or 0),
        "text": "".join(text),
    }


def said_in(chunk: Mapping[str, Any]) -> str | None:
    """The text of a chunk that carries tokens; it may be empty (half a character). None: it carries
    none, as a chat's opening, which names the role only, or a usage chunk.
    """
    if not chunk.get("choices"):
        return None
    choice = chunk["choices"][0]
    if "text" in choice:
        return str(choice["text"] or "")
    delta = choice["delta"]
    said = "".join(delta.get(name) or "" for name in ("reasoning", "reasoning_content", "content"))
    if not said and "role" in delta:
        return None
    return said


def _missing(times: Sequence[float], tokens: int, *, ended: bool) -> str:
    if not ended:
        return "cut short: no [DONE]"
    if not times:
        return "no token"
    return "" if tokens else "no usage told"


if __name__ == "__main__":
    sys.exit(main())
