import json
from pathlib import Path

import pytest

from serve import origin
from serve.errors import ConfigError
from tests.serve.checkpoints import checkpoint


def record(folder: Path, of: Path) -> Path:
    """Say in ``folder`` that it was made of ``of``, and of something beside it."""
    files = {f"model/{one.name}": one.stat().st_size for one in of.iterdir()} | {"corpus": 9}
    inputs = {
        name: {"bytes": size, "mtime_ns": 1, "sha256": "0" * 64} for name, size in files.items()
    }
    (folder / origin.RECORD).write_text(json.dumps({"schema": 1, "inputs": inputs}))
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "source", "a")


@pytest.fixture
def made(tmp_path: Path, source: Path) -> Path:
    return record(checkpoint(tmp_path / "slug", "a"), source)


def told(folder: Path) -> origin.Origin:
    found = origin.read(folder)
    assert found
    return found


def test_what_nobody_derived_says_nothing(source: Path) -> None:
    assert origin.read(source) is None
    assert origin.read(source / "nowhere") is None


def test_it_is_told_by_name_and_digests(made: Path) -> None:
    said = told(made).describe()
    assert said["slug"] == "slug"
    assert said["inputs"]["model/model.safetensors"] == said["inputs"]["corpus"] == "0" * 64


def test_another_time_and_files_that_are_no_weights_are_no_other_checkpoint(
    made: Path, source: Path
) -> None:
    (source / "README.md").write_text("new")
    (source / "config.json").touch()
    assert origin.other(told(made), source) == ""


def test_where_the_checkpoint_is_not_there_nothing_is_compared(made: Path, tmp_path: Path) -> None:
    assert origin.other(told(made), tmp_path / "nowhere") == ""


def test_another_size_one_file_more_and_one_less_are_named(made: Path, source: Path) -> None:
    of = told(made)
    (source / "more.safetensors").write_bytes(b"12")
    assert origin.other(of, source) == "more.safetensors: expected none, got 2 bytes"
    (source / "more.safetensors").unlink()
    (source / "tokenizer.json").write_text("{  }")
    assert origin.other(of, source) == "tokenizer.json: expected 2 bytes, got 4 bytes"
    (source / "tokenizer.json").unlink()
    assert origin.other(of, source) == "tokenizer.json: expected 2 bytes, got none"


@pytest.mark.parametrize("raw", ["", "[]", "{}", '{"inputs": []}', '{"inputs": {"a": 1}}'])
def test_a_damaged_record_is_refused_by_name(made: Path, raw: str) -> None:
    (made / origin.RECORD).write_text(raw)
    with pytest.raises(ConfigError, match=r"derived\.json: does not say") as refused:
        origin.read(made)
    assert "preheat bake derive" in refused.value.hint
