"""The command that compares a variant with itself less its drafts, with no engine started."""

import pytest

from scripts import eval_parity

ASKED = ["seq8-best", "--model", "tiny", "--target", "cpu"]


@pytest.fixture(autouse=True)
def no_engine(monkeypatch):
    """One that would be started is a fault."""

    def started(*_, **__):
        raise AssertionError("an engine was started")

    monkeypatch.setattr(eval_parity, "served", started)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seq9"], "no variant 'seq9'"),
        (["seq8-best", "--model", "nosuch"], "no model 'nosuch'"),
        (["seq8-best", "--target", "nosuch"], "no target 'nosuch'"),
        ([*ASKED, "--prompts", "/nosuch"], "--prompts: /nosuch: No such file or directory"),
        (["seq8", *ASKED[1:]], "variant seq8 drafts nothing"),
    ],
)
def test_what_is_not_there_is_one_line_and_usage(capsys, words, said):
    assert eval_parity.main([*words, "--no-record"]) == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith(f"eval_parity: {said}")
    assert all(line.startswith("hint: ") for line in rest)


def test_a_long_line_is_not_folded(capsys, tmp_path):
    path = tmp_path / ("a" * 120) / "prompts.jsonl"
    assert eval_parity.main([*ASKED, "--prompts", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(": No such file or directory")


def test_a_file_without_a_prompt_is_named_once(capsys, tmp_path):
    empty = tmp_path / "none.jsonl"
    empty.write_text("")
    assert eval_parity.main([*ASKED, "--prompts", str(empty)]) == 2
    said = capsys.readouterr().err
    assert "no prompt in it" in said
    assert said.count(str(empty)) == 1


@pytest.mark.parametrize(
    "words",
    [
        *(["--limit", bad] for bad in ("-1", "0")),
        *(["--max-tokens", bad] for bad in ("-1", "0")),
        *(["--soak-seconds", bad] for bad in ("nan", "0", "inf", "-1")),
        *(["--soak-k", bad] for bad in ("8", "x", "")),
    ],
)
def test_numbers_that_mean_nothing_are_usage(capsys, words):
    with pytest.raises(SystemExit) as ended:
        eval_parity.main([*ASKED, *words])
    assert ended.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_a_folder_that_takes_no_record_is_told_before_an_engine_starts(
    capsys, monkeypatch, tmp_path
):
    (tmp_path / "experiments").write_text("a file")
    monkeypatch.setattr(eval_parity, "folder_of", lambda name: tmp_path / "experiments" / name)
    assert eval_parity.main(ASKED) == 1
    assert "eval_parity: " in capsys.readouterr().err
