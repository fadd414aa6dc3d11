"""Traces become trees, tables and pictures; a matrix becomes medians. No engine runs here."""

import gzip
import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from scripts import profile_matrix, profile_model
from scripts.profile import trace
from scripts.profile.engine import changed, stop
from scripts.profile.flame import page, speedscope
from scripts.profile.heat import draw
from scripts.profile.processes import seconds, spent
from scripts.profile.prompts import Prompts


def event(name, ts, dur, cat="cpu_op", tid=1):
    return {"ph": "X", "name": name, "ts": ts, "dur": dur, "cat": cat, "pid": 1, "tid": tid}


EVENTS = [
    event(trace.FORWARD, 0, 100, "user_annotation"),
    event("aten::mm", 10, 30),
    event("aten::mm", 50, 30),
    event("aten::copy_", 55, 10),
    event("gpu_model_runner: draft", 100, 60, "user_annotation"),
    event("aten::argmax", 110, 40),
    event("gemm", 20, 25, "kernel", 7),
]


@pytest.fixture
def root():
    return trace.tree(EVENTS)


def test_nesting_is_by_time_and_own_time_is_what_children_leave(root):
    forward = root.children[trace.FORWARD]
    assert (forward.total, forward.own) == (100, 40)
    multiply = forward.children["aten::mm"]
    assert (multiply.total, multiply.own, multiply.calls) == (60, 50, 2)
    assert root.total == 160


def test_order_of_events_does_not_matter(root):
    assert trace.tree(reversed(EVENTS)) == root


def test_phases_operators_and_kernels_are_told_apart(root):
    assert trace.phases(root) == {"forward": 0.1, "draft": 0.06}
    names = [row["name"] for row in trace.operators(root)]
    assert names[:2] == ["aten::mm", trace.FORWARD]
    assert "gemm" not in names
    assert trace.kernels(EVENTS) == [{"name": "gemm", "ms": 0.025, "calls": 1}]
    assert trace.steps(EVENTS) == 1


def test_modules_of_an_eager_run_are_its_layers():
    rows = trace.layers(trace.tree([event("nn.Module: Layer_3", 0, 2000, "python_function")]))
    assert rows == [{"name": "Layer_3", "ms": 2.0, "calls": 1}]


@pytest.mark.parametrize("packed", [False, True])
def test_a_trace_is_read_packed_or_not(tmp_path, packed):
    data = json.dumps({"traceEvents": [*EVENTS, {"ph": "M", "name": "thread"}]}).encode()
    path = tmp_path / ("t.json.gz" if packed else "t.json")
    path.write_bytes(gzip.compress(data) if packed else data)
    assert trace.read(path) == EVENTS


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"traceEvents": 3}', b"\x1f\x8b"])
def test_what_is_no_trace_is_told(tmp_path, data):
    for name in ("t.json", "t.json.gz"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(trace.BadTrace, match="not a torch profiler's trace"):
            trace.read(tmp_path / name)


def test_the_flame_graph_needs_nothing_else_and_hides_nothing_wide(root):
    text = page(root, "a <b> & c")
    assert "http" not in text
    svg = ET.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    boxes = [g.find("rect") for g in svg.iter("g")]
    assert len(boxes) == 6
    top, *below = [float(box.get("width")) for box in boxes]
    assert top == 1600
    assert max(below) == pytest.approx(1600 * 100 / 160)
    assert "a &lt;b&gt; &amp; c" in text


def test_speedscope_holds_each_stack_once_and_all_of_the_time(root):
    told = speedscope(root, "t")
    profile, frames = told["profiles"][0], told["shared"]["frames"]
    assert sum(profile["weights"]) == profile["endValue"] == root.total
    assert len({tuple(sample) for sample in profile["samples"]}) == len(profile["samples"])
    assert max(i for sample in profile["samples"] for i in sample) == len(frames) - 1


def test_figures_are_per_step(root):
    plain = {"ms_per_step": 1.0}
    figures = profile_model.figures_of(EVENTS, root, plain, plain)
    assert figures["phases_ms_per_step"] == {"forward": 0.1, "draft": 0.06}
    assert figures["operators"][0]["calls_per_step"] == 2
    assert figures["layers"] == []


def test_flags_come_before_the_socket_and_one_can_be_left_out():
    argv = ["python", "--x", "1", "--y", "2", "--uds", "s"]
    assert changed(argv, ["--z"], "--x") == ["python", "--y", "2", "--z", "--uds", "s"]
    assert changed(argv, [], "--none") == argv


def test_cells_are_medians_with_their_span():
    times = [3.0, 1.0, 2.0]
    samples = [
        {
            "k": 0,
            "batch": 1,
            "context": 8,
            "ms_per_step": t,
            "tokens_per_second": 5,
            "prefill_ms": 1,
        }
        for t in times
    ]
    (cell,) = profile_matrix.cells(samples)
    assert (cell["ms_per_step"], cell["ms_per_step_least"], cell["ms_per_step_most"]) == (2, 1, 3)


def test_the_same_cells_draw_the_same_bytes(tmp_path):
    cells = [
        {"k": k, "batch": b, "context": c, "ms_per_step": k + b, "tokens_per_second": c}
        for k in (0, 4)
        for b in (1, 8)
        for c in (64, 512)
    ]
    for name in ("a.svg", "b.svg"):
        draw(cells, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert b"<image" not in (tmp_path / "a.svg").read_bytes()


def test_requests_of_a_cell_differ_from_each_other():
    loads = Prompts(range(1000, 1500))
    prompts = [tuple(one.prompt) for _ in range(200) for one in loads.load(8, 64, 4)]
    # Not in one load, nor with those of any before, from the first block on.
    assert len({prompt[:16] for prompt in prompts}) == len(prompts)
    assert {len(prompt) for prompt in prompts} == {64}
    assert [len(one.prompt) for one in loads.load(1, 2, 1)] == [2]


def test_what_is_left_of_an_engines_group_is_killed():
    """A core goes on when its front end ends by itself."""
    core = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    front = (
        "import subprocess, sys, time\n"
        f"core = subprocess.Popen([sys.executable, '-c', {core!r}])\n"
        "print(core.pid, flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", front], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout
        left = int(process.stdout.readline())
        stop(process)
        # Its parent is gone, so it may lie about as a zombie, or be gone.
        state = Path(f"/proc/{left}/stat")
        until = time.monotonic() + 20
        while state.exists() and ") Z" not in state.read_text() and time.monotonic() < until:
            time.sleep(0.05)
        assert not state.exists() or ") Z" in state.read_text()


def test_a_process_has_cpu_seconds():
    before = seconds(1)
    assert set(before) == {"front end"} or "front end" in before
    assert spent({"a": 1.0}, {"a": 1.5, "b": 2.0}) == {"a": 0.5, "b": 2.0}


@pytest.mark.parametrize("module", [profile_matrix, profile_model])
def test_an_unknown_variant_is_a_usage_error_in_a_line(module, capsys):
    assert module.main(["nowhere", "--no-record"]) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["0,x", "0", "1,,2", ""])
def test_numbers_are_checked(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        profile_matrix.main(["seq8", "--batches", words])
    assert "expected numbers from 1" in capsys.readouterr().err


def test_where_nothing_can_be_written_is_told_before_an_engine_starts(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert profile_model.main(["seq8", "--out", str(tmp_path / "file"), "--no-record"]) == 1
    told = capsys.readouterr().err
    assert "not profiled" in told
    assert "starting the engine" not in told


def test_where_no_record_can_be_is_told_before_an_engine_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(profile_model, "folder_of", lambda name: tmp_path / "file" / name)
    monkeypatch.setattr(profile_model, "profile", lambda *_: pytest.fail("an engine was started"))
    assert profile_model.main(["seq8", "--out", str(tmp_path / "graphs")]) == 1
    assert "not profiled: " in capsys.readouterr().err
