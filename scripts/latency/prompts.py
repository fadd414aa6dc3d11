"""The mixed prompt set, and the request that each prompt becomes.

A line has ``name``, ``source``, ``size`` (short, medium, long), ``output_tokens``, and either
``prompt`` (completed as it stands) or ``messages`` (a chat). Knows no server.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.lines import BadLine, read_objects
from serve.settings import REPOSITORY

MIXED = REPOSITORY / "experiments" / "prompts" / "mixed.jsonl"
SIZES = ("short", "medium", "long")
# What the model card says of it; a conversation that brings none gets this one.
SYSTEM = "You are a helpful assistant."
FORM = "expected an object with name, size, output_tokens and prompt or messages"


class BadPrompts(ValueError):
    """A prompt file that cannot be used; the text says where and why."""


@dataclass(frozen=True)
class Prompt:
    """One prompt and how many tokens are generated from it."""

    name: str
    source: str
    size: str
    output_tokens: int
    prompt: str = ""
    messages: tuple[dict[str, str], ...] = ()


def read_prompts(path: Path) -> list[Prompt]:
    """Every line of a prompt file.

    :raises BadPrompts: the file is missing or empty, or a line is no prompt.
    """
    try:
        found = [_prompt(item, where) for where, item in read_objects(path)]
    except OSError as error:
        raise BadPrompts(f"{path}: cannot be read: {error.strerror}") from error
    except BadLine as error:
        raise BadPrompts(str(error)) from error
    if not found:
        raise BadPrompts(f"{path}: no prompt in it; expected one JSON object a line")
    return found


def _prompt(item: Mapping[str, Any], where: str) -> Prompt:
    try:
        made = Prompt(
            str(item["name"]),
            str(item.get("source", "")),
            str(item["size"]),
            int(item["output_tokens"]),
            item.get("prompt", ""),
            tuple(item.get("messages", ())),
        )
    except KeyError as error:
        raise BadPrompts(f"{where}: {FORM}: no {error.args[0]}") from error
    except (TypeError, ValueError) as error:
        raise BadPrompts(f"{where}: {FORM}: {error}") from error
    if not isinstance(made.prompt, str) or not all(map(_is_said, made.messages)):
        raise BadPrompts(
            f"{where}: expected a prompt that is a text, or messages of objects with role and "
            "content, both texts"
        )
    if bool(made.prompt) == bool(made.messages):
        raise BadPrompts(f"{where}: expected either a prompt or messages, got both or neither")
    if made.output_tokens < 2 or made.size not in SIZES:
        raise BadPrompts(
            f"{where}: expected output_tokens of 2 or more and a size of {', '.join(SIZES)}; "
            f"got {made.output_tokens} and {made.size!r}"
        )
    return made


def _is_said(message: object) -> bool:
    if not isinstance(message, dict):
        return False
    return all(isinstance(message.get(key), str) for key in ("role", "content"))


def number(*parts: object) -> int:
    """A number of six digits, the same in every process for the same parts."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return 100_000 + int.from_bytes(digest[:8], "big") % 900_000


def marked(prompt: Prompt, mark: int | None) -> Prompt:
    """The prompt with a number in front, so that no prefix cache knows it; None: as it stands."""
    if mark is None:
        return prompt
    if prompt.prompt:
        return replace(prompt, prompt=f"No. {mark}\n\n{prompt.prompt}")
    first, *rest = prompt.messages
    system = first["content"] if first["role"] == "system" else SYSTEM
    rest = rest if first["role"] == "system" else [first, *rest]
    head = {"role": "system", "content": f"No. {mark}. {system}"}
    return replace(prompt, messages=(head, *rest))


def request(prompt: Prompt, model: str, *, as_served: bool) -> dict[str, Any]:
    """Path and body of one streamed request.

    ``as_served`` leaves sampling and stopping as the variant has them; otherwise every variant does
    the same work: greedy, no penalty, exactly ``output_tokens`` tokens.
    """
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": prompt.output_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if not as_served:
        body |= {"temperature": 0, "repetition_penalty": 1.0, "ignore_eos": True}
    if prompt.prompt:
        return {"path": "/v1/completions", "body": body | {"prompt": prompt.prompt}}
    return {"path": "/v1/chat/completions", "body": body | {"messages": list(prompt.messages)}}


def described(prompts: Sequence[Prompt], path: Path) -> dict[str, Any]:
    """What a record says of the set."""
    return {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "prompts": len(prompts),
        "sizes": {size: sum(one.size == size for one in prompts) for size in SIZES},
        "chats": sum(bool(one.messages) for one in prompts),
    }
