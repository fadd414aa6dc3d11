import json
import os
import socket
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from scripts import eval_quality
from scripts.quality import harness, modes
from scripts.quality.harness import Asked, NotEvaluated, Scored, Skipped
from scripts.quality.modes import MODES, evenly, read_texts, spread
from scripts.quality.run_code import can_enclose, passes
from scripts.quality.sources import DATASETS
from scripts.quality.tasks import scores


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("The answer is C", "C"),
        ("The answer is (C).", "C"),
        ("**Answer: B**", "B"),
        ("the answer is a", "A"),
        ("the answer is (b), as shown", "B"),
        ("**Answer:** C", "C"),
        ("**Answer**: C", "C"),
        ("**The answer is:** **C**", "C"),
        (r"The answer is $\boxed{C}$.", "C"),
        (r"So: \boxed{\text{D}}", "D"),
        ("The correct option is C", "C"),
        ("The correct answer is option C.", "C"),
        ('My answer is "C".', "C"),
        ("Answer (D)", "D"),
        ("The answer is\n\nB", "B"),
        ("The answer is C. I'd be glad to answer a follow-up", "C"),
        ("The answer is a bit subtle: C", ""),
        ("Answer: I think so", ""),
        ("The answer is I", "I"),
        ("The answer is not A", ""),
        ("The answer is C. Option B is wrong, as is choice A.", "C"),
        ("Option B is wrong, so the answer is C. Any choice that I made", "C"),
        ("Not A. First I thought the answer is B, but the answer is D.", "D"),
        ("C", "C"),
        ("C. Because …", "C"),
        ("(B)", "B"),
        ("<think>the answer is A</think>\n\nThe answer is B", "B"),
        ("A good choice is hard to find", ""),
        ("I do not know", ""),
        ("", ""),
    ],
)
def test_the_letter_that_an_answer_gives(answer, letter):
    assert scores.letter_of(answer) == letter


def test_a_letter_that_the_item_does_not_have_is_none():
    assert scores.letter_of("The answer is F", 4) == ""
    assert scores.letter_of("The answer is D", 4) == "D"
    assert scores.letter_of("F", 4) == ""
    item = {"answer": "C", "choices": list("wxyz")}
    assert scores.letter(item, ["The answer is F"]) == {"score": 0, "unread": 1}


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("9 * 2 = 18, so she makes $1,800 a day.", "1800"),
        ("**18.00**", "18"),
        ("-3", "-3"),
        ("0.50 dollars", "0.5"),
        ("that is 10-5", "5"),
        ("from (2)-7", "7"),
        ("x = -4", "-4"),
        ("<think>7</think> It is 8.", "8"),
        ("none", ""),
    ],
)
def test_the_last_number_of_an_answer(answer, number):
    assert scores.number_of(answer) == number


def test_scores_compare_with_what_is_right():
    item = {"answer": "C", "choices": list("wxyz")}
    assert scores.letter(item, ["The answer is C"]) == {"score": 1, "unread": 0}
    assert scores.letter(item, ["The answer is D"]) == {"score": 0, "unread": 0}
    assert scores.number({"answer": "1,800"}, ["so 1800."]) == {"score": 1, "unread": 0}
    assert scores.number({"answer": "1,800"}, ["many"]) == {"score": 0, "unread": 1}


@given(st.text())
def test_no_answer_breaks_a_scorer(answer):
    assert scores.letter_of(answer) in ("", *"ABCDEFGHIJ")
    scores.number_of(answer)
    scores.code_of(answer)


def test_code_is_taken_out_of_the_last_block():
    assert scores.code_of("Sure:\n```python\nx = 1\n```\nor\n```\nx = 2\n```") == "x = 2\n"
    assert scores.code_of("```python\nx = 3") == "x = 3"
    assert scores.code_of("x = 4") == "x = 4"


HUMAN = {
    "prompt": 'def inc(x):\n    """One more."""\n',
    "test": "def check(candidate):\n    assert candidate(1) == 2\n",
    "entry_point": "inc",
}


def test_code_runs_only_when_a_person_said_so(monkeypatch):
    monkeypatch.delenv(scores.RUN_CODE, raising=False)
    with pytest.raises(PermissionError, match="--run-code"):
        scores.code(HUMAN, ["```python\ndef inc(x):\n    return x + 1\n```"])


def test_code_that_passes_the_tests_scores(monkeypatch):
    monkeypatch.setenv(scores.RUN_CODE, "1")
    right = "```python\ndef inc(x):\n    return x + 1\n```"
    assert scores.code(HUMAN, [right]) == {"score": 1}
    assert scores.code(HUMAN, [right.replace("+ 1", "+ 2")]) == {"score": 0}
    assert scores.code(HUMAN, ["I would rather not."]) == {"score": 0}


@pytest.mark.parametrize(
    "ending",
    [
        "import sys\nsys.exit(0)",
        "raise SystemExit",
        "import os\nos._exit(0)",
        "import unittest\nunittest.main(argv=['x'])",
    ],
)
def test_an_answer_that_ends_before_its_tests_has_passed_nothing(monkeypatch, ending):
    monkeypatch.setenv(scores.RUN_CODE, "1")
    assert scores.code(HUMAN, [f"```python\ndef inc(x):\n    return 0\n{ending}\n```"]) == {
        "score": 0
    }


def test_what_an_answer_does_when_it_is_started_itself_is_not_run(monkeypatch):
    monkeypatch.setenv(scores.RUN_CODE, "1")
    right = "def inc(x):\n    return x + 1\nif __name__ == '__main__':\n    raise SystemExit(1)\n"
    assert scores.code(HUMAN, [f"```python\n{right}```"]) == {"score": 1}


@pytest.fixture(params=[True, False], ids=["enclosed", "limits alone"])
def enclosed(request):
    if request.param and not can_enclose():
        pytest.skip(
            "this kernel lets this user make no namespaces, or unshare or setpriv is absent"
        )
    return request.param


def test_a_program_has_limits(enclosed, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    assert passes("print('well')", enclosed=enclosed)
    assert not passes("while True: pass", seconds=0.5, enclosed=enclosed)
    assert not passes("x = bytearray(2 ** 31)", enclosed=enclosed)
    assert not passes("open('big', 'wb').write(bytes(2 ** 22))", enclosed=enclosed)
    assert not passes("x = [open('/dev/null') for _ in range(100)]", enclosed=enclosed)
    assert not passes("import os; assert 'SECRET' in os.environ", enclosed=enclosed)


def test_what_a_program_started_ends_with_it(tmp_path):
    # A child that would outlive it.
    mark = tmp_path / "mark"
    # Whether it may fork at all depends on how many processes this user has.
    passes(
        f"import os, time\nif not os.fork():\n    time.sleep(0.3)\n    open({str(mark)!r}, 'w')\n",
        enclosed=False,
    )
    time.sleep(0.6)
    assert not mark.exists()


def test_an_enclosed_program_harms_nobodys_files_and_reaches_nobody(tmp_path):
    if not can_enclose():
        pytest.skip(
            "this kernel lets this user make no namespaces, or unshare or setpriv is absent"
        )
    ours = tmp_path / "ours"
    ours.write_text("kept")
    assert passes(f"assert open({str(ours)!r}).read() == 'kept'")
    assert not passes(f"open({str(ours)!r}, 'w')")
    assert not passes(f"import os; os.unlink({str(ours)!r})")
    assert ours.read_text() == "kept"
    assert passes("open('own', 'w').write('x')")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        reach = f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)"
        assert passes(reach, enclosed=False)
        assert not passes(reach)
    assert not passes(f"import os; os.kill({os.getpid()}, 0)")


def test_a_subset_is_spread_evenly_and_the_same():
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, 3) == [0, 1, 2]
    assert evenly("abcdef", 3) == ["a", "c", "e"]
    assert evenly("abc", None) == evenly("abc", 9) == ["a", "b", "c"]


@given(of=st.integers(1, 20_000), name=st.sampled_from(list(MODES)))
def test_no_mode_asks_an_item_twice_or_one_that_is_not_there(of, name):
    places = spread(of, MODES[name].count(of))
    assert len(set(places)) == len(places) >= 1
    assert places[-1] < of


def test_a_tenth_is_never_too_few_to_decide():
    assert MODES["10%"].count(198) == 20
    assert MODES["10%"].count(541) == 54
    assert MODES["full"].count(541) == 541


def test_texts_are_cut_and_the_short_left_out(tmp_path):
    path = tmp_path / "texts.jsonl"
    lines = [{"source": "a", "text": "x" * 3000}, {"text": "short"}, {"text": "y\u2028" * 50}]
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    told = read_texts(path)
    assert [len(text.text) for text in told] == [modes.CHARACTERS, 100]


def test_a_line_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "a"}\n{"prompt": "b"}\n')
    with pytest.raises(ValueError, match="line 2: expected an object with a text"):
        read_texts(path)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "no text of 80 characters or more"),
        (b'{"text": "short"}\n', "no text of 80 characters or more"),
        (b'{"text": 5}', "line 1: expected an object with a text"),
        (b"[]", "line 1: expected a JSON object, got list"),
        (b"{", "line 1: not JSON"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_texts_that_are_none_are_usage_before_anything_starts(tmp_path, capsys, raw, said):
    path = tmp_path / "texts.jsonl"
    path.write_bytes(raw)
    words = ["seq8", "--model", "tiny", "--target", "cpu", "--texts", str(path)]
    assert eval_quality.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"eval_quality: {path}: {said}")


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A cache in which GSM8K is as pinned, IFEval damaged, and all else absent."""
    folder = tmp_path / "datasets"
    folder.mkdir()
    (folder / "gsm8k.jsonl").write_bytes(b"{}\n")
    (folder / "ifeval.jsonl").write_bytes(b"damaged\n")
    from dataclasses import replace
    from hashlib import sha256

    pinned = replace(DATASETS["gsm8k"], sha256=sha256(b"{}\n").hexdigest())
    monkeypatch.setitem(DATASETS, "gsm8k", pinned)
    monkeypatch.setattr(harness, "CACHE", tmp_path)
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda _name: True)
    return {"HOME": str(tmp_path)}


def test_what_cannot_be_asked_is_skipped_with_its_reason(data):
    told = harness.plan(harness.TASKS, MODES["smoke"], data, run_code=False)
    assert [one.task for one in told if isinstance(one, Asked)] == ["gsm8k"]
    why = {one.task: one.why for one in told if isinstance(one, Skipped)}
    assert "is not what was pinned: make datasets" in why["ifeval"]
    assert why["mmlu"].endswith("mmlu.jsonl is not there: make datasets")
    assert why["humaneval"] == "it runs the model's code: say --run-code"
    assert why["mmlu_pro"].endswith(
        ".cache/huggingface/hub/datasets--TIGER-Lab--MMLU-Pro is not there"
    )


def test_without_the_harness_every_task_says_what_to_install(data, monkeypatch):
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda _name: None)
    (told,) = harness.plan(["gsm8k"], MODES["smoke"], data, run_code=False)
    assert "pip install 'preheat[quality]'" in told.why


def test_the_longest_answer_is_the_modes_or_the_one_given(data):
    (asked,) = harness.plan(["gsm8k"], MODES["smoke"], data, run_code=False)
    assert (asked.answer_tokens, len(asked.places), asked.of) == (64, 4, 1319)
    (asked,) = harness.plan(["gsm8k"], MODES["smoke"], data, run_code=False, answer_tokens=9)
    assert asked.answer_tokens == 9


ASKED = Asked("gsm8k", 1319, [0, 329, 659], 64)


def test_the_harness_is_told_which_items_of_which_server():
    words = harness.command([ASKED], harness.Endpoint("http://h:1", "m", 8), Path("/w"))
    assert json.loads(words[words.index("--samples") + 1]) == {"preheat_gsm8k": [0, 329, 659]}
    told = words[words.index("--model_args") + 1]
    assert "base_url=http://h:1/v1/chat/completions" in told
    assert "num_concurrent=8" in told


def test_the_harness_is_kept_offline_and_runs_no_code_unasked(tmp_path):
    told = harness.environment({"PATH": "/bin"}, tmp_path, run_code=False)
    assert (told["HF_HUB_OFFLINE"], told[scores.RUN_CODE], told["PATH"]) == ("1", "0", "/bin")
    english = Path(told["NLTK_DATA"]) / "tokenizers" / "punkt_tab" / "english"
    assert {path.name for path in english.iterdir()} == set(harness.PUNKT)


def test_samples_come_back_in_the_order_asked(tmp_path):
    path = tmp_path / "samples.jsonl"
    lines = [{"doc_id": 659, "score": 1}, {"doc_id": 0, "score": 0}, {"doc_id": 329, "score": 1}]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert harness.read(ASKED, [path]) == Scored([0, 1, 1])
    path.write_text("\n".join(json.dumps(line | {"unread": 1 - line["score"]}) for line in lines))
    assert harness.read(ASKED, [path]) == Scored([0, 1, 1], unread=1)
    path.write_text(json.dumps(lines[0]))
    with pytest.raises(NotEvaluated, match="asked 3 items, got 1 of 1"):
        harness.read(ASKED, [path])
    path.write_text("\n".join(map(json.dumps, [*lines, lines[0]])))
    with pytest.raises(NotEvaluated, match="asked 3 items, got 4 of 3"):
        harness.read(ASKED, [path])


def test_samples_of_mmlu_pro_are_not_taken_for_mmlus(tmp_path, monkeypatch):
    """The harness names files by task and date, and one task's name begins with another's."""
    made = tmp_path / "harness" / "m"
    made.mkdir(parents=True)
    tasks = [Asked(name, 3, [0, 1, 2], 64) for name in ("mmlu", harness.HUB)]
    for task, score in zip(tasks, (1, 0), strict=True):
        lines = (json.dumps({"doc_id": place, "score": score}) for place in task.places)
        file = made / f"samples_{harness.PREFIX}{task.task}_2026-11-21T22-00-00.123.jsonl"
        file.write_text("\n".join(lines))
    monkeypatch.setattr(harness, "command", lambda *_: ["true"])
    told = harness.scores(tasks, harness.Endpoint("http://h:1", "m", 8), tmp_path, {})
    assert told == {"mmlu": Scored([1, 1, 1]), harness.HUB: Scored([0, 0, 0])}


class Loader(yaml.SafeLoader):
    """Knows the harness's tag for a function beside the file."""


Loader.add_constructor("!function", lambda loader, node: str(node.value))


@pytest.mark.parametrize("task", harness.TASKS)
def test_every_task_has_a_file_whose_functions_and_data_exist(task):
    told = yaml.load((harness.FOLDER / f"{task}.yaml").read_text(), Loader)
    assert told["task"] == f"preheat_{task}"
    functions = [told["process_results"], told["doc_to_text"]]
    for name in (one for one in functions if one.startswith("scores.")):
        assert callable(getattr(scores, name.partition(".")[2]))
    if task != harness.HUB:
        assert told["dataset_kwargs"]["data_files"]["test"] == f".cache/datasets/{task}.jsonl"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["basline"], "did you mean baseline?"),
        (["seq8,basline"], "did you mean baseline?"),
        ([","], "no variant in ','"),
        (["seq8", "--model", "tiny", "--tasks", "ifval"], "no task 'ifval'"),
        (["seq8", "--model", "no-such"], "no model 'no-such'"),
        (["seq8", "--model", "tiny", "--texts", "/no/such"], "/no/such: no such file"),
        (["seq8", "--model", "tiny", "--texts", "/proc"], "/proc: Is a directory"),
        (
            ["seq8", "--model", "tiny", "--texts", "/proc/self/mem"],
            "/proc/self/mem: Input/output error",
        ),
        (["seq8", "--model", "/no/such"], "no folder /no/such"),
        (["seq8", "--model", "tiny", "--reference-model", "/no/such"], "no folder /no/such"),
        (["seq8", "--model", "docs"], "docs/config.json: cannot be read"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(arguments, said, capsys):
    assert eval_quality.main([*arguments, "--target", "cpu"]) == 2
    assert said in capsys.readouterr().err


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as ended:
        eval_quality.main(["--help"])
    assert ended.value.code == 0
    assert "examples:" in capsys.readouterr().out


def test_what_was_measured_makes_a_record_below_its_limit():
    from experiments.record import Record, now, this_machine
    from scripts.quality import report
    from scripts.quality.divergence import Sums
    from scripts.quality.modes import Text
    from scripts.quality.session import Answers

    texts = [Text("chat/tool", "x" * 100)] * 300
    one = Sums(123.456789, 123.556789, 456, 456, 1890, 456, 0.123456789, 0.1, 455, 12.3456789)
    both = report.Compared([one] * 300, [one] * 300)
    asked = Asked("mmlu", 14_042, list(range(14_042)), 1280)
    answers = (
        Answers({}, [], [], {"mmlu": Scored([0, 1] * 7021, unread=3)}),
        Answers({}, [], [], {"mmlu": Scored([1, 1] * 7021)}),
        Answers({}, [], [], {"mmlu": Scored([0, 1] * 7020 + [1, 1])}),
    )
    record = Record(
        kind="quality",
        made=now(),
        command=[],
        machine=this_machine(),
        variant={},
        parameters={},
        summary=report.summary(both, both, *answers),
        samples=report.samples(texts, both, both, [asked], answers),
    )
    assert record.summary["tasks"]["mmlu"]["difference"]["point"] == 0.5
    assert record.summary["tasks"]["mmlu"]["reference"]["unread"] == 3
    assert record.summary["noise"]["tasks"]["mmlu"]["changed"] == 1
    assert record.samples[-1]["again"].endswith("0111")
    assert record.summary["texts"]["perplexity_change"]["point"] == pytest.approx(
        0.1 / 456, rel=1e-3
    )
    assert record.samples[-1]["reference"].startswith("0101")
    assert len(record.model_dump_json(indent=1)) < 300_000
    assert "undecided" in eval_quality.table({"v": {**record.summary, "verdict": "undecided"}})
