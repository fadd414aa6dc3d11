import json

import pytest

from scripts import fuzz

LOG = """
#128 NEW    cov: 10 ft: 11 corp: 2/9b lim: 4 exec/s: 0 rss: 51Mb
#256 DONE   cov: 37 ft: 42 corp: 4/29b lim: 4096 exec/s: 9 rss: 51Mb
stat::number_of_executed_units: 256
stat::average_exec_per_sec:     128
stat::peak_rss_mb:              51
"""


@pytest.fixture
def rooms(tmp_path, monkeypatch):
    """Nothing is written into the checkout."""
    monkeypatch.setattr(fuzz, "MEASUREMENTS", tmp_path)
    monkeypatch.setattr(fuzz, "KEPT", tmp_path / "kept")
    return tmp_path


def test_what_libfuzzer_said_last_counts():
    assert fuzz.reached(LOG) == {
        "coverage": 37,
        "features": 42,
        "corpus": 4,
        "executions_per_second": 128,
        "peak_rss_mb": 51,
    }
    assert set(fuzz.reached("").values()) == {0}


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_every_target_has_words_and_seeds(name, tmp_path):
    lines = fuzz.dictionary(name).splitlines()
    assert all(line.startswith('"\\x') and line.endswith('"') for line in lines)
    assert len(lines) > len(fuzz.EDGES)
    assert list(fuzz.seeds(name, tmp_path).iterdir())


@pytest.mark.parametrize("name", ["zip", "structured-safetensors"])
def test_a_short_campaign_is_counted(name, rooms, capsys):
    pytest.importorskip("atheris")
    assert fuzz.main(["--only", name, "--runs", "200", "--json", "--no-record"]) == 0
    record = json.loads(capsys.readouterr().out)
    (sample,) = record["samples"]
    assert sample["target"] == name
    assert 0 < sample["accepted"] <= sample["executions"] <= 201
    assert sample["coverage"] > 0
    assert record["summary"]["findings"] == 0
    assert list((rooms / "kept" / name).iterdir())


def test_what_breaks_is_kept_under_the_target_s_name(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "FOUND", tmp_path / "corpus")
    monkeypatch.setattr(fuzz, "REPOSITORY", tmp_path)
    (found := tmp_path / "found").mkdir()
    (found / "any").write_bytes(b"raw")
    assert fuzz.keep("structured-gguf", tmp_path, found) == [f"corpus/gguf-{fuzz.digest(b'raw')}"]
    assert [path.read_bytes() for path in (tmp_path / "corpus").iterdir()] == [b"raw"]


def test_a_process_that_was_ended_leaves_what_it_was_given(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "FOUND", tmp_path / "corpus")
    monkeypatch.setattr(fuzz, "REPOSITORY", tmp_path)
    (found := tmp_path / "found").mkdir()
    (tmp_path / "timeout-0123abcd").write_bytes(b"slow")
    assert fuzz.keep("zip", tmp_path, found) == [f"corpus/zip-{fuzz.digest(b'slow')}"]
