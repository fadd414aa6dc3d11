"""Tokens that an answer says it took: read from its bytes on their way, which pass unchanged.

vLLM tells them in an object ``usage`` at or near the end of a whole answer, and in one of the last
events of a stream. What a client left before the end is estimated; see ``Meter.tokens``.
"""

import json
import re
from typing import Any

from serve.translate_json import Edits, Unreadable, decoded, encoded, first_member

MARK = b'"usage":'
# The object is flat but for details of some dozens of bytes.
WINDOW = 600
COUNT = re.compile(rb'"(prompt|input|completion|output)_tokens":\s*(\d{1,12})')
OPTIONS = "stream_options"
# Without the next nothing comes of it; with it, all that the client did not ask for.
CONTINUOUS = "continuous_usage_stats"
# The routes whose streams tell no usage unless they are asked to.
ASKED = frozenset(("/v1/chat/completions", "/v1/completions", "/invocations"))
# Bytes of a request for each token of a prompt, where the engine did not say: English in most
# vocabularies takes four and more.
BYTES_PER_TOKEN = 4
YES = frozenset(("1", "true", "t", "yes", "y", "on"))


class Meter:
    """Counts one answer; ``asked_bytes`` is the size of the request."""

    def __init__(self, asked_bytes: int) -> None:
        self._asked = asked_bytes
        self._events = 0
        self._before = b""
        self._said: tuple[int, int] | None = None

    def feed(self, chunk: bytes) -> None:
        """Look at what passes."""
        self._events += chunk.count(b"data:")
        # A mark, or the object behind it, may lie across two chunks.
        text = self._before + chunk
        if (at := text.rfind(MARK)) >= 0 and (found := counts(text[at : at + WINDOW])):
            self._said = found
        self._before = text[-WINDOW:]

    def tokens(self, *, ended: bool) -> tuple[int, int]:
        """Tokens of the prompt and of the answer: what the engine said, or else an estimate, a
        token for each event and for each four bytes asked. A whole answer that tells no usage is
        one that takes none, as the engine's tokenizer's.
        """
        if self._said:
            # Some streams tell what they read when they begin, and what they said at their end.
            read, said = self._said
            return read, said or self._events
        if ended and not self._events:
            return 0, 0
        return self._asked // BYTES_PER_TOKEN, self._events


def counts(usage: bytes) -> tuple[int, int] | None:
    """Tokens in and out of the beginning of a usage object."""
    found = {name: int(number) for name, number in reversed(COUNT.findall(usage))}
    if not found:
        return None
    read = found.get(b"prompt", found.get(b"input", 0))
    return read, found.get(b"completion", found.get(b"output", 0))


def asking(route: str, body: bytes) -> bytes:
    """``body`` so that its stream will tell usage; ``body`` itself where nothing had to be added.

    Every other character stays. A body that is no JSON object stays whole: vLLM refuses it.
    """
    # One that hides the word behind an escape is told no usage, and counted by its events.
    if route not in ASKED or b"stream" not in body:
        return body
    try:
        text, encoding = decoded(body)
        told: dict[str, Any] = {}
        edits = Edits(text, strict=False)
        edits.walk({"stream": _noted(told, "stream"), OPTIONS: _noted(told, OPTIONS)})
    except Unreadable:
        return body
    options = told.get(OPTIONS)
    if options is not None and not isinstance(options, dict):
        # vLLM says what is wrong with it.
        return body
    if not yes(told.get("stream")) or yes((options or {}).get("include_usage")):
        return body
    kept = {name: value for name, value in (options or {}).items() if name != CONTINUOUS}
    wanted = json.dumps({**kept, "include_usage": True})
    if OPTIONS not in told:
        edits.places.append(first_member(text, OPTIONS, wanted))
    else:
        again = Edits(text, strict=False)
        again.walk({OPTIONS: lambda _: wanted})
        edits = again
    return encoded(edits.made(), encoding)


def yes(value: object) -> bool:
    """Whether vLLM takes it for true: pydantic's lax reading."""
    return value == 1 or (isinstance(value, str) and value.lower() in YES)


def _noted(told: dict[str, Any], name: str) -> Any:
    def note(value: Any) -> None:
        told[name] = value

    return note


class Withheld:
    """A stream less the event that tells nothing but usage, which the client did not ask for."""

    def __init__(self) -> None:
        self._left = b""

    def feed(self, chunk: bytes) -> bytes:
        """Whole events of what has come."""
        text = self._left + chunk
        end = text.rfind(b"\n\n") + 2
        if end < 2:
            self._left = text
            return b""
        self._left = text[end:]
        events = text[:end].split(b"\n\n")[:-1]
        return b"".join(event + b"\n\n" for event in events if not only_usage(event))

    def end(self) -> bytes:
        """What is left when the stream ends within an event."""
        return self._left


def only_usage(event: bytes) -> bool:
    """Whether it has usage and no choice, as vLLM's last but one has."""
    return MARK in event and b'"choices":[]' in event.replace(b'"choices": []', b'"choices":[]')
