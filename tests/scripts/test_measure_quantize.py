import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts import measure_quantize, measured_child
from scripts.measure_quantize import (
    Wanted,
    against,
    grid,
    heldout,
    main,
    parser,
    rival_of,
    summary,
    wanted,
)
from scripts.quality.kept import Kept
from serve.settings import REPOSITORY


def test_the_grid_is_every_scheme_target_group_and_head(monkeypatch):
    monkeypatch.delenv("PREHEAT_LLMCOMPRESSOR", raising=False)
    names = [one.name for one in grid()]
    assert len(names) == len(set(names)) == 27
    assert {"rtn mlp g32", "awq linear g128 head", "head g64"} <= set(names)


def test_the_peer_is_measured_where_it_is(monkeypatch):
    monkeypatch.delenv("PREHEAT_LLMCOMPRESSOR", raising=False)
    parsed = parser().parse_args(["--group-size", "64"])
    assert [one.name for one in wanted(parsed)] == ["bf16", "rtn mlp g64", "awq mlp g64"]
    monkeypatch.setenv("PREHEAT_LLMCOMPRESSOR", "/somewhere/python")
    assert [one.by for one in wanted(parsed)][3:] == ["llm-compressor"] * 2


def test_the_grid_ends_with_the_peer_where_it_is_and_leaves_its_head(monkeypatch):
    monkeypatch.setenv("PREHEAT_LLMCOMPRESSOR", "/somewhere/python")
    theirs = [one for one in grid() if one.by != "preheat"]
    ours = {one.name: one.words for one in grid() if one.by == "preheat"}
    assert len(theirs) == 12
    assert not any("--lm-head" in one.words for one in theirs)
    assert all(one.words == (*ours[rival_of(one.name)], "--by", one.by) for one in theirs)


def test_some_of_the_grid_can_be_asked_for_and_the_model_as_it_is_stays(monkeypatch):
    monkeypatch.delenv("PREHEAT_LLMCOMPRESSOR", raising=False)
    parsed = parser().parse_args(["--grid", "--only", "^(rtn|awq) mlp g32$"])
    assert [one.name for one in wanted(parsed)] == ["bf16", "rtn mlp g32", "awq mlp g32"]


def test_what_is_no_pattern_is_usage(capsys):
    with pytest.raises(SystemExit, match="2"):
        parser().parse_args(["--grid", "--only", "("])
    assert "is no pattern" in capsys.readouterr().err


def test_awq_is_told_beside_rounding_and_theirs_beside_ours_text_by_text():
    rest = {"tokens": [5, 5], "bytes": 9, "seconds": 0.0, "peak_bytes": 0}
    rows = [
        {"recipe": "bf16", "nll": [10.0, 20.0], **rest},
        {"recipe": "rtn mlp g32", "nll": [11.0, 21.0], **rest},
        {"recipe": "awq mlp g32", "nll": [10.5, 20.5], **rest},
        {"recipe": "awq mlp g32 by llm-compressor", "nll": [10.5, 20.5], **rest},
    ]
    told = summary(rows)
    assert "beside" not in told["bf16"]
    assert "beside" not in told["rtn mlp g32"]
    beside = told["awq mlp g32"]["beside"]
    # Texts differ much, what is changed in them not at all: the interval is a point.
    assert beside["recipe"] == "rtn mlp g32"
    assert beside["point"] == beside["low"] == beside["high"] == pytest.approx(-0.09516, abs=1e-5)
    assert told["awq mlp g32 by llm-compressor"]["beside"]["point"] == 0
    assert told["rtn mlp g32"]["change_low"] <= told["rtn mlp g32"]["change"]


def test_fewer_texts_are_spread_over_all():
    texts, source = heldout(parser().parse_args(["--texts", "5"]))
    assert source == "heldout.jsonl"
    assert len(texts) == len(set(texts)) == 5


def test_a_change_is_of_the_perplexity():
    plain = {"nll": [10.0, 10.0], "tokens": [5, 5], "bytes": 9, "seconds": 0.0, "peak_bytes": 0}
    told = against({**plain, "nll": [10.5, 10.5], "peak_bytes": 2_000_000}, plain)
    assert told["perplexity"] == pytest.approx(8.1662, abs=1e-4)
    assert told["change"] == pytest.approx(0.10517, abs=1e-5)
    assert told["peak_mb"] == 2


def test_a_model_that_is_not_there_is_one_line(capsys):
    assert main(["--model", "nobody"]) == 2
    assert "hint: make fetch MODEL=nobody" in capsys.readouterr().err


@pytest.fixture
def untried(monkeypatch):
    """Nothing is to be measured."""

    def sample(*_):
        raise AssertionError("a recipe was measured")

    monkeypatch.setattr(measure_quantize, "sample", sample)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"{", "line 1: not JSON"),
        (b"[]", "line 1: expected a JSON object, got list"),
        (b"{}", "line 1: expected an object with a text"),
        (b'{"text": 5}', "line 1: expected an object with a text"),
        (b"\xff", "not UTF-8"),
        (b"\n", "no text in it"),
    ],
)
def test_texts_that_are_none_are_a_line_that_names_the_file(untried, tmp_path, capsys, raw, said):
    path = tmp_path / "held.jsonl"
    path.write_bytes(raw)
    assert main(["--heldout", str(path), "--record", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"--heldout: {path}: ")
    assert said in line


@pytest.mark.parametrize(("name", "said"), [("none.jsonl", "No such file"), ("", "Is a directory")])
def test_texts_that_cannot_be_read_are_a_line(untried, tmp_path, capsys, name, said):
    path = tmp_path / name
    assert main(["--heldout", str(path), "--record", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"--heldout: {path}: {said}")


def test_where_no_record_can_lie_is_told_before_anything_is_measured(untried, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--texts", "1", "--record", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err.startswith("not measured: ")


def test_a_command_that_failed_tells_its_last_line_first():
    error = subprocess.CalledProcessError(1, ["a", "b"], stderr="Traceback\n  here\nBad: 5\n")
    assert measure_quantize.told_of(error) == "Bad: 5\nof: a b"
    silent = subprocess.CalledProcessError(137, ["a"], stderr="")
    assert measure_quantize.told_of(silent) == "exit status 137\nof: a"


def test_a_command_is_told_by_its_peak_and_ends_as_it_does(capfd):
    code = "import sys; print('no'); print('bad', file=sys.stderr); b = bytes(50_000_000); {}"
    for more, status in (("", 0), ("sys.exit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)):
        assert measured_child.main([sys.executable, "-c", code.format(more)]) == status
        said = capfd.readouterr()
        assert json.loads(said.out) > 50_000_000
        assert said.err == "bad\n"
    assert measured_child.main(["/nosuch"]) == 127
    assert capfd.readouterr().err == "/nosuch: No such file or directory\n"


def test_what_was_interrupted_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    """The third recipe is interrupted; taken up, the first two are not made again."""
    made = []

    def sample(one, model, texts, parsed):
        made.append(one.name)
        if made.count("awq mlp g32") == 1 and one.name.startswith("awq"):
            raise KeyboardInterrupt
        rest = {"bytes": 1, "seconds": 0.0, "peak_bytes": 0}
        return {"recipe": one.name, "by": one.by, **rest, "nll": [9.0], "tokens": [4]}

    monkeypatch.delenv("PREHEAT_LLMCOMPRESSOR", raising=False)
    monkeypatch.setattr(measure_quantize, "sample", sample)
    monkeypatch.setattr(
        measure_quantize,
        "Kept",
        lambda name, fresh: Kept(name, fresh=fresh, cache=tmp_path / "kept"),
    )
    words = ["--texts", "1", "--record", str(tmp_path), "--json"]
    with pytest.raises(SystemExit, match="130"):
        main(words)
    assert main([*words, "--take-up"]) == 0
    assert made == ["bf16", "rtn mlp g32", "awq mlp g32", "awq mlp g32"]
    assert list((tmp_path / "kept").iterdir()) == []
    assert list(json.loads(capsys.readouterr().out)) == ["bf16", "rtn mlp g32", "awq mlp g32"]


TOLD_TO_END = """
import sys
from scripts import measure_quantize
from scripts.served import stoppable

with stoppable():
    measure_quantize.run(["-c", {!r}], 1)
"""


def test_sigterm_ends_the_command_below_the_child(tmp_path):
    there = tmp_path / "pid"
    below = f"import os, time; open({str(there)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = TOLD_TO_END.format(below)
    with subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY) as command:
        until = time.monotonic() + 30
        while not (there.is_file() and there.read_text()) and time.monotonic() < until:
            time.sleep(0.02)
        command.send_signal(signal.SIGTERM)
        assert command.wait(30) == 143
    state = Path(f"/proc/{there.read_text()}/stat")
    while state.exists() and state.read_text().split()[2] != "Z" and time.monotonic() < until:
        time.sleep(0.02)
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_samples_of_other_stacks_are_not_taken_up(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text("{}")
    parsed = parser().parse_args([])
    monkeypatch.delenv("PREHEAT_LLMCOMPRESSOR", raising=False)
    names = [measure_quantize.depends_on(tmp_path, ["a"], parsed)]
    monkeypatch.setattr(measure_quantize, "versions", lambda: {"torch": "2.14.0"})
    names.append(measure_quantize.depends_on(tmp_path, ["a"], parsed))
    monkeypatch.setenv("PREHEAT_LLMCOMPRESSOR", str(tmp_path / "bin" / "python"))
    (tmp_path / "lib/python3.11/site-packages/llmcompressor-0.9.dist-info").mkdir(parents=True)
    names.append(measure_quantize.depends_on(tmp_path, ["a"], parsed))
    (tmp_path / "reading.py").write_text("other")
    monkeypatch.setattr(measure_quantize, "READER", tmp_path / "reading.py")
    names.append(measure_quantize.depends_on(tmp_path, ["a"], parsed))
    (tmp_path / "convert.py").write_text("other")
    monkeypatch.setattr(measure_quantize, "MAKERS", (tmp_path,))
    names.append(measure_quantize.depends_on(tmp_path, ["a"], parsed))
    assert len(set(names)) == 5


@pytest.mark.torch
def test_a_record_of_the_tiny_model(tmp_path, monkeypatch, capsys):
    one = Wanted("rtn mlp g32", ("--scheme", "rtn-w4a16"))
    monkeypatch.setattr(measure_quantize, "wanted", lambda _: [Wanted("bf16"), one])
    monkeypatch.setattr(measure_quantize, "read", lambda folder, texts, threads: ([9.0], [4]))
    assert main(["--texts", "1", "--record", str(tmp_path), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["rtn mlp g32"]["bytes"] < figures["bf16"]["bytes"]
    assert figures["rtn mlp g32"]["peak_mb"] > 20
    record = json.loads(next(tmp_path.glob("quantize_*.json")).read_bytes())
    assert [row["recipe"] for row in record["samples"]] == ["bf16", "rtn mlp g32"]
