"""Samples of a long measurement, kept as they come: what is interrupted can be taken up.

A folder in the cache for each measurement, named by all that its samples depend on, so that none is
ever taken up by another. Knows neither what is measured nor what a sample holds.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blob.files import replace
from serve.settings import REPOSITORY

CACHE = REPOSITORY / ".cache" / "samples"


def name_of(words: Iterable[object], files: Iterable[Path]) -> str:
    """64 bits, in hexadecimal, of words and of the files' bytes, in that order.

    :raises OSError: a file cannot be read.
    """
    made = hashlib.sha256(json.dumps([str(word) for word in words]).encode())
    for path in files:
        with path.open("rb") as file:
            made.update(hashlib.file_digest(file, "sha256").digest())
    return made.hexdigest()[:16]


class Kept:
    """One measurement's samples by name; ``fresh`` forgets those that lie there."""

    def __init__(self, name: str, *, fresh: bool, cache: Path = CACHE) -> None:
        self.folder = cache / name
        if fresh:
            self.forget()

    def get(self, name: str) -> dict[str, Any] | None:
        """The sample; None where there is none yet."""
        try:
            found: dict[str, Any] = json.loads(self._path(name).read_bytes())
        except FileNotFoundError:
            return None
        return found

    def put(self, name: str, sample: dict[str, Any]) -> dict[str, Any]:
        """Keep it, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        replace(self._path(name), json.dumps(sample).encode(), 0o644)
        return sample

    def forget(self) -> None:
        """A record holds them now, or they are not wanted."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
