"""The load generator, and a whole run, against a server that is paced, breaks, or never answers."""

import json
import os
import re
import signal
import threading
from argparse import Namespace
from contextlib import ExitStack
from http.client import BadStatusLine, RemoteDisconnected
from io import StringIO
from pathlib import Path
from urllib.error import URLError

import pytest
from rich.console import Console

from experiments.record import add, now, this_machine
from scripts import compare, eval_latency, quiet, served
from scripts.latency import commanded, crosscheck, load, rounds
from scripts.latency import loader as latency_loader
from scripts.latency.load import Stream, outcome, run, said_in
from scripts.latency.loader import LoadFailed, loader
from scripts.latency.plan import cells
from scripts.latency.prompts import Prompt
from scripts.latency.results import summary
from scripts.latency.rigs import Rig
from scripts.latency.rounds import Options, measure
from scripts.latency.show import comparison, notes, table
from scripts.starts import NotMeasured
from serve.errors import ConfigError
from tests.paced_server import GAP, Server, listening, serving
from tests.scripts import sampled

PROMPTS = [Prompt(f"p{n}", "", "short", 4 + 2 * n, prompt=f"say {n}") for n in range(3)] + [
    Prompt("chat", "", "short", 6, messages=({"role": "user", "content": "talk"},))
]


def job(url: str, *said: str, **changes: object) -> dict:
    body = {"model": "m", "max_tokens": 5, "stream": True}
    asked = [{"path": "/v1/completions", "body": body | {"prompt": one}} for one in said]
    made = {"url": url, "requests": asked, "concurrency": 2, "timeout": 20, "deadline": 60}
    return made | changes


async def test_a_stream_is_timed_by_its_chunks() -> None:
    server = Server(per_chunk=2)
    async with listening(server) as url:
        answer = await run(job(url, "hello"))
    (seen,) = answer["requests"]
    assert (seen["failed"], seen["tokens"], seen["text"]) == ("", 5, "0 1 2 3 4 ")
    # Five tokens in three chunks.
    assert len(seen["gaps"]) == 2
    assert all(gap >= 0 for gap in seen["gaps"])
    assert seen["ttft"] >= GAP
    assert seen["latency"] == pytest.approx(seen["ttft"] + sum(seen["gaps"]))
    assert answer["wall"] >= seen["latency"]
    assert answer["cpu"] > 0


async def test_so_many_clients_ask_at_once_and_no_more() -> None:
    server = Server()
    async with listening(server) as url:
        answer = await run(job(url, *(f"say {n}" for n in range(7)), concurrency=3))
    assert server.most == 3
    assert [one["failed"] for one in answer["requests"]] == [""] * 7
    assert sorted(one["prompt"] for one in server.asked) == [f"say {n}" for n in range(7)]


async def test_arrivals_do_not_wait_for_answers() -> None:
    server = Server(gap=0.2)
    async with listening(server) as url:
        answer = await run(job(url, "a", "b", "c", at=[0, 0.05, 0.1], concurrency=None))
    assert server.most == 3
    for seen, at in zip(answer["requests"], (0, 0.05, 0.1), strict=True):
        assert seen["sent"] >= at


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("refused", "status 429"),
        ("cut", "disconnected"),
        ("sick", "error in the stream"),
        ("odd", "no event of the API"),
        ("untold", "no usage told"),
    ],
)
async def test_a_fault_fails_its_own_request_and_is_named(said: str, why: str) -> None:
    async with listening(Server()) as url:
        answer = await run(job(url, said, "well"))
    bad, good = answer["requests"]
    assert bad["failed"].startswith(why)
    assert good["failed"] == ""


async def test_a_server_that_never_answers_times_out() -> None:
    async with listening(Server()) as url:
        answer = await run(job(url, "silent", timeout=0.2))
    assert answer["requests"][0]["failed"] == "timeout"


async def test_all_requests_end_at_the_deadline() -> None:
    async with listening(Server()) as url:
        said = ("well", *["silent"] * 4)
        answer = await run(job(url, *said, concurrency=1, deadline=1.0))
    assert [one["failed"] for one in answer["requests"]] == ["", *["deadline of all requests"] * 4]


async def test_a_server_that_is_not_there_is_told() -> None:
    async with listening(Server()) as url:
        pass
    answer = await run(job(url, "well"))
    assert answer["requests"][0]["failed"].startswith("disconnected: ClientConnectorError")


async def test_an_arrival_that_is_sent_late_has_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is held up hides nothing: time counts from when the request was due."""
    real = load.asyncio.sleep

    async def held_up(seconds: float) -> None:
        await real(seconds + 0.3)

    async with listening(Server(gap=0)) as url:
        monkeypatch.setattr(load, "_lag", lambda lags: real(0))
        monkeypatch.setattr(load, "asyncio", Namespace(**vars(load.asyncio) | {"sleep": held_up}))
        answer = await run(job(url, "a", at=[0.05], concurrency=None))
    (seen,) = answer["requests"]
    assert seen["sent"] == 0.05
    assert seen["ttft"] >= 0.3
    assert answer["late"] >= 0.3


async def test_the_wall_ends_with_the_last_token_that_counts() -> None:
    async with listening(Server(gap=0.02)) as url:
        answer = await run(job(url, "well", "sick sick", concurrency=1))
    well, sick = answer["requests"]
    assert sick["failed"]
    assert answer["wall"] == pytest.approx(well["sent"] + well["latency"])


def test_a_stream_without_an_end_is_cut_short() -> None:
    line = b'data: {"choices": [{"text": "a"}]}\n'
    seen = outcome(Stream(0.0, [0.5], [line], done=True))
    assert (seen["failed"], seen["ttft"]) == ("cut short: no [DONE]", 0.5)


@pytest.mark.parametrize(
    ("chunk", "said"),
    [
        ({"choices": []}, None),
        ({"choices": [{"text": ""}]}, ""),
        ({"choices": [{"delta": {"role": "assistant", "content": ""}}]}, None),
        ({"choices": [{"delta": {"role": "assistant", "content": "a"}}]}, "a"),
        ({"choices": [{"delta": {"content": ""}}]}, ""),
        ({"choices": [{"delta": {"reasoning": "hm"}}]}, "hm"),
    ],
)
def test_what_counts_as_a_token(chunk: dict, said: str | None) -> None:
    assert said_in(chunk) == said


def rig(name: str, url: str) -> Rig:
    return Rig(name, url, {"variant": name}, "m", 0, lambda path: served.get(url + path))


def test_the_process_of_the_load_takes_one_job_after_the_other() -> None:
    with serving(Server()) as url, loader() as clients:
        for _ in range(2):
            assert clients.run(job(url, "well"))["requests"][0]["failed"] == ""


def test_an_answer_larger_than_a_pipe_comes_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    # Unbuffered, Python's own stdout drops what a pipe does not take at once.
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    with serving(Server(gap=0)) as url, loader() as clients:
        asked = job(url, *["well"] * 64, concurrency=8)
        for one in asked["requests"]:
            one["body"]["max_tokens"] = 60
        for _ in range(3):
            assert {one["tokens"] for one in clients.run(asked)["requests"]} == {60}


def test_a_load_process_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_loader, "GRACE_SECONDS", 0.1)
    with loader() as clients:
        clients._process.send_signal(signal.SIGSTOP)
        with pytest.raises(LoadFailed):
            clients.run(job("http://127.0.0.1:1", "well", deadline=0.1))


def test_a_load_process_that_is_gone_is_told() -> None:
    with loader() as clients:
        clients._process.kill()
        clients._process.wait()
        with pytest.raises(LoadFailed):
            clients.run(job("http://127.0.0.1:1", "well"))


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "IDLE_SECONDS", 0.01)
    monkeypatch.setattr(rounds, "PAUSE_SECONDS", 0.0)


@pytest.mark.usefixtures("hasty")
def test_a_run_measures_both_in_turn_and_says_where_they_differ(tmp_path: Path) -> None:
    options = Options(rounds=2, requests=4, busy_ok=True)
    slow, fast = Server(gap=0.03), Server(per_chunk=3, gap=0.01, odd="X")
    with serving(slow) as one, serving(fast) as other:
        run_ = measure(
            [rig("slow", one), rig("fast", other)], PROMPTS, cells([2], [50]), options, str
        )
    assert [(s["cell"], s["round"], s["variant"], s["turn"]) for s in run_.samples] == [
        ("c2", 1, "slow", 1),
        ("c2", 1, "fast", 2),
        ("r50", 1, "slow", 1),
        ("r50", 1, "fast", 2),
        ("c2", 2, "slow", 2),
        ("c2", 2, "fast", 1),
        ("r50", 2, "slow", 2),
        ("r50", 2, "fast", 1),
    ]
    assert run_.warm_up["slow"]["discarded_requests"] == len(PROMPTS)
    # Both were asked the same, and nothing twice.
    asked = [json.dumps(one, sort_keys=True) for one in slow.asked]
    assert sorted(asked) == sorted(json.dumps(one, sort_keys=True) for one in fast.asked)
    assert len(set(asked)) == len(asked) == len(PROMPTS) + 16

    found = summary(run_.samples, "slow", "fast", seed=1)
    cell = found["cells"]["c2"]
    assert cell["ratios"]["e2e_ms"]["mean"]["ratio"] > 1
    assert cell["slow"]["tokens_per_chunk"] == 1
    assert cell["fast"]["tokens_per_chunk"] > 1
    # 4 + 6 + 8 + 6 tokens in each of two rounds.
    assert cell["fast"]["engine"]["generation_tokens"] == 48
    # "0 1 2 3 " and "0 1 2 X".
    assert found["texts"]["compared"] == 16
    assert found["texts"]["equal"] == 0
    assert found["texts"]["first_differences"][0]["character"] == 6
    console = Console(file=StringIO(), width=200)
    console.print(table(found), comparison([found]), *notes(found))
    shown = console.file.getvalue()
    assert "0 of 16 requests as slow" in shown
    assert "ITL ms/token" in shown


@pytest.mark.usefixtures("hasty")
def test_samples_beside_others_work_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet, "OTHERS", -1.0)
    monkeypatch.setattr(quiet.time, "sleep", lambda _: None)
    with serving(Server(gap=0.001)) as url, pytest.raises(NotMeasured, match="--busy-ok"):
        measure([rig("one", url)], PROMPTS, cells([2], []), Options(rounds=1, requests=2), str)


@pytest.mark.usefixtures("hasty")
def test_a_variant_that_answers_nothing_is_told_at_once() -> None:
    mute = [Prompt("p", "", "short", 4, prompt="silent")]
    options = Options(rounds=1, timeout=0.2, busy_ok=True)
    with serving(Server()) as url, pytest.raises(NotMeasured, match=r"one answers no .*: timeout"):
        measure([rig("one", url)], mute, cells([1], []), options, str)


@pytest.mark.parametrize("command", [eval_latency, compare])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompts", "/nowhere.jsonl"], "/nowhere.jsonl"),
        (["--concurrency", "", "--rates", ""], "no load"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(
    command, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["seq8", *words]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    "words",
    [
        *(["--concurrency", "0"], ["--rates", "x"], ["--rates=-1"], ["--rates", "nan"]),
        *(["--timeout", "0"], ["--timeout", "nan"], ["--timeout=-1"]),
        *(["--rounds", "3"], ["--rounds", "0"]),
        *(["--deadline=-1"], ["--deadline", "nan"], ["--deadline", "inf"]),
    ],
)
def test_options_that_are_no_numbers_are_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        eval_latency.main(["seq8", *words])
    assert ended.value.code == 2


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (eval_latency, compare):
        with pytest.raises(SystemExit):
            command.main(["--help"])
        assert "examples:" in capsys.readouterr().out


def test_records_are_compared_without_a_run(
    tmp_path: Path,
) -> None:
    def keep(name: str, day: int, equal: int, of: str = "tiny", **changes: object) -> Path:
        folder = tmp_path / name / "measurements"
        folder.mkdir(parents=True, exist_ok=True)
        texts = {"compared": 9, "equal": equal, "first_differences": []}
        kept = {
            "variant": {"model": {"name": of}, "target": {"name": "cpu"}},
            "parameters": {"rounds": 4, **changes},
            "summary": {"reference": "slow", "candidate": name, "cells": {}, "texts": texts},
        }
        path = folder / f"latency_2026-01-{day:02}T000000Z.json"
        path.write_text(json.dumps(kept))
        return path

    def stored(*names: str, **changes: str) -> list:
        asked = {"model": "tiny", "target": "cpu", "reference": "slow"} | changes
        return compare.stored(names, Namespace(**asked), tmp_path)

    for day, equal in ((1, 1), (2, 9)):
        last = keep("fast", day, equal)
    # Newer, and of another model.
    keep("fast", 3, 5, of="smollm2-135m")
    assert stored("fast")[0]["texts"]["equal"] == 9
    assert stored("fast", model="smollm2-135m")[0]["texts"]["equal"] == 5
    with pytest.raises(compare.NoRecord, match=r"no latency record of .*reference baseline"):
        stored("fast", reference="baseline")
    with pytest.raises(compare.NoRecord, match="make eval-latency VARIANT=slow"):
        stored("slow")
    keep("other", 1, 1, rounds=1)
    with pytest.raises(compare.NoRecord, match="other: its newest record has rounds 1"):
        stored("fast", "other")
    last.write_text("{")
    with pytest.raises(compare.NoRecord, match="2026-01-02"):
        stored("fast")


@pytest.mark.usefixtures("hasty")
def test_a_record_holds_its_own_samples_and_stays_small(tmp_path: Path) -> None:
    options = Options(rounds=3, requests=64, busy_ok=True)
    with serving(Server(gap=0)) as url:
        alive = [rig(name, url) for name in ("slow", "fast", "other")]
        run_ = measure(alive, PROMPTS, cells([8, 16], []), options, str)
    asked = {"seed": 7}
    began = commanded.Began(now(), this_machine(), ["python", "-m", "scripts.thing"])
    record = commanded.record(run_, "fast", asked, began)
    assert record.command[-1] == "scripts.thing"
    assert {one["variant"] for one in record.samples} == {"slow", "fast"}
    kept = json.loads(add(record, tmp_path).read_text())
    again = summary(kept["samples"], "slow", "fast", asked["seed"])
    assert again["cells"] == kept["summary"]["cells"]
    assert again["texts"] == kept["summary"]["texts"]
    # 6 cells of 64 requests for each of two variants; a default run has 18 of 12 to 32.
    assert len(json.dumps(kept)) < 120_000


def test_sigterm_stops_what_was_started() -> None:
    stopped = []

    def work() -> None:
        with served.stoppable(), ExitStack() as started:
            started.callback(stopped.append, "gateway")
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        work()
    assert ended.value.code == 143
    assert stopped == ["gateway"]


def test_an_interrupted_job_leaves_nothing_that_the_interpreter_waits_for() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def work(url: str) -> None:
        with loader() as clients:
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            clients.run(job(url, "silent", timeout=60, deadline=240))

    was = signal.signal(signal.SIGALRM, interrupt)
    try:
        with serving(Server()) as url:
            before = set(threading.enumerate())
            with pytest.raises(KeyboardInterrupt):
                work(url)
            left = set(threading.enumerate()) - before
        # A cancelled timer's thread may take a moment to end.
        timers = [one for one in left if isinstance(one, threading.Timer)]
        assert all(one.daemon and one.finished.is_set() for one in timers)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, was)


def test_all_variants_of_a_run_serve_one_model() -> None:
    assert commanded.common_model(["baseline", "seq8"], "", "cpu") == "smollm2-135m"
    assert commanded.common_model(["baseline", "seq8-best"], "", "cpu") == "tiny"
    assert commanded.common_model(["baseline", "seq8"], "tiny", "cpu") == "tiny"


@pytest.mark.parametrize("command", [eval_latency, compare])
def test_an_unknown_variant_is_told_before_anything_starts(
    command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["seq9", "--target", "cpu"]) == 2
    assert "seq9" in capsys.readouterr().err


def test_a_load_that_is_named_twice_is_measured_once() -> None:
    assert commanded.counts("8,1,1") == [1, 8]
    assert commanded.rates("2,0.5,2") == [0.5, 2.0]
    assert commanded.counts(" ") == commanded.rates("") == []


@pytest.fixture
def unstarted(monkeypatch: pytest.MonkeyPatch) -> None:
    def begun(*_: object) -> None:
        pytest.fail("a gateway was started")

    for command in (eval_latency, compare):
        monkeypatch.setattr(command, "run_group", begun)


@pytest.mark.usefixtures("unstarted")
@pytest.mark.parametrize("command", [eval_latency, compare])
@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("nosuch", "no model 'nosuch'"),
        ("{}/nosuch", "no folder"),
        ("{}/empty", "config.json"),
        ("{}/file", "no folder"),
    ],
)
def test_a_model_that_is_not_there_is_told_before_anything_starts(
    command, model: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    words = ["seq8", "--target", "cpu", "--model", model.format(tmp_path)]
    assert command.main(words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("unstarted")
@pytest.mark.parametrize("command", [eval_latency, compare])
def test_engines_that_no_card_bears_side_by_side_are_refused_by_name(
    command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "check_weights", lambda *_: None)
    assert command.main(["seq8", "--model", "tiny", "--target", "a10g"]) == 2
    told = capsys.readouterr().err
    assert "target a10g does not bear 2 engines side by side: it sets no KV_CACHE_MIB" in told
    assert "docs/latency.md" in told
    commanded.check_card(1, "tiny", "a10g")


def test_what_a_variant_makes_of_the_weights_is_asked_for_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        commanded.Settings, "model_validate", lambda _: Namespace(derived_root=tmp_path)
    )
    commanded.check_weights(["baseline"], "tiny")
    with pytest.raises(ConfigError, match=str(tmp_path)) as error:
        commanded.check_weights(["baseline", "awq"], "tiny")
    assert "preheat bake derive awq" in str(error.value)


def test_records_need_no_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["seq8", "--target", "cpu", "--model", "/nosuch", "--records"]) == 1
    assert "no latency record" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        RemoteDisconnected("Remote end closed connection"),
        ConnectionResetError(104, "Connection reset by peer"),
        TimeoutError("timed out"),
        URLError("refused"),
        BadStatusLine("garbage"),
    ],
)
@pytest.mark.parametrize(
    ("command", "starts"),
    [(eval_latency, "run_group"), (compare, "run_group"), (crosscheck, "run")],
)
def test_a_gateway_that_hangs_up_is_one_line(
    command,
    starts: str,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def gone(*_: object) -> None:
        raise error

    monkeypatch.setattr(command, starts, gone)
    assert command.main(["seq8", *AXES, "--no-record"]) == 1
    assert re.match("not (measured|compared|checked): ", capsys.readouterr().err)


AXES = ("--model", "tiny", "--target", "cpu")


@pytest.mark.usefixtures("unstarted")
@pytest.mark.parametrize("command", [eval_latency, compare])
def test_where_no_record_can_be_is_told_before_anything_starts(
    command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(commanded, "folder_of", lambda name: tmp_path / "file" / name)
    assert command.main(["seq8", *AXES]) == 2
    assert "seq8: no record can be added: Not a directory" in capsys.readouterr().err


def test_figures_are_shown_though_their_record_cannot_be_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed_ = []

    def run_group(names: list[str], parsed: Namespace, _: object) -> list:
        typed_.append(parsed.command)
        return [sampled.record("latency", names[1], {"candidate": names[1]})]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(commanded, "folder_of", lambda name: tmp_path / name)
    monkeypatch.setattr(commanded, "add", full)
    words = ["seq8", *AXES, "--json"]
    for command, is_shown in ((eval_latency, True), (compare, False)):
        monkeypatch.setattr(command, "run_group", run_group)
        assert command.main(words) == 1
        told = capsys.readouterr()
        assert "No space left on device" in told.err
        assert (json.loads(told.out)["candidate"] == "seq8") if is_shown else not told.out
    assert typed_[0] == ["python", "-m", "scripts.eval_latency", *words]
    assert typed_[1][2] == "scripts.compare"
