import hashlib
import json

import pytest

from scripts import build_calibration_corpus as corpus

LINES = (corpus.FOLDER / "corpus.jsonl").read_bytes()
TOLD = json.loads((corpus.FOLDER / "corpus.json").read_bytes())


def test_the_corpus_is_the_one_described():
    assert hashlib.sha256(LINES).hexdigest() == TOLD["sha256"]
    assert len(LINES) == TOLD["bytes"] < corpus.MOST
    rows = [json.loads(row) for row in LINES.decode().rstrip("\n").split("\n")]
    assert len(rows) == TOLD["texts"]
    assert all(row.keys() == {"source", "text"} for row in rows)
    counts = {name: one["texts"] for name, one in TOLD["sources"].items()}
    assert counts == {name: sum(row["source"] == name for row in rows) for name in counts}
    assert all(one["licence"] for one in TOLD["sources"].values())


@pytest.mark.parametrize(
    "path", corpus.evaluation_files(corpus.DATASETS), ids=lambda path: path.name
)
def test_nothing_that_is_evaluated_shares_thirteen_words(path):
    seen = set()
    for text in corpus.texts(path.read_text(encoding="utf-8")):
        seen |= corpus.runs(text)
    rows = LINES.decode().rstrip("\n").split("\n")
    shared = [
        n
        for n, row in enumerate(rows, 1)
        if not seen.isdisjoint(corpus.runs(json.loads(row)["text"]))
    ]
    assert shared == [], "python -m scripts.build_calibration_corpus"


def test_data_sets_were_looked_at():
    if not corpus.DATASETS.is_dir():
        pytest.skip(f"{corpus.DATASETS} is not there: make datasets")
    fetched = {path.name for path in corpus.DATASETS.glob("*.jsonl")}
    assert fetched <= set(TOLD["overlap"]["looked_at"])


def test_a_run_of_thirteen_words_is_seen_whatever_stands_between():
    words = "one two three four five six seven eight nine ten eleven twelve thirteen"
    assert len(corpus.runs(words)) == 1
    assert corpus.runs(words) == corpus.runs(words.upper().replace(" ", ",\n"))
    assert corpus.runs("one two three") == set()
    seen = corpus.runs(f"before {words} after")
    assert corpus.overlaps(corpus.Passage("kjv", "a", f"other {words}."), seen)
    assert not corpus.overlaps(corpus.Passage("kjv", "a", words.replace("six", "6")), seen)


def test_passages_are_cut_between_paragraphs_and_none_is_too_short():
    paragraph = "word " * 100 + "\n"
    cut = list(corpus.cut("\n".join([paragraph] * 12)))
    assert len(cut) > 1
    assert all(corpus.PASSAGE // 6 <= len(one) <= corpus.PASSAGE + 2 for one in cut)
    assert list(corpus.cut("short")) == []


def test_texts_are_found_however_deep_and_whatever_python_takes_for_a_line():
    row = {"a": ["x\u2028y", {"b": "z"}], "c": 3}
    assert list(corpus.texts(json.dumps(row, ensure_ascii=False) + "\n")) == ["x\u2028y", "z"]


def test_each_source_gets_its_share_and_a_text_stands_once():
    texts = ["a" * 30_000, "b" * 30_000, "c" * 30_000, "a" * 30_000]
    offered = [corpus.Passage("kjv", f"{n}", text) for n, text in enumerate(texts)]
    assert len(corpus.choose(offered)) == 1
    assert corpus.choose(offered) == corpus.choose(offered[::-1])


def test_check_says_what_is_wrong(tmp_path, capsys):
    assert corpus.main(["--check", "--out", str(tmp_path)]) == 1
    assert "no corpus there" in capsys.readouterr().err
    (tmp_path / "corpus.jsonl").write_text("{}\n")
    (tmp_path / "corpus.json").write_text('{"sha256": "0"}')
    assert corpus.main(["--check", "--out", str(tmp_path)]) == 1
    assert "expected sha256 0, got" in capsys.readouterr().err
    (tmp_path / "corpus.json").write_text("[]")
    assert corpus.main(["--check", "--out", str(tmp_path)]) == 1
    assert "tells of no corpus" in capsys.readouterr().err


def test_where_nothing_can_be_written_is_told_before_anything_is_fetched(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert corpus.main(["--out", str(tmp_path / "file"), "--work", str(tmp_path / "work")]) == 1
    assert "file" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()
