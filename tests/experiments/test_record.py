"""A record is added whole or not at all, and never replaces another."""

import os
from pathlib import Path

import pytest

from experiments.record import Record, add, check_writable, now, this_machine, typed


@pytest.fixture
def record() -> Record:
    return Record(
        kind="thing",
        made=now(),
        command=["python"],
        machine=this_machine(),
        variant={},
        parameters={},
        summary={"x": 1},
        samples=[],
    )


def test_a_record_is_read_as_it_was_written_and_is_not_replaced(record, tmp_path: Path) -> None:
    path = add(record, tmp_path / "new")
    assert Record.model_validate_json(path.read_bytes()) == record
    with pytest.raises(FileExistsError):
        add(record.model_copy(update={"summary": {"x": 2}}), tmp_path / "new")
    assert Record.model_validate_json(path.read_bytes()) == record


def test_no_half_of_a_record_is_left(record, tmp_path: Path, monkeypatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        add(record, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_command_is_told_as_it_was_called(monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["pytest", "-q"])
    assert typed("scripts.thing", ["seq8"]) == ["python", "-m", "scripts.thing", "seq8"]
    assert typed("scripts.thing", []) == ["python", "-m", "scripts.thing"]
    assert typed("scripts.thing") == ["python", "-m", "scripts.thing", "-q"]


def test_where_no_record_can_be_is_told_before(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        check_writable(tmp_path / "file" / "measurements")
    check_writable(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
