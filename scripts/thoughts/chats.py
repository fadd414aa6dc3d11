"""Chats that were held out: messages to ask, and the answer that was written to them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.lines import BadLine, read_objects

TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\n", re.DOTALL)
OPENED = "<|im_start|>assistant\n"
END = "<|im_end|>"
CLOSE = "</think>"


@dataclass(frozen=True)
class Chat:
    """Messages to ask, and the answer that was held out."""

    source: str
    messages: list[dict[str, str]]
    answer: str


def read_chats(path: Path, limit: int = 0) -> list[Chat]:
    """Each line that is a chat; with ``limit`` so many of them, evenly spread.

    :raises BadLine: a line that is no object, or none is a chat.
    :raises OSError: it cannot be read.
    """
    found = [chat for _, line in read_objects(path) if (chat := chat_of(line))]
    if not found:
        raise BadLine(f"{path}: no line is a chat")
    if not limit or limit >= len(found):
        return found
    return [found[at * len(found) // limit] for at in range(limit)]


def chat_of(line: Mapping[str, Any]) -> Chat | None:
    """A chat in ChatML as messages; None where the line is none. A tool's text stays the system's,
    its answer a user's: the template renders both so.
    """
    prompt, text = line.get("prompt"), line.get("text")
    if not isinstance(prompt, str) or not isinstance(text, str) or not prompt.endswith(OPENED):
        return None
    turns = prompt.removesuffix(OPENED)
    messages = [{"role": role, "content": said} for role, said in TURN.findall(turns)]
    if TURN.sub("", turns) or not messages or not text.startswith(prompt):
        return None
    said = text.removeprefix(prompt).partition(END)[0]
    return Chat(str(line.get("source", "")), messages, said.rpartition(CLOSE)[2].strip())
