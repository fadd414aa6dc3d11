"""What a derived folder says it was made of: ``derived.json``, which ``bake.derive`` writes last.

Whoever serves it compares names and sizes with the checkpoint that was asked for, where that is
still there; digests are its maker's to compare.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.errors import ConfigError

RECORD = "derived.json"
# Before the names of the checkpoint's own files; others are what a step read beside it.
OWN = "model/"


@dataclass(frozen=True)
class Origin:
    """``inputs`` tell bytes and SHA-256 of each file by its name."""

    slug: str
    inputs: Mapping[str, tuple[int, str]]

    def describe(self) -> dict[str, Any]:
        """As JSON: what tells one making from another."""
        return {"slug": self.slug, "inputs": {name: sha for name, (_, sha) in self.inputs.items()}}


def read(folder: Path) -> Origin | None:
    """What ``folder`` was made of; None where nothing says it.

    :raises ConfigError: what says it is damaged.
    """
    path = folder / RECORD
    try:
        inputs = json.loads(path.read_bytes())["inputs"]
        told = {str(n): (int(one["bytes"]), str(one["sha256"])) for n, one in inputs.items()}
        return Origin(folder.name, told)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        hint = "make it again: preheat bake derive --force"
        raise ConfigError(f"{path}: does not say what was made of what: {error!r}", hint) from error


def other(origin: Origin, checkpoint: Path) -> str:
    """In what ``checkpoint`` is not what it was made of, in words; empty where it is, by names
    and sizes, or where it is not there: an image holds what it serves, and nothing else.
    """
    if not checkpoint.is_dir():
        return ""
    was = {n.removeprefix(OWN): size for n, (size, _) in origin.inputs.items() if n.startswith(OWN)}
    there = {name: _bytes(checkpoint / name) for name in was}
    new = {path.name: _bytes(path) for path in checkpoint.glob("*.safetensors")}
    for name, now in sorted((there | new).items()):
        if was.get(name) != now:
            return f"{name}: expected {_said(was.get(name))}, got {_said(now)}"
    return ""


def _bytes(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _said(size: int | None) -> str:
    return "none" if size is None else f"{size} bytes"
