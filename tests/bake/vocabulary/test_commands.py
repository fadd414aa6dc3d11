"""The two commands end to end, on a small vocabulary and a few texts."""

import json

import pytest

pytest.importorskip("matplotlib", reason="only what measures installs it")

from bake.vocabulary import counts, prune
from scripts import analyze_vocab, measure_vocab
from scripts.vocab.models import Corpus, Model
from scripts.vocab.texts import Text

from .made import TEXT, checkpoint, library

SIZE = 700
SHARES = {"english": 0.5, "code": 0.2, "other languages": 0.3}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A model that the commands know, and texts as of packages."""
    folder = checkpoint(tmp_path / "model", library(SIZE))
    model = Model("small", 448, SHARES, folder, (320, 448, 640))
    lines = [line for line in TEXT.splitlines() if line]
    made = [
        Text(group, source, f"{group}{at}", line)
        for group, source in (("en", "a"), ("de", "b"), ("code:go", "c"), ("de", "udhr"))
        for at, line in enumerate(lines * 8)
    ]
    corpus = Corpus("a few lines", made, {"packages": {}})
    for module in (analyze_vocab, measure_vocab):
        monkeypatch.setattr(module, "MODELS", {"small": model})
        monkeypatch.setattr(module, "corpus_of", lambda *_: corpus)
    return model


def analyzed(out, *words):
    return analyze_vocab.main(["small", "--out", str(out), *words])


def test_counts_are_written_that_prune(small, tmp_path, capsys):
    assert analyzed(tmp_path / "out", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert {point["origin"] for point in told["curve"]} == {"same sources", "other sources"}
    shares = [p["kinds"]["english"] for p in told["curve"] if p["origin"] == "same sources"]
    assert shares == sorted(shares)
    path = tmp_path / "out" / "small.json"
    read = counts.read(path)
    assert read.corpus["groups"]["en"]["share"] == 0.5
    assert read.always
    report = prune(small.folder, tmp_path / "pruned", path, 448)
    assert report.size == 448


def test_the_same_texts_give_the_same_bytes_and_the_picture_is_of_the_counts(small, tmp_path):
    for name in ("a", "b"):
        assert analyzed(tmp_path / name) == 0
    for name in ("small.json", "small.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    before = (tmp_path / "a" / "small.svg").read_bytes()
    (tmp_path / "a" / "small.svg").unlink()
    assert analyzed(tmp_path / "a", "--draw") == 0
    assert (tmp_path / "a" / "small.svg").read_bytes() == before


def test_coverage_is_recorded_by_group(small, tmp_path):
    assert analyzed(tmp_path) == 0
    words = ["coverage", "small", "--counts", str(tmp_path / "small.json")]
    assert measure_vocab.main([*words, "--out", str(tmp_path / "records")]) == 0
    (path,) = (tmp_path / "records").glob("vocab_coverage_*.json")
    record = json.loads(path.read_text())
    assert record["summary"]["unreachable_after"] == 0
    assert record["summary"]["texts_that_came_back_otherwise"] == 0
    rows = {(row["origin"], row["group"]): row for row in record["samples"]}
    assert ("other sources", "de") in rows
    for row in rows.values():
        assert row["tokens_after"] >= row["tokens_before"]
        assert 0 < row["kept_share"] <= 1


def test_without_counts_it_says_so_in_a_line(small, tmp_path, capsys):
    words = ["coverage", "small", "--counts", str(tmp_path / "none.json")]
    assert measure_vocab.main(words) == 1
    said = capsys.readouterr().err
    assert "none.json" in said
    assert "Traceback" not in said
    assert analyzed(tmp_path, "--draw") == 1


def test_a_command_that_was_called_is_told_as_it_was_called(small, tmp_path, monkeypatch):
    assert analyzed(tmp_path) == 0
    monkeypatch.setattr("sys.argv", ["pytest", "words"])
    words = ["coverage", "small", "--counts", str(tmp_path / "small.json"), "--out", str(tmp_path)]
    assert measure_vocab.main(words) == 0
    (path,) = tmp_path.glob("vocab_coverage_*.json")
    told = json.loads(path.read_text())["command"]
    assert told == ["python", "-m", "scripts.measure_vocab", *words]


def test_where_no_record_can_lie_is_told_before_anything_is_measured(
    small, tmp_path, monkeypatch, capsys
):
    def measured(*_):
        raise AssertionError("it was measured")

    monkeypatch.setattr(measure_vocab, "tokenizer_of", measured)
    (tmp_path / "file").write_text("")
    assert measure_vocab.main(["coverage", "small", "--out", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err.startswith("not measured: ")


@pytest.mark.parametrize(
    "words",
    [
        ["coverage", "small", "--size", "-1"],
        ["quality", "small", "--texts", "-1"],
        ["coverage", "small", "--rounds", "2"],
        ["coverage", "small", "--busy"],
    ],
)
def test_what_means_nothing_is_usage(small, capsys, words):
    with pytest.raises(SystemExit, match="2"):
        measure_vocab.main(words)
    assert words[2] in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["coverage", "tables", "quality"])
def test_each_verb_has_examples_and_says_what_it_measures(verb, capsys):
    with pytest.raises(SystemExit, match="0"):
        measure_vocab.main([verb, "--help"])
    said = capsys.readouterr().out
    assert "examples:" in said
    assert "Measures: " in said


@pytest.mark.parametrize("command", [analyze_vocab, measure_vocab])
def test_help_has_examples_and_usage_is_2(command, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    assert "examples:" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        command.main(["nonsense"])
    assert ended.value.code == 2
