"""Scenarios of bodies that nobody can use."""

import asyncio
import json
from pathlib import Path

from scripts.gateway.asking import COMPLETIONS, PATIENCE_SECONDS, bearer, get, post
from scripts.gateway.line import Line
from scripts.gateway.scenario import Scenario, Size
from scripts.gateway.stage import Stage, key_file, stage
from scripts.gateway.verdict import WHOLE, Counts, rule, word

MIB = 2**20
REFUSED = "400 400"
TOO_LARGE, TOO_MUCH = "413 body_too_large", "429 bodies_full"


def odd_bodies() -> dict[str, bytes]:
    """Bodies that are no request of the engine's, or not in the way that JSON is."""
    asked = {"prompt": "0", "stream": True}
    return {
        "empty": b"",
        "no JSON": b"nonsense",
        "half JSON": b'{"prompt": "0", "str',
        "no object": b"[1]",
        "not UTF-8": b'{"prompt": "\xff\xfe\xc0\xaf"}',
        "UTF-8 with a mark": b"\xef\xbb\xbf" + json.dumps(asked).encode(),
        "UTF-16": json.dumps(asked).encode("utf-16"),
        "a lone surrogate": b'{"prompt": "0", "model": "\\ud800", "user": "\\udfff"}',
        "NUL": b'{"prompt": "\x00"}',
        "deep": b"[" * 100_000,
        "deep and closed": b'{"prompt":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        "a large number": b'{"prompt": 1e999999, "max_tokens": ' + b"9" * 5000 + b"}",
        "a field twice": b'{"model": "a", "model": "fake", "stream": true, "stream": false}',
        **{
            f"stream_options {value!r}": json.dumps({**asked, "stream_options": value}).encode()
            for value in ("x", [1], 5, True, None)
        },
    }


async def bodies(folder: Path, size: Size) -> Counts:
    """Bodies that are huge, endless, chunked, no JSON, no UTF-8."""
    key = key_file(folder / "keys.json", tokens_per_minute=10**9)
    settings = {
        "PREHEAT_KEYS_FILE": str(folder / "keys.json"),
        "PREHEAT_MODEL_ALIASES": "other",
        "PREHEAT_MAX_BODY_MIB": "1",
        "PREHEAT_MAX_HELD_MIB": "2",
    }
    async with stage(folder, settings=settings, key=key) as made:
        counts = Counts()
        for name, body in odd_bodies().items():
            said = await _raw(made, post(COMPLETIONS, body, bearer(key)))
            counts.words[said] += 1
            counts.held[f"{name}: it is the engine's to refuse"] = said in (WHOLE, REFUSED)
        counts.words.update(await _large(made))
        counts.words.update(await _held(made, size.of(20)))
        counts.words[await made.word()] += 1
        await made.counted((), counts)
        counts.exit_status = await made.stopped()
    return counts


async def _large(made: Stage) -> list[str]:
    """Over the limit: announced, unannounced, and in tiny chunks; and one under it."""
    head = get(COMPLETIONS, bearer(made.key), "Transfer-Encoding: chunked").replace(b"GET", b"POST")
    under = b'5\r\n{"pro\r\n9\r\nmpt":"0"}\r\n0\r\n\r\n'
    return [
        await _raw(made, post(COMPLETIONS, b"x" * (2 * MIB), bearer(made.key))),
        await _raw(made, head + (b"10000\r\n" + b"x" * 0x10000 + b"\r\n") * 40),
        await _raw(made, head + b"1\r\nx\r\n" * (MIB + 1)),
        await _raw(made, head + under),
    ]


async def _held(made: Stage, number: int) -> list[str]:
    """Many at once of which the last byte does not come: some are refused, the rest go on."""
    body = json.dumps({"prompt": "0", "padding": "x" * (MIB - 100)}).encode()
    request = post(COMPLETIONS, body, bearer(made.key))
    lines = [await Line.open(made.address) for _ in range(number)]
    for line in lines:
        await line.send(request[:-1])
    for line in lines:
        await line.send(request[-1:])
    answers = [await line.answer() for line in lines]
    for line in lines:
        line.leave()
    return [word(answer, 0) for answer in answers]


async def _raw(made: Stage, data: bytes) -> str:
    """What came of bytes that were sent as they are; the number in them is 0."""
    line = await Line.open(made.address)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await line.send(data)
            answer = await line.answer()
            line.shut()
            return word(answer, 0, surplus=(await line.answer()).status > 0)
    finally:
        line.leave()


SCENARIOS = (
    Scenario(
        "client-bodies",
        "bodies that are huge, in chunks, too many at once, no JSON, no UTF-8",
        "413, 429, or the engine's own refusal; never 500",
        rule(must=(WHOLE, REFUSED, TOO_LARGE, TOO_MUCH)),
        bodies,
    ),
)
