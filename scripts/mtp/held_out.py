"""The prompts that drafts are measured on: those that ship beside the tiny model, or a file."""

from __future__ import annotations

from pathlib import Path

from scripts.mtp.asking import Ask
from scripts.mtp.prompts import BEGINNING, read
from serve.settings import REPOSITORY

__all__ = ["BEGINNING", "HELD_OUT", "read_asks"]

HELD_OUT = REPOSITORY / "weights" / "tiny" / "heldout.jsonl"


def read_asks(path: Path, max_tokens: int, limit: int = 0) -> list[Ask]:
    """Each line's request; with `limit` so many of them, evenly spread over the file.

    :raises scripts.mtp.prompts.PromptError: a line that is none, or none at all.
    :raises OSError: it cannot be read.
    """
    asks = [Ask(one.source, one.prompt, max_tokens) for one in read(path)]
    if not limit or limit >= len(asks):
        return asks
    return [asks[i * len(asks) // limit] for i in range(limit)]
