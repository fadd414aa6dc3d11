"""The sweep over K: what is picked, against whom each K stands, and what ends a run."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("prometheus_client")
pytest.importorskip("matplotlib")

from experiments.record import Record, add
from scripts import served, sweep_k
from scripts.check_records import MOST
from scripts.latency import facts, memory, rounds
from scripts.latency.plan import cells
from scripts.latency.prompts import Prompt
from scripts.latency.rigs import Rig
from scripts.latency.rounds import Options, measure
from scripts.mtp import sweep, sweeping
from scripts.picture import keep
from scripts.resum import differences
from scripts.served import NotServed, Starting, several
from scripts.starts import NotMeasured
from serve.errors import ConfigError
from serve.settings import REPOSITORY
from serve.target import load_target
from tests.paced_server import Server, serving
from tests.scripts.sampled import record
from tests.scripts.test_latency_statistics import kept

OLD = str(REPOSITORY / "experiments/seq8-best/measurements/k-sweep_2026-11-21T223628Z.json")
PROMPTS = [Prompt("a", "", "short", 4, prompt="one"), Prompt("b", "", "short", 6, prompt="two")]


def sample(k: int, ms: float, group: int = 0, round_: int = 1, cell: str = "c1") -> dict:
    counted = {"drafts": 10, "drafted_tokens": 10 * k, "accepted_tokens": 8}
    said = kept(f"k{k}", round=round_, cell=cell, turn=1, engine=counted if k else {})
    n = len(str(said["latency_ms"]).split())
    said |= {"latency_ms": " ".join([str(ms)] * n)}
    return sweep.slim(said, group)


def swept() -> dict:
    times = {0: 1000.0, 1: 500.0, 2: 490.0}
    return sweep.summary(
        [sample(k, ms, cell=cell) for cell in ("c1", "c8") for k, ms in times.items()], 1
    )


# --- what is picked ---------------------------------------------------------------------------


def beaten(by: list[int], ratio: float = 1) -> dict:
    return {"beaten_by": by, "ratio": {"ratio": ratio}}


def test_the_least_that_no_other_beats_is_picked() -> None:
    assert sweep.pick({0: beaten([]), 1: beaten([])}) == 0
    assert sweep.pick({0: beaten([2]), 1: beaten([]), 2: beaten([])}) == 1
    assert sweep.pick({0: beaten([1]), 1: beaten([2]), 2: beaten([])}) == 2
    # Intervals are no order: three may beat each other in a ring.
    assert sweep.pick({0: beaten([1]), 1: beaten([2], 1.1), 2: beaten([0], 1.2)}) == 2


def paced(speeds: dict[int, float], groups: dict[int, int], rounds: tuple[float, ...]) -> dict:
    """A sweep whose machine is so many times slower in each round, for all K alike."""
    samples = [
        sample(k, 1000 * pace / speed, groups.get(k, 0), round_)
        for round_, pace in enumerate(rounds, 1)
        for k, speed in speeds.items()
    ]
    zeros = {g for g in groups.values() if g}
    samples += [sample(0, 1000 * p, g, r) for r, p in enumerate(rounds, 1) for g in zeros]
    return sweep.summary(samples, 1)


def test_two_that_were_alive_together_are_compared_round_by_round() -> None:
    told = paced({0: 1, 1: 1.1, 2: 1.2}, {}, (1, 2, 0.5, 3))
    assert [one["cells"]["c1"]["beaten_by"] for one in told["by_k"]] == [[1, 2], [2], []]
    assert told["picked"] == {"c1": 2}


def test_two_that_were_not_are_compared_over_none() -> None:
    told = paced({0: 1, 1: 1.1, 2: 1.2}, {2: 1}, (1, 2, 0.5, 3))
    assert [one["cells"]["c1"]["beaten_by"] for one in told["by_k"]] == [[1, 2], [2], []]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.3, 3), min_size=1, max_size=4), st.integers(1, 3))
def test_something_is_always_picked_and_nothing_beats_it(speeds: list[float], rounds: int) -> None:
    of = dict(enumerate([1.0, *speeds]))
    told = paced(of, {}, tuple(range(1, rounds + 1)))
    picked = told["picked"]["c1"]
    assert told["by_k"][picked]["cells"]["c1"]["beaten_by"] == []
    assert all(told["by_k"][k]["cells"]["c1"]["beaten_by"] for k in range(picked))


def test_speed_is_against_zero_and_tokens_a_step_are_the_engines() -> None:
    told = swept()
    none, one, _ = told["by_k"]
    assert none["acceptance"] is None
    assert none["cells"]["c1"]["ratio"] == {"ratio": 1.0, "low": 1.0, "high": 1.0}
    assert one["cells"]["c8"]["ratio"]["ratio"] == 2.0
    assert one["acceptance"]["mean_acceptance_length"] == 1.8
    assert told["picked"] == {"c1": 2, "c8": 2}
    said = sweep.report(told)
    assert "2.00 (2.00–2.00)" in said
    assert "picked: 1 at once K=2, 8 at once K=2" in said


def test_each_group_stands_against_the_zero_beside_it() -> None:
    """The machine was twice as slow in the second group."""
    pairs = [(0, 1000, 0), (1, 500, 0), (0, 2000, 1), (2, 1000, 1)]
    told = sweep.summary([sample(k, ms, group) for k, ms, group in pairs], 1)
    assert [one["cells"]["c1"]["ratio"]["ratio"] for one in told["by_k"]] == [1.0, 2.0, 2.0]


def test_without_zero_there_is_nothing_to_compare_with() -> None:
    with pytest.raises(ValueError, match="no K = 0"):
        sweep.summary([sample(1, 500)], 1)


def test_the_same_figures_give_the_same_picture(tmp_path: Path) -> None:
    for name in ("one", "two"):
        keep(tmp_path / f"{name}.svg", lambda: sweep.draw(swept(), "a title"))
    one, two = ((tmp_path / f"{name}.svg").read_bytes() for name in ("one", "two"))
    assert one == two
    assert b"8 at once: K=2 picked" in one


# --- the record -------------------------------------------------------------------------------


def a_record(samples: list[dict]) -> Record:
    made = record("k-sweep", "seq8-best", sweep.summary(samples, 1), seed=1)
    return made.model_copy(update={"samples": samples})


def test_a_whole_sweep_is_kept_small_and_draws_its_picture_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = " ".join(["1234.56"] * 16)
    few = " ".join(["96"] * 16)
    wide = {
        "ttft_ms": long.replace("1234", "123"),
        "latency_ms": long,
        "tokens": few,
        "chunks": few,
    }
    wide |= {"prompts": few, "differ_at": " ".join(["="] * 16)}
    samples = [
        sample(k, 1, round_=round_, cell=cell) | wide
        for round_ in range(1, 7)
        for cell in ("c1", "c4", "c8")
        for k in range(8)
    ]
    path = add(a_record(samples), tmp_path)
    assert path.stat().st_size < MOST
    out = tmp_path / "again.svg"
    assert sweep_k.main(["seq8-best", "--redraw", str(path), "--out", str(out)]) == 0
    assert b"K=0 picked" in out.read_bytes()
    assert sweep_k.main(["seq8-best", "--redraw", OLD, "--out", str(out)]) == 1
    assert "no record of K side by side" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--k", "9"], "expected numbers from 0 to 7"),
        (["--k", "x"], "expected numbers from 0 to 7"),
        (["--minutes", "nan"], "expected a number above 0"),
        (["--minutes", "0"], "expected a number above 0"),
        (["--concurrency", "4,0"], "expected numbers from 1"),
        (["--together", "0"], "expected a whole number above 0"),
        (["--rounds", "3"], "expected an even number, got 3"),
    ],
)
def test_options_that_are_no_numbers_are_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        sweep_k.main(["seq8-best", *words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_zero_is_always_among_the_ks() -> None:
    assert sweep_k.parser().parse_args(["seq8-best", "--k", "4,2,4"]).k == [0, 2, 4]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--redraw", "x.json"], "--redraw needs --out"),
        (["--redraw", OLD, "--out", "{}"], "expected a file, got a folder"),
        (["--prompts", "/nosuch"], "/nosuch: cannot be read: No such file or directory"),
        (["--model", "nosuch"], "no model 'nosuch'"),
        (["--model", "/nosuch"], "no folder /nosuch"),
        (["--target", "nosuch"], "no target 'nosuch'"),
        (["--k", "0"], "--k 0: expected a K beside it"),
        (["--target", "a10g", "--k", "2,5"], "--k 5: target a10g bears 4 drafts"),
        (["--target", "a10g"], "target a10g does not bear 2 engines side by side"),
        (["--out", "{}"], "expected a file, got a folder"),
        (["--out", "{}/file/k.svg"], "file: cannot be written to: "),
    ],
)
def test_what_cannot_be_is_told_in_a_line_before_an_engine_starts(
    words: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sweep_k, "measured", lambda *_: pytest.fail("an engine was started"))
    (tmp_path / "file").write_text("")
    at = ["--model", "tiny", "--target", "cpu", *(word.format(tmp_path) for word in words)]
    assert sweep_k.main(["seq8-best", "--no-record", *at]) == 2
    (line,) = capsys.readouterr().err.splitlines()[:1]
    assert said in line


def test_a_variant_that_is_not_there_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep_k.main(["seq9", "--target", "cpu"]) == 2
    assert "seq9" in capsys.readouterr().err


def test_a_record_that_cannot_be_read_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--redraw", str(tmp_path / "nosuch.json"), "--out", str(tmp_path / "k.svg")]
    assert sweep_k.main(["seq8-best", *words]) == 2
    assert "nosuch.json: No such file" in capsys.readouterr().err


# --- what ends a run --------------------------------------------------------------------------


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "IDLE_SECONDS", 0.01)
    monkeypatch.setattr(rounds, "PAUSE_SECONDS", 0.0)


def rig(name: str, url: str) -> Rig:
    return Rig(name, url, {}, "m", 0, lambda path: served.get(url + path))


@pytest.mark.parametrize(
    ("slow", "until"),
    [
        pytest.param("nothing", 45, id="the third would hardly end in time"),
        pytest.param("round 3 of 4, 1 at once", 60, id="the third does not"),
        pytest.param("round 4 of 4, 1 at once", 80, id="the fourth does not"),
    ],
)
@pytest.mark.usefixtures("hasty")
def test_when_time_is_up_the_rounds_count_that_are_whole_pairs(
    monkeypatch: pytest.MonkeyPatch, slow: str, until: float
) -> None:
    """A clock that goes by what is told: ten seconds a round, and a hundred for one."""
    told: list[str] = []

    def clock() -> float:
        return sum(100.0 if line == slow else 10.0 for line in told)

    monkeypatch.setattr(rounds, "time", SimpleNamespace(monotonic=clock, sleep=time.sleep))
    options = Options(rounds=4, busy_ok=True, strict=True)
    with serving(Server(gap=0)) as url:
        alive = [rig("k0", url), rig("k1", url)]
        run = measure(alive, PROMPTS, cells([1], []), options, told.append, until)
    assert run.rounds == 2
    assert {one["round"] for one in run.samples} == {1, 2}
    assert told[-1] == "time is up: 2 of 4 rounds count"


@pytest.mark.usefixtures("hasty")
def test_less_than_two_rounds_are_none() -> None:
    options = Options(rounds=2, busy_ok=True, strict=True)
    with serving(Server()) as url, pytest.raises(NotMeasured, match="before two rounds"):
        measure([rig("k0", url)], PROMPTS, cells([1], []), options, str, time.monotonic())


@pytest.mark.usefixtures("hasty")
def test_a_request_that_fails_ends_a_strict_run_in_one_line() -> None:
    bad = [*PROMPTS, Prompt("c", "", "short", 4, prompt="refused")]
    options = Options(rounds=2, busy_ok=True, strict=True)
    with serving(Server()) as url, pytest.raises(NotMeasured) as error:
        measure([rig("k3", url)], bad, cells([1], []), options, str)
    assert str(error.value).startswith("k3: 1 of 3 requests failed: status 429")
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("hasty")
def test_an_engine_that_was_started_again_is_not_measured() -> None:
    again = f"# TYPE {facts.RESTARTS} gauge\n{facts.RESTARTS} 1\n".encode()
    with serving(Server()) as url:
        alive = Rig("k3", url, {}, "m", 0, lambda _: again)
        with pytest.raises(NotMeasured, match="k3: its engine died"):
            measure([alive], PROMPTS, cells([1], []), Options(rounds=2, busy_ok=True), str)


@pytest.mark.usefixtures("hasty")
def test_a_gateway_that_is_gone_is_named() -> None:
    def gone(_: str) -> bytes:
        raise ConnectionRefusedError("refused")

    with serving(Server()) as url:
        alive = Rig("k3", url, {}, "m", 0, gone)
        with pytest.raises(NotMeasured, match="k3: its gateway does not"):
            measure([alive], PROMPTS, cells([1], []), Options(rounds=2, busy_ok=True), str)


# --- engines side by side ---------------------------------------------------------------------


class Gateways:
    """Stand-ins for gateways: processes that sleep, ready when asked twice; some never."""

    def __init__(self, dead: str = "") -> None:
        self.dead, self.begun, self.most = dead, dict[str, Starting](), 0
        self.asked: dict[str, int] = {}

    def begin(self, settings: dict[str, str], folder: Path, seconds: float) -> Starting:
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        starting = Starting(process, folder, folder / "log", seconds)
        name = folder.name
        self.begun[name] = starting
        self.most = max(self.most, sum(self.asked.get(one, 0) < 2 for one in self.begun))

        def ready() -> object:
            self.asked[name] = self.asked.get(name, 0) + 1
            if name == self.dead:
                raise NotServed("not ready (exit status 1):\nno memory")
            return name if self.asked[name] == 2 else None

        object.__setattr__(starting, "ready", ready)
        return starting


@contextmanager
def standing_in(monkeypatch: pytest.MonkeyPatch, dead: str = "") -> Iterator[Gateways]:
    gateways = Gateways(dead)
    monkeypatch.setattr(served, "begin", gateways.begin)
    monkeypatch.setattr(served, "POLL_SECONDS", 0.0)
    yield gateways
    assert all(one.process.poll() is not None for one in gateways.begun.values())


def test_gateways_start_two_at_a_time_and_all_are_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    each = {name: {"VARIANT": name} for name in ("a", "b", "c")}
    with standing_in(monkeypatch) as gateways:
        with several(each, tmp_path, 2) as found:
            assert list(found) == ["a", "b", "c"]
        assert gateways.most == 2


def test_when_one_does_not_start_the_others_are_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    each: dict[str, dict[str, str]] = {"a": {}, "b": {}}
    with standing_in(monkeypatch, dead="b"):  # noqa: SIM117 - what is raised is inside
        with pytest.raises(NotServed, match="b: not ready"), several(each, tmp_path, 2):
            pytest.fail("it began")


def test_an_interrupt_stops_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    each: dict[str, dict[str, str]] = {"a": {}, "b": {}}
    with standing_in(monkeypatch), pytest.raises(SystemExit) as ended:  # noqa: SIM117
        with several(each, tmp_path, 2):
            raise KeyboardInterrupt
    assert ended.value.code == 130


def test_as_many_fit_as_leave_the_last_what_it_needs_to_start() -> None:
    gib = 2**30
    assert memory.fitting(18 * gib, gib, 4 * gib) == 14
    assert memory.fitting(4 * gib, gib, 4 * gib) == 0
    assert memory.fitting(3 * gib, gib, 4 * gib) == 0
    assert memory.available() > 0


@pytest.mark.parametrize(
    ("card", "fit"),
    [
        ({"memory_mib": 80_000}, 1),
        ({"memory_mib": 80_000, "kv_cache_mib": 256}, 1 + 6400 // 2048),
        ({"memory_mib": 22_587, "kv_cache_mib": 256}, 1),
        ({"memory_mib": None, "kv_cache_mib": 256}, 1),
    ],
)
def test_as_many_fit_a_card_as_leave_free_what_vllm_asks_for(
    card: dict[str, int | None], fit: int
) -> None:
    target = load_target("a10g", REPOSITORY / "experiments").model_copy(update=card)
    each = 2048 * memory.MIB
    assert memory.on_card(target, each) == fit
    memory.check_card(target, each, fit)
    with pytest.raises(ConfigError, match=f"a10g does not bear {fit + 1} engines"):
        memory.check_card(target, each, fit + 1)
    memory.check_card(target.model_copy(update={"device": "cpu"}), each, 8)


def test_what_a_process_takes_is_that_of_all_below_it() -> None:
    code = "x = bytearray(32 << 20); print(flush=True); input()"
    below = [sys.executable, "-c", code]
    held = f"import subprocess; subprocess.run({json.dumps(below)}, check=True)"
    with subprocess.Popen(
        [sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        assert memory.taken(process.pid) > 32 << 20
        process.communicate(b"\n")
    assert memory.taken(process.pid) == 0


# --- the whole command ------------------------------------------------------------------------


# Answers that no draft says in one chunk.
LONG = [Prompt(name, "", "short", 12, prompt=name) for name in ("one", "two", "three")]


class Drafting(Server):
    """Says as many tokens at once as it has drafts and one, and counts all of them accepted."""

    def __init__(self, k: int) -> None:
        super().__init__(per_chunk=k + 1, gap=0.004, sound=True)
        self.k = k

    async def metrics(self, request: web.Request) -> web.Response:
        said = await super().metrics(request)
        steps = self.tokens // (self.k + 1)
        counts = {"drafts": steps, "draft_tokens": steps * self.k}
        counts["accepted_tokens"] = steps * self.k
        lines = [
            f"# TYPE vllm:spec_decode_num_{name} counter\n"
            f"vllm:spec_decode_num_{name}_total {count}\n"
            for name, count in counts.items()
        ]
        return web.Response(text=f"{said.text}{''.join(lines) if self.k else ''}")


@pytest.fixture
def drafting(monkeypatch: pytest.MonkeyPatch, hasty: None, tmp_path: Path) -> list[list[str]]:
    """Servers in the place of gateways; the names of those that started together."""
    started: list[list[str]] = []

    @contextmanager
    def rigs(each: dict[str, object], *_: object) -> Iterator[list[Rig]]:
        started.append(list(each))
        with ExitStack() as stack:
            servers = {one: Drafting(sweep.number(one)) for one in each}
            urls = {one: stack.enter_context(serving(made)) for one, made in servers.items()}
            about = {"variant": "seq8-best", "model": {"name": "tiny"}, "target": {"name": "cpu"}}
            yield [replace(rig(one, url), told=about | {"k": one}) for one, url in urls.items()]

    monkeypatch.setattr(sweeping, "rigs", rigs)
    monkeypatch.setattr(sweeping, "taken", lambda _: 2**30)
    monkeypatch.setattr(sweeping, "available", lambda: 20 * 2**30)
    monkeypatch.setattr(rounds.time, "sleep", lambda _: None)
    experiments = tmp_path / "experiments"
    monkeypatch.setattr(sweep_k, "folder_of", lambda name: experiments / name / "measurements")
    monkeypatch.setattr(sweep_k, "read_prompts", lambda _: LONG)
    return started


def run(*words: str) -> int:
    axes = ("--model", "tiny", "--target", "cpu", "--k", "0,1,3", "--concurrency", "1,2")
    return sweep_k.main(["seq8-best", *axes, "--quick", "--requests", "4", "--busy-ok", *words])


def test_a_sweep_is_recorded_drawn_and_told(
    drafting: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiments/seq8-best").mkdir(parents=True)
    assert run() == 0
    assert drafting == [["k0"], ["k1", "k3"]]
    said = capsys.readouterr()
    assert "picked: 1 at once K=" in said.out
    (path,) = (tmp_path / "experiments/seq8-best/measurements").iterdir()
    kept_ = Record.model_validate_json(path.read_bytes())
    assert list(differences(kept_)) == []
    assert kept_.variant["k"] == "k3"
    assert [one["acceptance"]["mean_acceptance_length"] for one in kept_.summary["by_k"][1:]] == [
        pytest.approx(2),
        pytest.approx(4),
    ]
    assert kept_.summary["rounds"] == [2]
    picture = tmp_path / "experiments/seq8-best/k-sweep.svg"
    again = tmp_path / "again.svg"
    assert sweep_k.main(["seq8-best", "--redraw", str(path), "--out", str(again)]) == 0
    assert again.read_bytes() == picture.read_bytes()


@pytest.mark.usefixtures("drafting")
def test_where_no_record_can_be_is_told_before_an_engine_starts(
    drafting: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiments").write_text("")
    assert run("--out", str(tmp_path / "k.svg")) == 2
    assert "measurements: cannot be written to: " in capsys.readouterr().err
    assert drafting == []


@pytest.mark.usefixtures("drafting")
def test_a_picture_that_cannot_be_drawn_leaves_the_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sweep_k, "keep", full)
    assert run() == 1
    (path,) = (tmp_path / "experiments/seq8-best/measurements").iterdir()
    told = capsys.readouterr()
    assert f"wrote {path}" in told.err
    assert "No space left" in told.err
    assert "picked: 1 at once K=" in told.out
    command = Record.model_validate_json(path.read_bytes()).command
    assert command[:4] == ["python", "-m", "scripts.sweep_k", "seq8-best"]


def test_where_memory_does_not_hold_all_they_come_in_groups(
    drafting: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--together", "2", "--no-record", "--json") == 0
    assert drafting == [["k0"], ["k1"], ["k3"]]
    told = json.loads(capsys.readouterr().out)
    assert [one["k"] for one in told["by_k"]] == [0, 1, 3]
    assert told["rounds"] == [2, 2]


@pytest.mark.parametrize("dead", ["k1", "k3"])
def test_what_stops_a_group_leaves_what_the_others_gave(
    drafting: list[list[str]],
    dead: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = sweeping.rigs

    def rigs(each: dict[str, object], *rest: object) -> object:
        if dead in each:
            raise NotServed(f"{dead}: not ready (its time is over):\na long log")
        return whole(each, *rest)

    monkeypatch.setattr(sweeping, "rigs", rigs)
    assert run("--together", "2", "--no-record", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["left_out"] == {dead: f"{dead}: not ready (its time is over)"}
    assert [one["k"] for one in told["by_k"]] == [0, 3 if dead == "k1" else 1]
    assert f"left out: {dead} ({dead}: not ready" in sweep.report(told)


def test_where_no_group_gave_anything_the_sweep_failed(
    drafting: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = sweeping.rigs

    def rigs(each: dict[str, object], *rest: object) -> object:
        if "k0" not in each:
            raise NotServed(f"{next(iter(each))}: no time was left to start it")
        return whole(each, *rest)

    monkeypatch.setattr(sweeping, "rigs", rigs)
    assert run("--together", "2", "--no-record") == 1
    assert "no time was left" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.usefixtures("drafting")
def test_no_two_side_by_side_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--together", "1", "--no-record") == 1
    assert "no two engines side by side" in capsys.readouterr().err.splitlines()[-1]
