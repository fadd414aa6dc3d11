"""The whole command with nobody served: what servers would have said is made up here."""

import json
import math

import pytest

from scripts import eval_quality
from scripts.quality.divergence import Position
from scripts.quality.harness import Asked, Scored
from scripts.quality.modes import Text
from scripts.quality.session import Answers
from scripts.served import NotServed
from serve.settings import REPOSITORY


def told(text, share):
    """One position a byte, ``share`` on what stands there; as from a server, the first has none."""
    top = {1: math.log(share), 2: math.log(1 - share)}
    return [Position(1, start, 1, 1, top) for start in range(1, len(text.encode()))]


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Every call, in order. `seq8` says what the reference says, `awq` less surely; `seq8-best`
    does not start.
    """
    calls = []

    def ask(settings, questions, work, environ):
        name = settings["VARIANT"]
        calls.append((name, settings["MODEL"], questions.drawn is None, len(questions.tasks)))
        if name == "seq8-best":
            raise NotServed("not ready (exit status 1)")
        share = 0.5000001 if name == "awq" else 0.9
        own = [Text(one.source, one.text, 10) for one in questions.texts]
        drawn = own if questions.drawn is None else questions.drawn
        return Answers(
            {"variant": name},
            [told(one.text, share) for one in questions.texts],
            [(one, told(one.text, share)) for one in drawn],
            {one.task: Scored([1] * len(one.places)) for one in questions.tasks},
        )

    monkeypatch.setattr(eval_quality, "ask", ask)
    experiments = tmp_path / "experiments"
    for name in ("awq", "seq8", "seq8-best", "baseline"):
        (experiments / name).mkdir(parents=True)
        shared = REPOSITORY / "experiments" / name / "config.env"
        (experiments / name / "config.env").write_bytes(shared.read_bytes())
    for name in ("targets", "models"):
        (experiments / name).symlink_to(REPOSITORY / "experiments" / name)
    (tmp_path / "weights").symlink_to(REPOSITORY / "weights")
    monkeypatch.setattr(eval_quality, "EXPERIMENTS", experiments)
    monkeypatch.setattr(eval_quality, "folder_of", lambda name: experiments / name / "measurements")
    monkeypatch.setattr(eval_quality, "REPOSITORY", tmp_path)
    return calls


ARGUMENTS = ["--model", "tiny", "--target", "cpu", "--tasks", "none"]


def test_the_reference_is_asked_twice_and_draws_once(asked, capsys):
    assert eval_quality.main(["seq8", *ARGUMENTS, "--no-record", "--json"]) == 0
    assert asked == [
        ("baseline", "tiny", True, 0),
        ("baseline", "tiny", False, 0),
        ("seq8", "tiny", False, 0),
    ]
    (summary,) = json.loads(capsys.readouterr().out).values()
    assert (summary["verdict"], summary["judged_on"]) == ("parity", "texts alone")
    assert summary["noise"]["kl"]["point"] == 0


def test_a_variant_that_does_not_start_costs_the_others_nothing(asked, capsys, tmp_path):
    assert eval_quality.main(["seq8-best", "awq", *ARGUMENTS]) == 1
    said = capsys.readouterr()
    assert "seq8-best not measured: not ready" in said.err
    assert "awq: not at parity, on texts alone" in said.out
    (path,) = tmp_path.glob("experiments/*/measurements/quality_*.json")
    record = json.loads(path.read_text())
    assert path.parent.parent.name == "awq"
    assert record["variant"] == {"variant": "awq"}
    assert record["parameters"]["reference"] == {"variant": "baseline"}
    full = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert record["summary"]["texts"]["kl"]["point"] == pytest.approx(full, rel=1e-4)


def test_another_model_can_be_held_against_the_reference(asked):
    arguments = ["baseline", "--model", str(REPOSITORY / "weights" / "tiny"), "--no-record"]
    assert eval_quality.main([*arguments, "--reference-model", "tiny", "--tasks", "none"]) == 0
    assert [model for _, model, *_ in asked] == ["tiny", "tiny", arguments[2]]


@pytest.mark.parametrize("words", [["seq8,awq"], ["seq8", "awq"], ["seq8,", "awq,seq8"]])
def test_several_variants_are_told_with_commas_or_as_words(asked, words):
    assert eval_quality.main([*words, *ARGUMENTS, "--no-record"]) == 0
    assert [name for name, *_ in asked] == ["baseline", "baseline", "seq8", "awq"]


@pytest.mark.parametrize(("more", "again"), [([], 1), (["--no-task-noise"], 0)])
def test_the_noise_of_tasks_is_measured_on_the_restarted_reference(
    asked, monkeypatch, capsys, more, again
):
    tasks = [Asked("gsm8k", 1319, [0, 1, 2], 64)]
    monkeypatch.setattr(eval_quality.harness, "plan", lambda *_, **__: tasks)
    assert eval_quality.main(["seq8", *ARGUMENTS, *more, "--no-record", "--json"]) == 0
    assert [count for *_, count in asked] == [1, again, 1]
    (summary,) = json.loads(capsys.readouterr().out).values()
    noise = summary["noise"]["tasks"]
    assert [one["changed"] for one in noise.values()] == [0] * again


@pytest.mark.parametrize(("task", "said"), [("humaneval", True), ("gsm8k", False)])
def test_a_record_says_what_held_the_code_that_was_run(asked, monkeypatch, tmp_path, task, said):
    monkeypatch.setattr(eval_quality.harness, "plan", lambda *_, **__: [Asked(task, 9, [0], 64)])
    assert eval_quality.main(["seq8", *ARGUMENTS]) == 0
    (path,) = tmp_path.glob("experiments/*/measurements/quality_*.json")
    assert ("run_code" in json.loads(path.read_text())["parameters"]) == said


def test_a_bug_after_hours_of_scoring_keeps_its_place(asked, monkeypatch):
    def odd(*_):
        raise ValueError("cannot convert float NaN to integer")

    monkeypatch.setattr(eval_quality.report, "summary", odd)
    with pytest.raises(ValueError, match="NaN"):
        eval_quality.main(["seq8", *ARGUMENTS, "--no-record"])


def test_where_no_record_can_lie_is_told_before_anything_is_asked(asked, tmp_path, capsys):
    (tmp_path / "experiments" / "awq" / "measurements").write_text("a file")
    assert eval_quality.main(["seq8,awq", *ARGUMENTS]) == 1
    assert asked == []
    assert "not measured: " in capsys.readouterr().err


def test_a_command_that_was_called_is_told_as_it_was_called(asked, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pytest", "words"])
    assert eval_quality.main(["seq8", *ARGUMENTS]) == 0
    (path,) = tmp_path.glob("experiments/*/measurements/quality_*.json")
    told = json.loads(path.read_text())["command"]
    assert told == ["python", "-m", "scripts.eval_quality", "seq8", *ARGUMENTS]


@pytest.mark.parametrize("bad", ["0", "-1", "x"])
def test_counts_are_refused_in_the_words_of_all_counts(bad, capsys):
    with pytest.raises(SystemExit, match="2"):
        eval_quality.main(["seq8", "--concurrency", bad])
    assert f"expected a whole number above 0, got '{bad}'" in capsys.readouterr().err
