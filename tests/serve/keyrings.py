"""Files of keys for tests, and a clock that they wind themselves."""

import json
from pathlib import Path
from typing import Any

from serve.keyring import Record, dump, now
from serve.keys import digest_of, new_secret


class Clock:
    """A second has passed, and another file may be looked at, each time that it is asked."""

    def __init__(self, step: float = 1.0) -> None:
        self.now = 0.0
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def made(**facts: Any) -> tuple[Record, str]:
    """A key and its secret."""
    id_, secret = new_secret()
    return Record(id=id_, sha256=digest_of(secret), created=now(), **facts), secret


def written(path: Path, *records: Record) -> Path:
    """A file with these keys, put in the place of another at once."""
    beside = path.with_suffix(".new")
    beside.write_bytes(dump(records))
    beside.chmod(0o600)
    beside.replace(path)
    return path


def fields(**changed: Any) -> dict[str, Any]:
    """A key as JSON has it, in good order but for what is changed."""
    good = {"id": "k3j2x9qa", "sha256": "0" * 64, "created": "2026-11-22T08:00:00Z"}
    return {**good, **changed}


def spelled(*keys: Any, **changed: Any) -> bytes:
    """A file's bytes, whatever stands in them."""
    return json.dumps({"schema_version": 1, "keys": keys, **changed}).encode()
