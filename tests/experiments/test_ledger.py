"""Entries are read strictly, figures come from records, and pages are what they should be."""

import json
from pathlib import Path

import pytest

from experiments.ledger import BadEntry, block, main, page, read, stale
from serve.settings import REPOSITORY

RECORD = "experiments/measurements/speed_2026-01-02T030405Z.json"
VALUES = {"summary": {"here": {"median": 2.0, "min": 1.5, "max": 2.5}, "there": 8.0, "a/b": -0.25}}
ENTRY = f"""number = 1
date = 2026-01-02
title = "Hot water"
variants = ["seq8"]
target = "cpu"
claim = "c"
prediction = "4 times as fast"
method = "m"
came = "as predicted"
why = "It takes {{here}} only."
disposition = "kept"
retry = "r"

[[results]]
name = "here"
label = "here"
record = "{RECORD}"
path = "/summary/here/median"
low = "/summary/here/min"
high = "/summary/here/max"
format = ".1f"
unit = "s"

[[results]]
label = "there over here"
record = "{RECORD}"
path = "/summary/there"
over = "/summary/here/median"
format = ".1f"
unit = "×"

[[results]]
label = "change"
record = "{RECORD}"
path = "/summary/a~1b"
scale = 100
format = "+.0f"
unit = "%"
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("ledger", "measurements", "seq8"):
        (tmp_path / "experiments" / folder).mkdir(parents=True)
    (tmp_path / RECORD).write_text(json.dumps(VALUES))
    write(tmp_path, ENTRY)
    marked = "# seq8\n\n<!-- generated: ledger -->\n<!-- end -->\n\nmore\n"
    (tmp_path / "experiments/seq8/README.md").write_text(marked)
    return tmp_path


def write(root: Path, text: str, slug: str = "hot-water") -> None:
    (root / f"experiments/ledger/{slug}.toml").write_text(text)


def test_every_figure_is_drawn_from_its_record(root: Path) -> None:
    text = page(read(root))
    assert "| here | 2.0 s | 1.5 to 2.5 |" in text
    assert "| there over here | 4.0× |" in text
    assert "| change | −25 % |" in text
    assert "It takes 2.0 s only." in text
    assert "[Hot water](#hot-water)" in text


def test_another_record_gives_another_page(root: Path) -> None:
    main(["--root", str(root)])
    values = json.loads(json.dumps(VALUES))
    values["summary"]["here"]["median"] = 2.1
    (root / RECORD).write_text(json.dumps(values))
    assert set(stale(root)) == {root / "experiments/LEDGER.md", root / "experiments/seq8/README.md"}


def test_a_variant_has_its_own_figures_and_another_has_none(root: Path) -> None:
    ledger = read(root)
    assert "kept" in block(ledger, "seq8")
    assert "2.0 s" in block(ledger, "seq8")
    assert "Nothing" in block(ledger, "baseline")


def test_only_what_stands_between_the_marks_is_written(root: Path) -> None:
    assert main(["--root", str(root)]) == 0
    text = (root / "experiments/seq8/README.md").read_text()
    assert text.startswith("# seq8\n\n<!-- generated: ledger -->\n**")
    assert text.endswith("<!-- end -->\n\nmore\n")
    assert main(["--root", str(root), "--check"]) == 0


def test_a_page_that_was_edited_is_stale(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--root", str(root)])
    ledger = root / "experiments/LEDGER.md"
    ledger.write_text(ledger.read_text().replace("2.0 s", "1.0 s"))
    assert main(["--root", str(root), "--check"]) == 1
    assert capsys.readouterr().err == "experiments/LEDGER.md: stale; run `make fix`\n"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("retry =", "retyr =", "hot-water.toml: retry: Field required"),
        ('"kept"', '"maybe"', "hot-water.toml: disposition: Input should be 'kept'"),
        ("here/median", "here/mean", "no 'mean' at step 3 (there is: median, min, max)"),
        ('"/summary/there"', '"/summary/here"', "/summary/here is no number"),
        ("speed_2026", "speed_2027", "No such file"),
        ("{here}", "{hree}", "hot-water.toml: why: no result is named 'hree'"),
        ("{here}", "2.0 s", "hot-water.toml: why: the figure 2.0 s is typed"),
        ('claim = "c"', 'claim = "saves 12 %"', "claim: the figure 12 % is typed"),
        ('method = "m"', 'method = "a model of 1.06 GB"', "method: the figure 1.06 GB is typed"),
        ('retry = "r"', 'retry = "up to 4x faster"', "retry: the figure 4 x is typed"),
        ("Hot water", "3× hotter water", "title: the figure 3 × is typed"),
        ("2026-01-02\n", "yesterday\n", "hot-water.toml: "),
        ("low = ", "# low = ", "results.0: low and high go together"),
        ("experiments/measurements/", "/etc/", "results.0.record: String should match"),
    ],
)
def test_a_bad_entry_is_one_line_with_file_and_key(
    root: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, says: str
) -> None:
    assert old in ENTRY
    write(root, ENTRY.replace(old, new, 1))
    assert main(["--root", str(root)]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert error.startswith("experiments/ledger/hot-water.toml: ")


def test_a_number_is_given_once(root: Path) -> None:
    write(root, ENTRY, "other")
    with pytest.raises(BadEntry, match=r"other\.toml: number: hot-water\.toml has it, too"):
        read(root)


def test_without_results_nothing_can_have_come_of_the_prediction(root: Path) -> None:
    write(root, ENTRY.split("\n[[results]]", 1)[0].replace("{here}", "nothing"))
    with pytest.raises(BadEntry, match="came must be 'not measured'"):
        read(root)


def test_the_ledger_here_has_ten_entries_rejected_ones_among_them() -> None:
    dispositions = [told.entry.disposition for told in read(REPOSITORY)]
    assert len(dispositions) >= 10
    assert dispositions.count("rejected") >= 3
