"""What came of a request in a word, what came of a scenario in counts, and whether that is right.

Knows the shapes of answers, not how they were brought about.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from scripts.gateway.line import Answer

WHOLE = "200"
# A body shorter than its head announced: the client's HTTP library says so.
CUT = "cut, which shows"
NO_ANSWER = "lost: no answer"
NO_END = "lost: a stream without an end"
NO_TIME = "lost: nothing in time"
MIXED = "twice: another's answer"
SURPLUS = "twice: an answer too many"
# The client left on purpose, and has no answer to expect.
LEFT = "left"

DONE = b"data: [DONE]\n\n"
EVENT_STREAM = "text/event-stream"
ERROR_EVENT = re.compile(rb'(event: error\n)?data: (\{"type": "error", .*\})\n\n\Z')
SAID = re.compile(r'"text": "([^"]*)"')
NUMBER = re.compile(r"(\w+)-")


def word(answer: Answer, number: int, *, surplus: bool = False, named: bool = False) -> str:
    """What the client of request ``number`` makes of its answer; ``surplus`` says that more came
    behind it, ``named`` that its client knows events by their names.
    """
    if surplus:
        return SURPLUS
    if not answer.status:
        return NO_ANSWER
    body = bytes(answer.body)
    if not numbers(body) <= {str(number)}:
        return MIXED
    if answer.headers.get("content-type", "").startswith(EVENT_STREAM):
        return _streamed(body, whole=answer.whole, named=named)
    if not answer.whole:
        return CUT
    later = answer.status != 429 or answer.headers.get("retry-after", "").isdecimal()
    return f"{answer.status} {code(body)}".rstrip() + ("" if later else ", without Retry-After")


def numbers(body: bytes) -> set[str]:
    """Of the requests that the tokens of an answer belong to."""
    said = " ".join(SAID.findall(body.decode(errors="replace")))
    return set(NUMBER.findall(said))


def _streamed(body: bytes, *, whole: bool, named: bool) -> str:
    if whole and body.endswith(DONE):
        return WHOLE
    told = ERROR_EVENT.search(body)
    if not (whole and told and bool(told[1]) == named):
        return NO_END
    return f"event {code(told[2])}"


def code(body: bytes) -> str:
    """What an error says of itself; nothing when the body is none."""
    try:
        return str(json.loads(body)["error"]["code"])
    except (ValueError, LookupError, TypeError):
        return ""


@dataclass
class Counts:
    """What came of one scenario.

    ``words`` counts the requests by what came of them, ``held`` says of the scenario's own
    promises whether they held. The rest is looked at when all is over, None where there is
    nothing left to look at: the engine's running requests, connections of clients and file
    descriptors that the gateway holds beyond those of its start.
    """

    words: Counter[str] = field(default_factory=Counter)
    held: dict[str, bool] = field(default_factory=dict)
    # Requests that the engine was asked more than once.
    asked_twice: int = 0
    again_seconds: float | None = None
    running: int | None = None
    connections: int | None = None
    descriptors: int | None = None
    exit_status: int | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def asked(self) -> int:
        """How many requests there were."""
        return self.words.total()

    @property
    def lost(self) -> int:
        """Those that nobody told what became of them."""
        return sum(count for said, count in self.words.items() if said.startswith("lost"))

    @property
    def twice(self) -> int:
        """Those that were answered or asked twice, or with what is another's."""
        mixed = sum(count for said, count in self.words.items() if said.startswith("twice"))
        return mixed + self.asked_twice


@dataclass(frozen=True)
class Rule:
    """What may come of a scenario's requests, and what must come of some; the rest holds of all."""

    may: frozenset[str]
    must: frozenset[str] = frozenset()
    exit_status: int = 0

    def broken(self, counts: Counts) -> list[str]:
        """Every promise that was not kept."""
        odd = {said: count for said, count in counts.words.items() if said not in self.may}
        found = [f"{count} × {said}" for said, count in odd.items()]
        found += [f"none was answered {said}" for said in sorted(self.must - set(counts.words))]
        found += [f"not held: {promise}" for promise, held in counts.held.items() if not held]
        left = {
            "requests asked twice": counts.asked_twice,
            "requests that still run": counts.running,
            "connections left": counts.connections,
            "file descriptors left": counts.descriptors,
        }
        found += [f"{count} {what}" for what, count in left.items() if count]
        if counts.exit_status not in (None, self.exit_status):
            found.append(f"exit status {counts.exit_status}, not {self.exit_status}")
        return found


def rule(*may: str, must: tuple[str, ...] = (), exit_status: int = 0) -> Rule:
    """``must`` may come, too."""
    return Rule(frozenset((*may, *must)), frozenset(must), exit_status)
