"""Reads ``KEY=VALUE`` files strictly: what is not understood is refused, never skipped.

Owns the file syntax and the wording of refusals. Knows no key: the pydantic model that is
asked for does. The syntax is one ``KEY=VALUE`` a line, ``#`` comments on lines of their own,
no quoting, no shell, no interpolation.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from serve.errors import ConfigError, nearest

KEY = re.compile(r"[A-Z][A-Z0-9_]*")


class Config(BaseModel):
    """Base of all that is read from files or the environment: frozen, and closed to unknown keys.

    A field ``max_num_seqs`` is written ``MAX_NUM_SEQS``, as vLLM's flag ``--max-num-seqs``.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=str.upper, allow_inf_nan=False
    )


C = TypeVar("C", bound=Config)


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


# Annotates a tuple field that a file writes as ``a, b, c``.
CommaSeparated = BeforeValidator(_split)


def read_pairs(path: Path) -> dict[str, str]:
    """The file's pairs in order.

    :raises ConfigError: unreadable file, a line that is no pair, or a key that stands twice.
    """
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    pairs: dict[str, str] = {}
    # Not splitlines(), which also splits at U+2028 and others where an editor shows one line.
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not KEY.fullmatch(key):
            raise ConfigError(
                f"{path}:{number}: expected KEY=VALUE with an upper-case key, got {line!r}"
            )
        if key in pairs:
            raise ConfigError(f"{path}:{number}: {key} is set twice", f"keep one line of {key}")
        pairs[key] = value
    return pairs


def parse(cls: type[C], pairs: Mapping[str, str], where: str, **facts: Any) -> C:
    """Validate ``pairs`` into ``cls``; ``facts`` are fields that no file may set.

    :raises ConfigError: naming ``where``, the key, the value and what would have been accepted.
    """
    known = settable(cls, facts)
    for key in pairs:
        if key not in known:
            raise ConfigError(
                f"{where}: unknown key {key}{nearest(key, known)}",
                f"known keys: {', '.join(sorted(known))}",
            )
    values = {key: value for key, value in pairs.items() if value != ""}
    fixed = {_key(cls, name): fact for name, fact in facts.items()}
    try:
        return cls.model_validate({**values, **fixed})
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_problems(error, pairs))) from error


def settable(cls: type[Config], facts: Mapping[str, Any]) -> list[str]:
    """The keys that a file may hold for ``cls``."""
    return [_key(cls, name) for name in cls.model_fields if name not in facts]


def _key(cls: type[Config], field: str) -> str:
    return cls.model_fields[field].alias or field


def _problems(error: ValidationError, pairs: Mapping[str, str]) -> list[str]:
    problems = []
    for item in error.errors():
        key = str(item["loc"][0]) if item["loc"] else ""
        message = item["msg"].removeprefix("Value error, ")
        given = f"={pairs[key]!r}" if key in pairs else ""
        problems.append(f"{key}{given}: {message}" if key else message)
    return problems
