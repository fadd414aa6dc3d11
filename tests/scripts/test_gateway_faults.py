"""The scenarios' own eyes: what is lost is seen as lost, what is left over as left over."""

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from experiments.record import MEASUREMENTS, Record
from scripts.gateway import faults
from scripts.gateway.asking import Ask, outcome
from scripts.gateway.faulty_answers import event, parsed, tokens, whole
from scripts.gateway.gateway_faults import JUMPING
from scripts.gateway.line import Answer, Line
from scripts.gateway.scenario import Scenario, Size
from scripts.gateway.stage import stage
from scripts.gateway.stand import Stand
from scripts.gateway.verdict import (
    CUT,
    MIXED,
    NO_ANSWER,
    NO_END,
    SURPLUS,
    WHOLE,
    Counts,
    rule,
    word,
)
from serve.errors import Refusal, refusal_body, sse_error

OURS, OTHERS = {"prompt": "7", "max_tokens": 2}, {"prompt": "8", "max_tokens": 2}
LOST = Refusal(502, "engine_connection_lost", "the engine is gone")
JSON, STREAM = "application/json", "text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"


def http(body: bytes, status: str = "200 OK", kind: str = JSON) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def stream(*events: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {STREAM}\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head.encode() + b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in events) + end


def said(asked: dict[str, object]) -> list[bytes]:
    return [event(token) for token in tokens(parsed(json.dumps(asked).encode()) or {})]


GOOD = http(whole(OURS))
CASES = {
    "a whole answer": (GOOD, WHOLE),
    "a whole stream": (stream(*said(OURS), DONE), WHOLE),
    "nothing": (b"", NO_ANSWER),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-Le", NO_ANSWER),
    "no HTTP": (b"\x00\x01 nonsense", NO_ANSWER),
    "half a body": (GOOD[:-5], CUT),
    "half a refusal": (http(refusal_body(LOST), "502 Bad Gateway")[:-5], CUT),
    "a refusal": (http(refusal_body(LOST), "502 Bad Gateway"), "502 engine_connection_lost"),
    "an error of no shape": (http(b"oops", "500 Internal Server Error"), "500"),
    "another's answer": (http(whole(OTHERS)), MIXED),
    "another's event": (stream(*said(OURS), *said(OTHERS), DONE), MIXED),
    "two answers": (GOOD + GOOD, SURPLUS),
    "half an answer more": (GOOD + GOOD[:-5], SURPLUS),
    "a stream without its last event": (stream(*said(OURS)), NO_END),
    "a stream without its last chunk": (stream(*said(OURS), DONE, end=b""), NO_END),
    "a stream that is cut": (stream(*said(OURS), end=b"40\r\ndata:"), NO_END),
    "an error event": (stream(*said(OURS), sse_error(LOST)), "event engine_connection_lost"),
    "an error event with a name": (stream(*said(OURS), sse_error(LOST, named=True)), NO_END),
    "an error event that is no end": (stream(sse_error(LOST), *said(OURS)), NO_END),
}


@pytest.mark.parametrize(("answer", "expected"), CASES.values(), ids=CASES)
async def test_what_came_of_a_request_is_told_from_its_bytes(answer: bytes, expected: str) -> None:
    async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answering, "127.0.0.1", 0) as server:
        line, ask = await Line.open(server.sockets[0].getsockname()), Ask(7)
        await line.send(ask.raw())
        assert await outcome(line, ask) == expected


def test_where_events_have_names_so_has_the_error() -> None:
    def came(event: bytes) -> str:
        answer = Answer(200, {"content-type": STREAM}, bytearray(event), whole=True)
        return word(answer, 7, named=True)

    assert came(sse_error(LOST, named=True)) == "event engine_connection_lost"
    assert came(sse_error(LOST)) == NO_END


def test_a_client_that_is_to_come_again_is_told_when() -> None:
    full = bytearray(refusal_body(Refusal(429, "queue_full", "it is full")))
    assert word(Answer(429, {"retry-after": "2"}, full, whole=True), 7) == "429 queue_full"
    assert "without" in word(Answer(429, {"retry-after": "soon"}, full, whole=True), 7)
    assert "without" in word(Answer(429, {}, full, whole=True), 7)


async def test_a_connection_that_is_reset_is_no_answer() -> None:
    async def resetting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.transport.abort()

    async with await asyncio.start_server(resetting, "127.0.0.1", 0) as server:
        line, ask = await Line.open(server.sockets[0].getsockname()), Ask(7)
        await line.send(ask.raw())
        assert await outcome(line, ask) == NO_ANSWER


def test_a_promise_that_is_kept_is_found_kept() -> None:
    counts = Counts(Counter({WHOLE: 5, "429 queue_full": 2}), {"it lives": True}, running=0)
    assert rule("429 queue_full", must=(WHOLE,)).broken(counts) == []


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (Counts(Counter({WHOLE: 1, NO_ANSWER: 2})), "2 × lost: no answer"),
        (Counts(Counter({WHOLE: 1, "500 internal_error": 1})), "1 × 500 internal_error"),
        (Counts(), "none was answered 200"),
        (Counts(Counter({WHOLE: 1}), asked_twice=1), "1 requests asked twice"),
        (Counts(Counter({WHOLE: 1}), running=3), "3 requests that still run"),
        (Counts(Counter({WHOLE: 1}), connections=1), "1 connections left"),
        (Counts(Counter({WHOLE: 1}), descriptors=2), "2 file descriptors left"),
        (Counts(Counter({WHOLE: 1}), {"it lives": False}), "not held: it lives"),
        (Counts(Counter({WHOLE: 1}), exit_status=120), "exit status 120, not 0"),
    ],
)
def test_a_promise_that_is_broken_is_found_broken(counts: Counts, expected: str) -> None:
    assert rule(must=(WHOLE,)).broken(counts) == [expected]


def test_what_is_lost_and_what_comes_twice_are_counted_apart() -> None:
    counts = Counts(Counter({WHOLE: 4, NO_ANSWER: 2, NO_END: 1, MIXED: 3}), asked_twice=5)
    assert (counts.asked, counts.lost, counts.twice) == (10, 3, 8)


def test_an_answer_to_nobody_is_no_answer_of_anybody() -> None:
    assert word(Answer(), 7) == NO_ANSWER


async def test_what_a_gateway_still_holds_is_seen(tmp_path: Path) -> None:
    async with stage(tmp_path) as made:
        assert made.began.connections == 0
        line = await Line.open(made.address)
        await line.send(made.ask(stream=True, tokens=1000, gap=0.01).raw())
        await line.first()
        assert await made.running() == 1
        assert made.stand() == Stand(1, made.began.descriptors)
        assert not await made.is_idle()
        line.leave()
        await made.until(made.is_idle, "idle")
        assert await made.running() == 0
        assert made.stand() == made.began
        assert await made.stopped() == 0


async def test_an_engine_that_is_asked_twice_is_seen(tmp_path: Path) -> None:
    async with stage(tmp_path) as made:
        line = await Line.open(made.address)
        await line.send(made.ask().raw() + Ask(1).raw())
        assert [(await line.answer()).status for _ in range(2)] == [200, 200]
        line.leave()
        assert (await made.counted(())).asked_twice == 1


def test_the_clock_jumps_both_ways_and_the_monotonic_one_does_not() -> None:
    told = (
        "import time\n"
        "began, seen = time.monotonic(), set()\n"
        "while len(seen) < 2 and time.monotonic() - began < 20: seen.add(time.time() // 86400)\n"
        "print(max(seen) - min(seen), time.monotonic() - began < 20)"
    )
    env = os.environ | {"PYTHONPATH": str(JUMPING)}
    command = [sys.executable, "-c", told]
    answer = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert answer.stdout == "2.0 True\n"


def test_a_row_tells_all_and_the_exit_status_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    before = set(MEASUREMENTS.glob("gateway-faults*"))
    arguments = ["--only", "wire-headers", "--share", "0.1", "--no-record", "--json"]
    assert faults.main(arguments) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["name"] == "wire-headers"
    assert row["asked"] == sum(row["answers"].values()) > 10
    assert (row["lost"], row["twice"], row["broken"]) == (0, 0, [])
    assert (row["running"], row["connections"], row["descriptors"]) == (0, 0, 0)
    assert set(MEASUREMENTS.glob("gateway-faults*")) == before


@pytest.mark.parametrize("as_json", [True, False])
def test_a_broken_promise_is_told_with_exit_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    async def losing(_: Path, __: Size) -> Counts:
        return Counts(Counter({WHOLE: 9, NO_ANSWER: 1}))

    one = Scenario("losing", "a fault", "a promise", rule(must=(WHOLE,)), losing)
    monkeypatch.setattr(faults, "SCENARIOS", (one,))
    assert faults.main(["--no-record", *(["--json"] if as_json else [])]) == 1
    said = capsys.readouterr()
    assert "losing: 1 × lost: no answer" in said.err
    assert '"lost": 1' in said.out if as_json else "0 of 1 promises kept" in said.out


def test_a_record_holds_every_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def keeping(_: Path, size: Size) -> Counts:
        return Counts(Counter({WHOLE: size.of(1000)}), {"it lives": True}, running=0)

    one = Scenario("keeping", "a fault", "a promise", rule(must=(WHOLE,)), keeping)
    monkeypatch.setattr(faults, "SCENARIOS", (one, one))
    monkeypatch.setattr(faults, "REPOSITORY", tmp_path)
    monkeypatch.setattr(faults, "MEASUREMENTS", tmp_path)
    assert faults.main(["--share", "0.5"]) == 0
    (path,) = tmp_path.iterdir()
    record = Record.model_validate_json(path.read_bytes())
    assert record.kind == "gateway-faults"
    assert record.summary == {"scenarios": 2, "kept": 2, "asked": 1000, "lost": 0, "twice": 0}
    assert [row["name"] for row in record.samples] == ["keeping", "keeping"]


def test_a_scenario_that_nobody_wrote_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        faults.main(["--only", "nothing"])
    assert ended.value.code == 2
    assert "engine-killed" in capsys.readouterr().err
