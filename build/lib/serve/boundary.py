"""Where a request or an answer is changed between client and engine, for variants that ask it.

Two levers do: a pruned vocabulary, whose ids clients shall not meet, and a cap of thoughts, for
which vLLM 0.32 has no default of its own; and so do other names for the model. With none of them,
no body is looked at.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from serve.command import fit
from serve.plan import Plan
from serve.translate import Answers, Refused, Requests, Vocabulary, load_map
from serve.translate_json import Edits, Shape, Unreadable, decoded, encoded, first_member

NONE: Mapping[str, str] = MappingProxyType({})
BUDGET = "thinking_token_budget"
# The routes where vLLM takes it and a template opens the thoughts; /v1/responses has no such
# field, and /v1/messages takes 1024 or more. The class of a batch has none either, but hands on
# what it does not know.
CAPPED = frozenset(("/v1/chat/completions", "/v1/chat/completions/batch", "/invocations"))
# Larger ones are changed in a thread: the loop answers others between two values of the body,
# though not within one, which is read at once.
LARGE_BYTES = 64 * 1024
# Of one object in a request; the largest that anybody means holds some dozens.
MOST_MEMBERS = 10_000


async def aside(change: Callable[[bytes], bytes], body: bytes, beside: int = 0) -> bytes:
    """``change(body)``, in a thread where it, with ``beside`` bytes that wait, is large."""
    if len(body) + beside <= LARGE_BYTES:
        return change(body)
    return await asyncio.to_thread(change, body)


def boundary_of(plan: Plan, aliases: Mapping[str, str] = NONE) -> "Boundary":
    """What the plan's variant needs: for most, one that changes nothing. ``aliases`` are names
    that requests may call the model by, and its own.

    :raises ConfigError: the map beside the model is damaged.
    """
    usable, _ = fit(plan.variant, plan.model, plan.target)
    budget = usable.thinking_token_budget
    model = plan.model
    vocabulary = load_map(model.vocab_map, model.vocab_size) if model.vocab_map else None
    return Boundary(vocabulary, budget, aliases)


class Boundary:
    """Changes bodies by route; ``budget`` is in tokens."""

    def __init__(
        self,
        vocabulary: Vocabulary | None = None,
        budget: int | None = None,
        aliases: Mapping[str, str] = NONE,
    ) -> None:
        self._requests = Requests(vocabulary) if vocabulary else None
        self._answers = Answers(vocabulary) if vocabulary else None
        self._budget = budget
        self._aliases = aliases

    def request(self, route: str, body: bytes) -> bytes:
        """The body that the engine shall see.

        :raises Refused: it cannot be told to this engine.
        """
        shape: dict[str, Shape] = dict(self._requests.shape(route)) if self._requests else {}
        budget = self._budget if route in CAPPED else None
        if not body or not (shape or budget is not None or self._aliases):
            return body
        try:
            return _edited(body, shape, budget, self._aliases)
        except Unreadable as error:
            if not shape:
                # vLLM says what is wrong with it.
                return body
            # What cannot be read cannot be translated, and may not go untranslated.
            raise Refused("", f"the body is not a JSON object: {error}", "invalid_json") from error

    def back(self, route: str) -> "Back | None":
        """What changes the answers of a route, when they can hold ids."""
        answers = self._answers
        if answers is None or not answers.shape(route):
            return None
        return Back(lambda body: answers.translated(route, body))


# What most variants need.
UNBOUND = Boundary()


@dataclass(frozen=True)
class Back:
    """The way back of one answer; ``whole`` changes one JSON text."""

    whole: Callable[[bytes], bytes]

    def events(self) -> "Events":
        """For an answer that is a stream."""
        return Events(self.whole)


class Events:
    """A stream of server-sent events, which comes in pieces of any size.

    An event's ``data:`` is one line, as vLLM writes it; lines pass on as soon as they are whole.
    """

    def __init__(self, whole: Callable[[bytes], bytes]) -> None:
        self._whole = whole
        self._held: list[bytes] = []
        self.held_bytes = 0

    def feed(self, chunk: bytes) -> bytes:
        """What can pass on once ``chunk`` is there."""
        end = chunk.rfind(b"\n") + 1
        if not end:
            self._held.append(chunk)
            self.held_bytes += len(chunk)
            return b""
        lines = b"".join([*self._held, chunk[:end]])
        self._held, self.held_bytes = [chunk[end:]], len(chunk) - end
        return b"".join(map(self._line, lines.splitlines(keepends=True)))

    def end(self) -> bytes:
        """What is left when the stream ends within a line."""
        left = b"".join(self._held)
        self._held = []
        return self._line(left)

    def _line(self, line: bytes) -> bytes:
        name, colon, data = line.partition(b":")
        if name != b"data" or data.lstrip()[:1] != b"{":
            return line
        return name + colon + self._whole(data)


def _edited(
    body: bytes, shape: dict[str, Shape], budget: int | None, aliases: Mapping[str, str]
) -> bytes:
    text, encoding = decoded(body)
    named: list[Any] = []

    def note(value: Any) -> str | None:
        named.append(value)
        return str(budget) if value is None else None

    def renamed(value: Any) -> str | None:
        own = aliases.get(value) if isinstance(value, str) else None
        return json.dumps(own) if own else None

    edits = Edits(text, strict=bool(shape), most=MOST_MEMBERS)
    ours: dict[str, Shape] = {BUDGET: note} if budget is not None else {}
    if aliases:
        ours["model"] = renamed
    edits.walk(shape | ours)
    if budget is not None and not named and text.lstrip(" \t\n\r").startswith("{"):
        edits.places.append(first_member(text, BUDGET, json.dumps(budget)))
    return encoded(edits.made(), encoding) if edits.places else body
