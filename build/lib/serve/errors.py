"""What can go wrong in ``serve``, and the one envelope in which a client is told.

    ServeError                 stops the program: what happened, and the next step
    ├── ConfigError            a variant, model, target or setting is wrong (exit 2)
    ├── PreflightError         this machine cannot start the engine now (exit 1)
    └── EngineFailed           the engine died and will not be started again (exit 1)

Expected outcomes (a lever the target drops, a full queue) are values, not exceptions.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal

from blob.errors import Stop

Source = Literal["gateway", "engine"]


class ServeError(Stop):
    """Stops the program."""


class ConfigError(ServeError):
    """A name, key or value that was asked for does not exist or does not fit."""

    exit_code = 2


class PreflightError(ServeError):
    """The configuration is sound, but this machine cannot start it now."""


class EngineFailed(ServeError):
    """The engine is gone for good; ``tail`` holds the last lines it wrote that matter."""

    def __init__(self, what: str, tail: Iterable[str] = (), hint: str = "") -> None:
        super().__init__(what, hint)
        self.tail = tuple(tail)

    def __str__(self) -> str:
        lines = [self.what, *(f"  engine | {line}" for line in self.tail)]
        return "\n".join([*lines, f"hint: {self.hint}"] if self.hint else lines)


def nearest(name: str, known: Iterable[str]) -> str:
    """``" (did you mean X?)"``, or nothing when no known name is near."""
    matches = get_close_matches(name, list(known), n=1)
    return f" (did you mean {matches[0]}?)" if matches else ""


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered, or not to its end: what the gateway says instead."""

    status: int
    code: str
    message: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """OpenAI's word for errors of this status."""
        return KINDS.get(self.status, "invalid_request_error")


# What the clients of both companies tell errors apart by, beside the status.
KINDS = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "server_error",
    503: "service_unavailable",
    504: "timeout_error",
}


def envelope(
    message: str, *, kind: str, code: str, param: str | None = None, source: Source = "gateway"
) -> bytes:
    """The OpenAI-shaped error body; ``src`` tells gateway errors from engine errors.

    The outer ``type`` is what Anthropic's clients look for; OpenAI's pass it over.
    """
    error = {"message": message, "type": kind, "code": code, "param": param, "src": source}
    return json.dumps({"type": "error", "error": error}, ensure_ascii=False).encode()


def refusal_body(refusal: Refusal) -> bytes:
    """``refusal`` as a client reads it."""
    return envelope(refusal.message, kind=refusal.kind, code=refusal.code, param=refusal.param)


def sse_error(refusal: Refusal, *, named: bool = False) -> bytes:
    """The same as the last event of a stream that cannot be completed; ``named`` where events of
    the route carry their names.
    """
    name = b"event: error\n" if named else b""
    return name + b"data: " + refusal_body(refusal) + b"\n\n"
