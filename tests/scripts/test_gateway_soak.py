"""The soak's bookkeeping: a lost visit is seen as lost, a leak as a leak, growth as growth.

Held against real gateways over fake engines; the mixture itself is for real vLLM.
"""

import asyncio
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from urllib.parse import urlsplit

import pytest

from experiments.record import Record
from scripts.gateway import soak, systems
from scripts.gateway.soaking import hands, verdict
from scripts.gateway.soaking.growth import growth
from scripts.gateway.soaking.load import Load, soaked
from scripts.gateway.soaking.raw import end_of, end_of_events, exchange, raw
from scripts.gateway.soaking.verdict import Goal
from scripts.gateway.soaking.visits import LEFT, WHOLE, Amiss, Book, Kind
from scripts.gateway.soaking.vitals import Place, fewest, look, resident
from scripts.served import Served
from tests.serve.keyrings import made, written
from tests.serve.live import Process, process

SEED = random.Random(1)
# Neither fake engine tells how many wait in it.
NOT_TOLD = "engine waiting at the end"
# What real vLLM is needed for: its words for a bad body, its log-probabilities.
BY_VLLM = ("engine", "slow reader")
SILENT = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-fake: silent\r\n\r\n"


def place(started: Process) -> Place:
    socket = next(started.log.parent.glob("preheat-*/engine.sock"))
    return Place(started.popen.pid, urlsplit(started.url).port or 0, socket)


def site_of(url: str) -> hands.Site:
    return hands.Site(url, "tiny", {})


def asking(name: str, fault: str, *, stream: bool = False, kind: str = "x-fake") -> Kind:
    """A visit that the fake engine does this to."""

    async def ask(site: hands.Site, chance: random.Random) -> str:
        body = site.chat(chance, stream=stream)
        return end_of(*await exchange(site.url, "POST", hands.CHAT, {kind: fault}, body))

    return Kind(name, ask)  # type: ignore[arg-type]


def on(site: hands.Site, kind: Kind) -> Kind:
    return Kind(kind.name, partial(kind.ask, site), kind.right, kind.weight, kind.requests)


@asynccontextmanager
async def these(*kinds: Kind):
    yield kinds


def brief(kinds, **more) -> Load:
    """Long enough for a sample or two."""
    fields = {"pollers": (), "seconds": 0.5, "clients": 2, "every": 0.2, "rest": 0.6, "idle": 5}
    return Load(kinds, **(fields | more))


def quiet(_) -> None:
    """No progress is shown."""


def unkept(goals) -> set[str]:
    return {goal.what for goal in goals if not goal.kept} - {NOT_TOLD}


def keys(folder) -> tuple[dict[str, str], dict[str, str]]:
    """Secrets by the names of their keys, and the setting that makes them keys."""
    limits = {
        hands.OPEN: {},
        hands.COUNTED: {
            "tokens_per_minute": 10**9,
            "routes": tuple(hands.COUNTED_ROUTES.split(",")),
        },
        hands.MEAGRE: {"requests_per_minute": hands.MEAGRE_PER_MINUTE},
    }
    records, secrets = zip(*(made(name=n, **fields) for n, fields in limits.items()), strict=True)
    path = written(folder / "keys.json", *records)
    return dict(zip(limits, secrets, strict=True)), {"PREHEAT_KEYS_FILE": str(path)}


@contextmanager
def fast(folder, settings):
    """The gateway as it ships, over the fake engine that writes as vLLM does."""
    starting = systems.begin(settings, folder / "gateway", 0)
    try:
        while not (running := starting.ready()):
            time.sleep(0.1)
        yield running
    finally:
        Served(starting.process, "", folder, starting.log).stop()


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A gateway without keys over the fake engine that can be told to fail."""
    with process(tmp_path_factory.mktemp("soak")) as started:
        started.until_ready()
        yield started


def test_a_mixture_that_goes_well_keeps_all_that_was_wanted(tmp_path, monkeypatch, capsys):
    """The command as it is typed, but for the engine and those who need a real one."""
    secrets, settings = keys(tmp_path)

    @contextmanager
    def served(_, folder):
        with fast(folder, settings) as running:
            yield running

    @asynccontextmanager
    async def mixed(site):
        groups = (hands.streams, hands.refused, hands.held_back)
        each = [kind for group in groups for kind in group(site)]
        wanted = [k for k in each if not any(w in k.name + "".join(k.right) for w in BY_VLLM)]
        yield [kind for kind in wanted if kind.name != "beyond its deadline"]

    monkeypatch.setattr(soak, "served", served)
    monkeypatch.setattr(soak, "mixed", mixed)
    monkeypatch.setattr(soak, "give_out", lambda _: secrets)
    monkeypatch.setattr(soak, "wanted", partial(_hurried, soak.wanted))
    monkeypatch.setattr(soak, "MEASUREMENTS", tmp_path / "measurements")
    monkeypatch.setattr(soak, "REPOSITORY", tmp_path)
    status = soak.main(["--minutes", "0.04", "--every", "0.2", "--json"])
    summary = json.loads(capsys.readouterr().out)
    (record,) = (tmp_path / "measurements").iterdir()
    assert Record.model_validate_json(record.read_bytes()).summary == summary
    missed = {goal["what"] for goal in summary["goals"] if not goal["kept"]}
    # Two seconds after a start memory is anything but flat.
    assert {what for what in missed if not what.startswith(("MiB", "memory"))} == {NOT_TOLD}
    assert status == 1, "what was not told was not kept"
    assert summary["lost"] == 0
    assert summary["stories"] == []
    assert summary["kinds"][hands.OVER_QUOTA]["ends"].keys() == {
        WHOLE,
        "429 requests_per_minute",
    }


def _hurried(wanted, parsed, site) -> Load:
    asked = wanted(parsed, site)
    return Load(
        asked.kinds, asked.pollers, asked.seconds, asked.clients, asked.every, rest=2.2, idle=5
    )


@pytest.mark.parametrize(
    ("fault", "stream", "story"),
    [
        ("cut-short", False, "IncompleteReadError"),
        ("cut-event", True, "error event engine_connection_lost"),
        ("refused", False, "400 engine"),
        ("silent", False, "no end in 0.3 s"),
    ],
)
async def test_what_does_not_end_as_it_may_is_lost_with_its_story(ready, fault, stream, story):
    kind = on(site_of(ready.url), asking("a visitor", fault, stream=stream))
    book = Book([kind])
    await book.visit(kind, SEED, longest=0.3 if fault == "silent" else 20)
    assert (book.visits, book.lost, book.at_work) == (1, 1, 0)
    assert book.stories[0]["kind"] == "a visitor"
    assert story in book.stories[0]["end"]
    assert unkept(verdict.nothing_lost(book)) == {"visits lost"}


async def test_an_answer_to_somebody_else_is_lost(ready):
    async def ask(_: random.Random) -> str:
        async with raw(ready.url) as wire:
            mine = wire.request("GET", hands.MODELS, {})
            wire.send(mine.replace(b"x-request-id: ", b"x-request-id: another-"))
            await wire.head()
        return WHOLE

    kind = Kind("mixed up", ask)
    book = Book([kind])
    await book.visit(kind, SEED)
    assert book.lost == 1
    assert "x-request-id is another-" in book.stories[0]["end"]


async def test_no_more_than_fifty_stories_are_kept_and_every_loss_is_counted():
    async def ask(_: random.Random) -> str:
        raise Amiss("so")

    kind = Kind("always", ask)
    book = Book([kind])
    for _ in range(70):
        await book.visit(kind, SEED)
    assert book.lost == 70
    assert len(book.stories) == 50


async def test_clients_that_leave_at_any_moment_leave_nothing_behind(ready):
    site = site_of(ready.url)
    asked = brief(partial(these, *hands.leavers(site)), rest=2.2)
    seen = await soaked(asked, site, place(ready), quiet)
    assert {end for entry in seen.book.entries.values() for end in entry.ends} == {LEFT, WHOLE}
    found = {
        goal.what for goal in verdict.goals(seen) if not goal.kept and "memory" not in goal.what
    }
    assert {what for what in found if "MiB" not in what} == {NOT_TOLD}


@pytest.mark.parametrize(
    ("what", "missed"),
    [
        (b"", {"connections of clients at the end", "open files at the end"}),
        (SILENT, {"in flight at the end", "engine running at the end"}),
    ],
    ids=["a connection", "a request"],
)
async def test_what_stays_when_all_have_left_is_a_leak(ready, what, missed):
    site, opened, held = site_of(ready.url), [], []

    @asynccontextmanager
    async def kinds():
        opened.append(True)
        yield [on(site, asking("plain", ""))]
        # At the first rest there is none.
        if len(opened) == 2:
            held.append(await asyncio.open_connection("127.0.0.1", place(ready).port))
            held[0][1].write(what)

    seen = await soaked(brief(kinds, idle=0.5), site, place(ready), quiet)
    held[0][1].close()
    assert missed <= unkept(verdict.nothing_leaked(seen.start, seen.end))


async def test_a_gateway_that_dies_is_no_good_end(tmp_path):
    with process(tmp_path) as started:
        started.until_ready()
        site = site_of(started.url)
        kind = on(site, asking("plain", ""))
        asked = brief(partial(these, kind), seconds=20)

        def kill(_: object) -> None:
            os.kill(started.popen.pid, signal.SIGKILL)
            started.popen.wait()

        seen = await soaked(asked, site, place(started), kill)
    assert seen.end is None
    assert "the gateway at the end" in unkept(verdict.goals(seen))
    assert seen.seconds < 20


def test_requests_counted_too_often_or_not_at_all_are_seen():
    book = Book([Kind("once", SEED.choice), Kind("perhaps", SEED.choice, requests=(0, 1))])
    for name in ("once", "once", "perhaps"):
        book.enter(book.entries[name].kind, WHOLE, 0.0, 1.0)
    kept = {found: verdict.counted_once(book, found).kept for found in range(1, 5)}
    assert kept == {1: False, 2: True, 3: True, 4: False}


@pytest.mark.parametrize(
    ("whole", "refused", "kept"), [(13, 5, True), (14, 5, False), (13, 0, False), (0, 5, False)]
)
def test_a_quota_is_kept_when_it_lets_enough_in_and_no_more(whole, refused, kept):
    ends = Counter({WHOLE: whole, "429 requests_per_minute": refused})
    assert verdict.quota_kept(ends, 12, 5).kept == kept


def test_memory_that_grows_is_seen_and_measured():
    requests = [100.0 * n for n in range(100)]
    ripple = [math.sin(n) for n in range(100)]
    for per_1000 in (0.5, 2.0):
        rises = [150 + r + per_1000 * x / 1000 for x, r in zip(requests, ripple, strict=True)]
        found = growth(requests, rises)
        assert found is not None
        assert found.slope.low < per_1000 < found.slope.high
        assert found.grown_mib == pytest.approx(per_1000 * 9.9, abs=0.5)
        assert unkept(verdict.flat(found)) == (
            {"MiB per 1,000 visits, second half", "MiB more, second half"}
            if per_1000 == 2.0
            else set()
        )


def test_memory_that_rose_once_and_stays_is_not_told_more_surely_than_it_is():
    requests = [100.0 * n for n in range(100)]
    found = growth(requests, [150.0 if n < 50 else 151.0 for n in range(100)])
    assert found is not None
    assert found.slope.high - found.slope.low > 0.03, "neighbours are no draws of their own"


def test_of_too_few_samples_nothing_is_said():
    assert growth([1.0, 2.0], [1.0, 1.0]) is None
    assert growth([5.0] * 10, [1.0] * 10) is None
    assert unkept(verdict.flat(None)) == {"memory"}


def test_a_process_that_grows_is_seen_to_grow():
    each = "held.append(b'x' * 4 * 2**20); print(flush=True)"
    argv = [sys.executable, "-c", f"import sys\nheld = []\nfor _ in sys.stdin: {each}"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as grower:
        mib = []
        for _ in range(12):
            grower.stdin.write(b"\n")
            grower.stdin.flush()
            grower.stdout.readline()
            mib.append(resident(grower.pid))
        grower.stdin.close()
    found = growth([10.0 * n for n in range(12)], mib)
    assert found is not None
    assert found.slope.low > verdict.SLOPE_MIB


async def test_what_a_gateway_holds_is_seen_from_outside(ready):
    where = place(ready)
    before = await asyncio.to_thread(fewest, where, 0.5)
    async with raw(ready.url) as wire:
        wire.ask("GET", hands.MODELS, {"x-fake": "silent"})
        await asyncio.sleep(0.3)
        meanwhile = look(where)
    assert meanwhile.clients == before.clients + 1
    assert meanwhile.fds > before.fds
    assert meanwhile.upstream > 0
    assert before.engine_rss_mib > 1, "the front end was found"


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ('data: {"finish_reason":"stop"}\n\ndata: [DONE]\n\n', WHOLE),
        ('data: {"finish_reason":null}\n\ndata: [DONE]\n\n', "no finish_reason"),
        ('data: {"finish_reason":"stop"}\n\n', "cut without a word"),
        ('data: {"finish_reason":"stop"}\n\ndata: [DONE]', "cut without a word"),
        ("", "cut without a word"),
        (
            'data: {"id":"cmpl-1","finish_reason":"stop"}\n\n'
            'data: {"id":"cmpl-2","finish_reason":"stop"}\n\ndata: [DONE]\n\n',
            "events of several answers: ['cmpl-1', 'cmpl-2']",
        ),
        ('data: {"error": {"code": 500}}\n\ndata: [DONE]\n\n', "error event engine"),
        (
            'data: {"hal\n\ndata: {"type": "error", "error": {"src": "gateway", "code": "x"}}\n\n',
            "error event x",
        ),
        ('event: error\ndata: {"type": "error", "error": {"code": 5}}\n\n', "error event engine"),
    ],
)
def test_how_a_stream_ended_is_told(text, end):
    assert end_of_events(text).startswith(end)


def test_a_bad_end_is_told():
    goals = [*verdict.ended(0, 0), *verdict.ended(1, 2)]
    assert [goal.kept for goal in goals] == [True, True, False, False]


def test_tables_show_what_was_lost(capsys):
    book = Book([Kind("a visitor", SEED.choice)])
    book.enter(book.entries["a visitor"].kind, "no end in 3 s", 0.0, 3.0)
    soak.show(book.stories, [Goal("visits lost", "0", "1 of 1", kept=False)], book.describe())
    said = capsys.readouterr().out
    assert "a visitor" in said
    assert "no end in 3 s" in " ".join(said.split())
    assert "not kept" in said


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit):
        soak.main(["--help"])
    assert "examples:" in capsys.readouterr().out
