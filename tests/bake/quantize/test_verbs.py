import json

import pytest

from bake import __main__ as command
from bake.errors import BakeError
from bake.quantize import Recipe, peer
from tests.bake.quantize.folders import TINY


def test_a_person_is_told_what_was_made(tmp_path, capsys):
    words = ["quantize", str(TINY), str(tmp_path / "w4"), "--scheme", "rtn-w4a16", "--lm-head"]
    assert command.main(words) == 0
    said = capsys.readouterr().out
    assert f"wrote {tmp_path / 'w4'}" in said
    assert "13 matrices of four bits" in said
    assert "head: 2359312 bytes of 0" in said


def test_a_program_gets_the_report(tmp_path, capsys):
    words = ["quantize", str(TINY), str(tmp_path / "w4"), "--scheme", "rtn-w4a16", "--json"]
    assert command.main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == str(tmp_path / "w4")
    assert told["recipe"]["group_size"] == 32
    assert len(told["errors"]) == 12
    assert told["seconds"]["all"] >= 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--group-size", "48"], 2, "invalid choice: 48"),
        (["--scheme", "none"], 1, "nothing to quantize"),
        (["--samples", "0"], 2, "--samples"),
    ],
)
def test_what_cannot_be_done_is_one_line(tmp_path, capsys, words, code, said):
    try:
        got = command.main(["quantize", str(TINY), str(tmp_path / "w4"), *words])
    except SystemExit as stopped:
        got = stopped.code
    told = capsys.readouterr()
    assert got == code
    assert said in told.err
    assert "Traceback" not in told.err
    assert not (tmp_path / "w4").exists()


def test_the_other_maker_needs_an_interpreter(tmp_path, monkeypatch):
    monkeypatch.delenv(peer.VARIABLE, raising=False)
    with pytest.raises(BakeError, match=r"PREHEAT_LLMCOMPRESSOR: expected a python that has"):
        peer.quantize(TINY, tmp_path / "w4", Recipe("rtn-w4a16"), tmp_path / "none")


def fake(folder, body):
    """An interpreter that has no library: a script that reads the job and does something."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\ncat > {folder}/job.json\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_the_other_makers_folder_is_taken_whole(tmp_path, monkeypatch, capsys):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"text": "one two three " * 40}) + "\n")
    body = f"mkdir {tmp_path}/.w4.preheat.part; echo made > {tmp_path}/.w4.preheat.part/config.json"
    monkeypatch.setenv(peer.VARIABLE, fake(tmp_path, body))
    recipe = Recipe("awq-w4a16", "linear", 64, samples=2, sequence=16)
    assert peer.quantize(TINY, tmp_path / "w4", recipe, corpus) == 0
    job = json.loads((tmp_path / "job.json").read_bytes())
    assert (job["awq"], job["group"], job["targets"]) == (True, 64, ["Linear"])
    assert [len(row) for row in job["ids"]] == [16, 16]
    names = {path.name for path in (tmp_path / "w4").iterdir()}
    assert {"config.json", "chat_template.jinja", "tokenizer.json"} <= names
    assert (tmp_path / "w4" / "config.json").read_text() == "made\n"
    assert "model.safetensors" not in names


def test_what_the_other_maker_said_is_told(tmp_path, monkeypatch):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"text": "one two three " * 40}) + "\n")
    monkeypatch.setenv(peer.VARIABLE, fake(tmp_path, "echo no such module >&2; exit 3"))
    recipe = Recipe("rtn-w4a16", samples=1, sequence=8)
    with pytest.raises(BakeError, match="llm-compressor failed: no such module"):
        peer.quantize(TINY, tmp_path / "w4", recipe, corpus)
    with pytest.raises(BakeError, match="leaves a tied head"):
        peer.quantize(TINY, tmp_path / "w4", Recipe("rtn-w4a16", lm_head=True), corpus)
    assert not (tmp_path / "w4").exists()
