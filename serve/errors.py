"""What can go wrong in ``serve``, and the one envelope in which a client is told.

    ServeError                 stops the program: what happened, and the next step
    ├── ConfigError            a variant, model, target or setting is wrong (exit 2)
    ├── PreflightError         this machine cannot start the engine now (exit 1)
    └── EngineFailed           the engine died and will not be started again (exit 1)

Expected outcomes (a lever the target drops, a full queue) are values, not exceptions.
"""

import json
from collections.abc import Iterable
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


def envelope(
    message: str, *, kind: str, code: str, param: str | None = None, source: Source = "gateway"
) -> bytes:
    """The OpenAI-shaped error body; ``src`` tells gateway errors from engine errors."""
    error = {"message": message, "type": kind, "code": code, "param": param, "src": source}
    return json.dumps({"error": error}, ensure_ascii=False).encode()


def sse_error(message: str, *, kind: str, code: str, source: Source = "gateway") -> bytes:
    """The same envelope as the last event of a stream that cannot be completed."""
    return b"data: " + envelope(message, kind=kind, code=code, source=source) + b"\n\n"
