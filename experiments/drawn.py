"""One figure of a ledger entry: where in which record it lies, and how it is written."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from experiments.pointers import number_at


class NotDrawn(Exception):
    """A figure is not where its entry says; the text names the key."""


class Result(BaseModel):
    """A figure as an entry names it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="", pattern=r"^\w*$", description="For texts, as `{name}`.")
    label: str = Field(description="What it is, in the table.")
    record: str = Field(
        pattern=r"^experiments/(?:[\w.-]+/)?measurements/[\w.-]+\.json$",
        description="The record, from the repository's root.",
    )
    path: str = Field(pattern=r"^/", description="JSON pointer to the number.")
    over: str = Field(default="", pattern=r"^(/|$)", description="Divide by what lies there.")
    low: str = Field(default="", pattern=r"^(/|$)", description="Pointer to the least.")
    high: str = Field(default="", pattern=r"^(/|$)", description="Pointer to the most.")
    scale: float = Field(default=1.0, description="Multiply by this, e.g. 100 for a percentage.")
    format: str = Field(default=".2f", pattern=r"^\+?,?\.\d+f$", description="As Python spells it.")
    unit: str = Field(default="", description="Written behind it.")

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if bool(self.low) != bool(self.high):
            raise ValueError("low and high go together")
        if self.over and self.low:
            raise ValueError("a ratio of two values has no low and high of its own")
        return self


class Drawn(BaseModel):
    """A figure as it is written."""

    model_config = ConfigDict(frozen=True)

    name: str
    label: str
    record: str
    figure: str
    spread: str


def draw(result: Result, root: Path) -> Drawn:
    """``result`` with its figure.

    :raises NotDrawn: the record is missing or has no number there.
    """
    try:
        record = root / result.record
        document = _document(record, record.stat().st_mtime_ns)
        value = number_at(document, result.path)
        value = value / number_at(document, result.over) if result.over else value
        ends = [number_at(document, p) for p in (result.low, result.high) if p]
    except (OSError, ValueError, KeyError, ZeroDivisionError) as error:
        text = error.args[0] if isinstance(error, KeyError) else error
        raise NotDrawn(f"results, {result.label!r}: {result.record}: {text}") from None
    spread = " to ".join(_plain(result, end) for end in ends)
    return Drawn(
        name=result.name,
        label=result.label,
        record=result.record,
        figure=_plain(result, value) + _unit(result.unit),
        spread=spread,
    )


def _plain(result: Result, value: float) -> str:
    return format(value * result.scale, result.format).replace("-", "−")


def _unit(unit: str) -> str:
    return unit if unit in ("", "×") else f" {unit}"


@lru_cache(maxsize=64)
def _document(path: Path, changed: int) -> Any:
    # ``changed`` is in the key only: a file that was written anew is read anew.
    return json.loads(path.read_bytes())
