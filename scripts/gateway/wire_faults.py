"""Scenarios of hostile bytes: a row each. ``tests/serve/test_wire.py`` goes through the details."""

import asyncio
import json
import time
from pathlib import Path

from scripts.gateway.asking import COMPLETIONS, PATIENCE_SECONDS, get, post
from scripts.gateway.line import Line
from scripts.gateway.scenario import Scenario, Size
from scripts.gateway.stage import Stage, stage
from scripts.gateway.verdict import SURPLUS, WHOLE, Counts, rule, word

SLOW, LARGE, MALFORMED = "408 request_too_slow", "431 headers_too_large", "400 malformed_request"
# A number that no request has: of what is hidden in another's body.
HIDDEN = 666_666
HEAD = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\n".encode()
LONG = b"X: " + b"a" * 100_000


async def exchanged(made: Stage, data: bytes, answers: int = 1) -> list[str]:
    """What comes of bytes: so many answers, and a word more for each that nobody asked for."""
    line = await Line.open(made.address)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await line.send(data)
            said = [word(await line.answer(), number) for number in range(answers)]
            line.shut()
            while (more := await line.answer()).status:
                said.append(word(more, -1, surplus=True))
            return said
    finally:
        line.leave()


async def slowloris(folder: Path, size: Size) -> Counts:
    """Heads that come a byte at a time, and bodies that stop."""
    async with stage(folder) as made:
        number = size.of(300)
        lines = [await Line.open(made.address) for _ in range(number)]
        for line in lines:
            await line.send(b"GET /health HTTP/1.1\r\nX: ")
        answers = [asyncio.create_task(line.answer()) for line in lines]
        counts = Counts()
        until = time.monotonic() + PATIENCE_SECONDS
        while not all(answer.done() for answer in answers) and time.monotonic() < until:
            for line, answer in zip(lines, answers, strict=True):
                if not answer.done():
                    await line.send(b"x")
            counts.words[await made.word()] += 1
            await asyncio.sleep(0.5)
        counts.words.update([word(await answer, 0) for answer in answers])
        for line in lines:
            line.leave()
        return await finished(made, counts)


async def finished(made: Stage, counts: Counts) -> Counts:
    """The counts, once somebody was answered after all that."""
    counts.words[await made.word()] += 1
    await made.counted((), counts)
    counts.held["what was hidden in another request reached nobody"] = HIDDEN not in made.seen()
    counts.exit_status = await made.stopped()
    return counts


async def headers(folder: Path, size: Size) -> Counts:
    """Heads that are too large, have too many headers, or never end."""
    many = b"".join(b"X-%d: 1\r\n" % number for number in range(200))
    async with stage(folder) as made:
        counts = Counts()
        for data in (
            HEAD + LONG + b"\r\n\r\n",
            HEAD + many + b"\r\n",
            HEAD + LONG * 10,
            b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            b"G" * 100_000,
        ):
            for _ in range(size.of(10)):
                counts.words.update(await exchanged(made, data))
        return await finished(made, counts)


def smuggled() -> dict[str, bytes]:
    """Requests that two readers could take for different ones, with another hidden in each."""
    hidden = post(COMPLETIONS, json.dumps({"prompt": str(HIDDEN)}).encode())
    length = b"Content-Length: %d\r\n" % len(hidden)
    chunked = b"Transfer-Encoding: chunked\r\n"
    none = b"0\r\n\r\n" + hidden
    return {
        "length and chunks": HEAD + length + chunked + b"\r\n" + none,
        "chunks and length": HEAD + chunked + length + b"\r\n" + none,
        "two lengths": HEAD + b"Content-Length: 2\r\n" + length + b"\r\n{}" + hidden,
        "a length of two values": HEAD + b"Content-Length: 2, 2\r\n\r\n{}" + hidden,
        "a signed length": HEAD + b"Content-Length: +2\r\n\r\n{}" + hidden,
        "chunks twice": HEAD + chunked + chunked + b"\r\n" + none,
        "chunks of another coding": HEAD
        + b"Transfer-Encoding: xchunked\r\n"
        + length
        + b"\r\n"
        + none,
        "chunked, identity": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n" + none,
        "a space before the colon": HEAD
        + b"Transfer-Encoding : chunked\r\n"
        + length
        + b"\r\n"
        + none,
        "a folded header": HEAD + b"Transfer-Encoding:\r\n chunked\r\n" + length + b"\r\n" + none,
        "a vertical tab": HEAD + b"Transfer-Encoding:\x0bchunked\r\n" + length + b"\r\n" + none,
        "a bare CR": HEAD + b"X: 1\rTransfer-Encoding: chunked\r\n" + length + b"\r\n" + none,
        "NUL": HEAD + b"X: \x00\r\n" + length + b"\r\n" + hidden,
        "a size of hex digits with 0x": HEAD + chunked + b"\r\n0x2\r\n{}\r\n" + none,
        "a negative size": HEAD + chunked + b"\r\n-1\r\n" + none,
        "a chunk that is longer": HEAD + chunked + b"\r\n1\r\n{}\r\n" + none,
        "HTTP/0.9": b"POST " + COMPLETIONS.encode() + b"\r\n" + hidden,
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + hidden,
        "CONNECT": b"CONNECT engine:80 HTTP/1.1\r\nHost: engine\r\n\r\n" + hidden,
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + hidden,
        "behind the last": get("/health").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        + hidden,
    }


async def smuggling(folder: Path, size: Size) -> Counts:
    """Each of them, several times."""
    async with stage(folder) as made:
        counts = Counts()
        for name, data in smuggled().items():
            said = [said for _ in range(size.of(5)) for said in await exchanged(made, data)]
            counts.words.update(said)
            wanted = WHOLE if name == "behind the last" else MALFORMED
            counts.held[f"{name}: {wanted}"] = set(said) == {wanted}
        return await finished(made, counts)


async def pipelining(folder: Path, size: Size) -> Counts:
    """Many requests in one write: streams, whole answers."""
    async with stage(folder) as made:
        counts = Counts()
        for _ in range(size.of(20)):
            asks = [made.ask(stream=bool(number % 2), gap=0.001) for number in range(50)]
            line = await Line.open(made.address)
            await line.send(b"".join(ask.raw() for ask in asks))
            line.shut()
            async with asyncio.timeout(PATIENCE_SECONDS):
                counts.words.update([word(await line.answer(), ask.number) for ask in asks])
                more = await line.answer()
            line.leave()
            counts.words.update([SURPLUS] if more.status else ())
        return await finished(made, counts)


SCENARIOS = (
    Scenario(
        "wire-slowloris",
        "300 clients send their heads a byte at a time",
        "all are closed in time with 408, others are answered meanwhile",
        rule(must=(WHOLE, SLOW)),
        slowloris,
    ),
    Scenario(
        "wire-headers",
        "heads that are too large, have too many headers, or never end",
        "431 or 400",
        rule(MALFORMED, must=(WHOLE, LARGE)),
        headers,
    ),
    Scenario(
        "wire-smuggling",
        f"{len(smuggled())} ways to hide a request in another",
        "400, and what was hidden reaches nobody",
        rule(must=(WHOLE, MALFORMED)),
        smuggling,
    ),
    Scenario(
        "wire-pipelining",
        "50 requests in one write, again and again",
        "all are answered, in their order, each with its own",
        rule(must=(WHOLE,)),
        pipelining,
    ),
)
