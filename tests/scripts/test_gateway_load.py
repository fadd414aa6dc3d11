"""The benchmark's two ends: an engine that keeps its pace, a client that calls things by name."""

import argparse
import asyncio
import json
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from scripts.gateway import load
from scripts.gateway.client import Outcome
from scripts.gateway.tally import quantile, read, tally, written
from scripts.gateway.upstream import Pace, pace_of, shape
from serve.settings import REPOSITORY

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"word"}}]}\n\n'
REFUSAL = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\n{}"
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def whole(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + chunk(TOKEN) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


async def cut(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + chunk(TOKEN))
    await writer.drain()
    writer.close()


async def ended_without_done(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + chunk(TOKEN) + b"0\r\n\r\n")


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()


async def reset(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + chunk(TOKEN))
    await writer.drain()
    # Closed at once, whatever is on the way: the other side is told by a reset.
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


async def refused(writer: asyncio.StreamWriter) -> None:
    writer.write(REFUSAL)


async def error_event(writer: asyncio.StreamWriter) -> None:
    said = b'data: {"error":{"message":"the engine died"}}\n\n'
    writer.write(HEAD + chunk(TOKEN) + chunk(said) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


async def garbage(writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n")


async def silent(_: asyncio.StreamWriter) -> None:
    """Never answers."""


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[str]:
    """One that answers every request in one way; its address."""
    writers: list[asyncio.StreamWriter] = []

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                await answer(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    listening = await asyncio.start_server(connection, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        for writer in writers:
            writer.transport.abort()


async def asked(url: str, *words: str) -> dict[str, Any]:
    return await load.run(load.parser().parse_args([url, *words]))


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (cut, "cut"),
        (ended_without_done, "cut"),
        (closed, "closed"),
        (reset, "reset"),
        (refused, "status 429"),
        (error_event, "error event"),
        (garbage, "not HTTP"),
    ],
)
async def test_a_failure_is_counted_as_what_it_is(answer: Answer, kind: str) -> None:
    async with server(answer) as url:
        found = await asked(url, "--concurrency", "2", "--requests", "5", "--stream")
    assert (found["sent"], found["whole"], found["failed"]) == (5, 0, {kind: 5})
    assert "whole" not in found["milliseconds"]


async def test_a_server_that_is_not_there_refuses() -> None:
    async with server(whole) as url:
        pass
    found = await asked(url, "--concurrency", "2", "--requests", "3", "--stream")
    assert (found["sent"], found["failed"]) == (3, {"refused": 3})


async def test_a_whole_answer_that_says_nothing_is_empty() -> None:
    async def nothing(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    async with server(nothing) as url:
        found = await asked(url, "--concurrency", "1", "--requests", "2")
    assert found["failed"] == {"empty": 2}


async def test_what_waits_too_long_is_late_and_no_more_than_so_many_are_sent() -> None:
    async with server(silent) as url:
        found = await asked(
            url, "--rate", "200", "--seconds", "0.1", "--even", "--at-most", "4", "--grace", "0.3"
        )
    assert found["sent"] == 20
    assert found["failed"] == {"not sent": 16, "late": 4}


async def test_a_closed_loop_uses_its_connections_again() -> None:
    async with server(whole) as url:
        found = await asked(url, "--concurrency", "3", "--requests", "60", "--stream")
    assert (found["whole"], found["chunks"], found["connections"]) == (60, 60, 3)


def outcome(due: float, sent: float, said: list[float], ended: float) -> Outcome:
    return Outcome(due, sent, said[0], said, ended, failed="")


def test_durations_count_from_when_a_request_was_due() -> None:
    found = load.seen([outcome(10.0, 10.5, [11.0, 11.25, 11.25], 12.0)])
    told = {name: row["p50"] for name, row in found["milliseconds"].items()}
    assert told == {"whole": 2000, "first_byte": 1000, "first_chunk": 1000, "gap": 0, "late": 500}
    assert read(found["tallies"]["gap"]) == {0: 1, 250_000: 1}


def test_an_answer_that_never_came_is_not_whole() -> None:
    found = load.seen([Outcome(1.0), outcome(1.0, 1.0, [2.0], 3.0)])
    assert (found["sent"], found["whole"], found["failed"]) == (2, 1, {"late": 1})


def test_answers_at_once_are_counted() -> None:
    each = [outcome(0, 0, [begun], ended) for begun, ended in ((1, 3), (2, 4), (3, 5), (6, 7))]
    assert load.at_once(each) == 2


def test_arrivals_are_those_of_their_seed() -> None:
    words = ["http://h", "--rate", "100", "--seconds", "2"]
    drawn = [
        list(load.arrivals(load.parser().parse_args([*words, "--seed", seed])))
        for seed in ("1", "1", "2")
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 200
    assert drawn[0] == sorted(drawn[0])


@pytest.mark.parametrize("words", [["--rate", "5"], ["--concurrency", "5"]])
def test_a_load_without_an_end_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        load.main(["http://127.0.0.1:1", *words])
    assert stop.value.code == 2


def test_a_tally_reads_as_it_was_written() -> None:
    found = tally([0.030119, 0.030121, 0.030141, 0.0, 1.23456])
    assert written(found) == "0 30120x2 20 1199860"
    assert read(written(found)) == found == {0: 1, 30_120: 2, 30_140: 1, 1_230_000: 1}
    assert read("") == tally([]) == {}


def test_the_tails_of_a_tally_are_coarser() -> None:
    found = tally([0.02103, *[0.03013] * 98, 0.03513])
    assert found == {21_000: 1, 30_120: 98, 35_200: 1}


def test_a_quantile_is_one_of_what_was_measured() -> None:
    assert [quantile([4, 1, 3, 2], share) for share in (0, 0.25, 0.5, 0.99, 1)] == [1, 1, 2, 4, 4]


def test_a_pace_is_read_where_it_is_said() -> None:
    pace = Pace(0.02, 0.002, 24)
    assert Pace().within(json.dumps({"prompt": f"so: {pace.words}\n"}).encode()) == pace
    assert pace.within(b"{}") == pace
    assert pace_of("first=0.02 gap=0.002 tokens=24") == pace
    with pytest.raises(argparse.ArgumentTypeError, match="expected a pace like"):
        pace_of("fast")


@pytest.mark.parametrize("chat", [True, False])
def test_every_piece_of_an_answer_is_json(chat: bool) -> None:
    made = shape(3, chat=chat)
    for piece in (made.whole, made.role, made.token, made.finish, made.usage):
        assert not piece or json.loads(piece % 7)["id"].endswith("-0000000000000007")
    assert json.loads(made.whole % 1)["usage"]["completion_tokens"] == 3


@contextmanager
def upstream(folder: Path) -> Iterator[str]:
    """The fake engine as a process; its TCP address."""
    words = ["-m", "scripts.gateway.upstream", "--uds", str(folder / "engine.sock")]
    with subprocess.Popen(
        [sys.executable, *words], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            said = iter(process.stdout)
            yield next(line for line in said if "upstream on" in line).split()[-1]
        finally:
            process.terminate()


async def test_the_engine_answers_as_asked_on_both_sockets(tmp_path: Path) -> None:
    body = {
        "messages": [{"role": "user", "content": Pace(0, 0, 3).words}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    with upstream(tmp_path) as url:
        events = await told(f"{url}/v1/chat/completions", body)
        unix = aiohttp.UnixConnector(str(tmp_path / "engine.sock"))
        async with aiohttp.ClientSession("http://engine", connector=unix) as client:
            async with client.get("/health") as answer:
                assert answer.status == 200
            async with client.get("/v1/models") as answer:
                assert (await answer.json())["data"][0]["id"] == "fake"
            async with client.get("/v1/elsewhere") as answer:
                assert answer.status == 404
    assert events.pop() == "data: [DONE]"
    said = [json.loads(event.removeprefix("data: ")) for event in events]
    deltas = [one["choices"][0]["delta"] for one in said if one["choices"]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert [one["content"] for one in deltas[1:]] == [" word", " word", " word", ""]
    assert said[-1]["usage"]["completion_tokens"] == 3


async def told(url: str, body: dict[str, Any]) -> list[str]:
    """The events of one stream."""
    async with aiohttp.ClientSession() as client, client.post(url, json=body) as answer:
        return (await answer.text()).removesuffix("\n\n").split("\n\n")


async def test_what_a_client_leaves_is_not_generated_on(tmp_path: Path) -> None:
    body = {"prompt": Pace(0, 30, 3).words, "stream": True}
    with upstream(tmp_path) as url:
        async with aiohttp.ClientSession() as client:
            async with client.post(f"{url}/v1/completions", json=body) as answer:
                await answer.content.readline()
                assert 'model_name="fake"} 1.0' in await metrics(client, url)
            while 'model_name="fake"} 0.0' not in (counted := await metrics(client, url)):
                await asyncio.sleep(0.01)
    assert "upstream_aborted_total 1.0" in counted


async def metrics(client: aiohttp.ClientSession, url: str) -> str:
    async with client.get(f"{url}/metrics") as answer:
        return await answer.text()


async def test_streams_have_the_engines_chunks(tmp_path: Path) -> None:
    pace = Pace(0.001, 0.001, 6)
    with upstream(tmp_path) as url:
        words = ["--rate", "100", "--seconds", "0.2", "--stream", "--pace", pace.words]
        found = await asked(url, *words)
        assert (found["whole"], found["chunks"], found["failed"]) == (20, 120, {})
        assert sum(read(found["tallies"]["gap"]).values()) == 100
        found = await asked(url, "--concurrency", "4", "--requests", "50", "--pace", pace.words)
        assert (found["whole"], found["chunks"]) == (50, 0)
