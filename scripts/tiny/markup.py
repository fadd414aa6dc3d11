"""Chat markup in Python: renders a finished conversation exactly as the template would.

The Jinja template serves; this renders a training set of many thousand conversations quickly.
A test holds the two together.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Turn:
    role: str
    content: str
    thought: str = ""  # only the last assistant turn's is kept


@dataclass(frozen=True)
class Conversation:
    source: str
    name: str
    turns: tuple[Turn, ...]
    tools: tuple[dict[str, Any], ...] = ()
    trained: bool = False  # true: never held out


def opening(thought: str) -> str:
    return f"<think>\n{thought}\n</think>\n\n"


def prompt(talk: Conversation) -> str:
    """All but the last assistant turn, up to and including its generation prompt's role line."""
    turns = list(talk.turns[:-1])
    parts = []
    system = turns.pop(0).content if turns[0].role == "system" else ""
    if talk.tools:
        parts.append(f"<|im_start|>system\n{_tool_listing(talk, system)}<|im_end|>\n")
    elif system:
        parts.append(f"<|im_start|>system\n{system}<|im_end|>\n")
    for turn in turns:
        if turn.role == "tool":
            text = f"\n<tool_response>\n{turn.content}\n</tool_response>"
            parts.append(f"<|im_start|>user{text}<|im_end|>\n")
        else:
            parts.append(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n")
    return "".join(parts) + "<|im_start|>assistant\n"


def _tool_listing(talk: Conversation, system: str) -> str:
    head = f"{system}\n\n" if system else ""
    listed = "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in talk.tools)
    return (
        f"{head}# Tools\n\nYou may call these functions:\n<tools>{listed}\n</tools>\n\n"
        "To call one, answer with a block of JSON:\n"
        '<tool_call>\n{"name": <name>, "arguments": <arguments>}\n</tool_call>'
    )


def render(talk: Conversation) -> str:
    last = talk.turns[-1]
    return f"{prompt(talk)}{opening(last.thought)}{last.content}<|im_end|>\n"
