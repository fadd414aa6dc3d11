"""Changes parts of a JSON text and leaves every other character of it as it was.

Unknown fields, the order of keys and the spelling of numbers survive because nothing is written
anew but what is replaced. Reads what the standard library reads (vLLM's front end uses the same):
what one takes for JSON, the other does, too. Knows nothing of tokens.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

# What is between json.loads and the C scanner is not in the stubs, but as old as the module.
SCAN = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
BLANK = re.compile(r"[ \t\n\r]*").match

# What a place is replaced by, told from its value; None leaves it.
Change = Callable[[Any], str | None]


class Unreadable(ValueError):
    """No JSON, or one whose meaning two readers may not agree on."""


@dataclass(frozen=True)
class Each:
    """Every element of a list."""

    shape: "Shape"


@dataclass(frozen=True)
class Keys:
    """Every key of an object; ``change`` gets the key and returns the new one, quoted."""

    change: Change


@dataclass(frozen=True)
class Whole:
    """An object as its members: name, value, and the value as it was written. One of more than
    ``most`` is refused.
    """

    change: "Callable[[list[tuple[str, Any, str]]], str | None]"
    most: int | None = None


# Where to look: fields of an object by name, elements, keys, or the very place.
Shape = Mapping[str, "Shape"] | Each | Keys | Whole | Change


@dataclass(frozen=True)
class Member:
    """One member of an object: its name, and where name and value begin and end."""

    name: str
    begin: int
    colon: int
    value: int


@dataclass
class Edits:
    """Places to replace in ``text``, found by walking a shape over it.

    ``strict`` refuses an object of the shape that names one of its fields twice, and one of
    more than ``most`` members: each takes some microseconds, and a body has room for millions.
    """

    text: str
    strict: bool = True
    most: int | None = None
    places: list[tuple[int, int, str]] = field(default_factory=list)

    def walk(self, shape: Shape) -> None:
        """Look through the whole text.

        :raises Unreadable: it is no JSON.
        """
        try:
            end = self._walk(_past(self.text, 0), shape)
        except (StopIteration, RecursionError, IndexError, ValueError) as error:
            if isinstance(error, Unreadable):
                raise
            raise Unreadable(str(error) or type(error).__name__) from error
        if _past(self.text, end) != len(self.text):
            raise Unreadable(f"text after the end, at character {end}")

    def made(self) -> str:
        """The text with every place replaced."""
        parts, at = [], 0
        for begin, end, new in sorted(self.places):
            parts += [self.text[at:begin], new]
            at = end
        return "".join([*parts, self.text[at:]])

    def _walk(self, at: int, shape: Shape) -> int:
        text = self.text
        first = text[at : at + 1]
        if isinstance(shape, Mapping) and first == "{":
            return self._fields(at, shape)
        if isinstance(shape, Each) and first == "[":
            return self._elements(at, shape.shape)
        if isinstance(shape, Keys) and first == "{":
            return self._keys(at, shape.change)
        if isinstance(shape, Whole) and first == "{":
            return self._whole(at, shape)
        value, end = SCAN(text, at)
        if callable(shape) and (new := shape(value)) is not None:
            self.places.append((at, end, new))
        return int(end)

    def _fields(self, at: int, shape: "Mapping[str, Shape]") -> int:
        names: set[str] = set()

        def value(member: Member) -> int:
            if (inner := shape.get(member.name)) is None:
                return int(SCAN(self.text, member.value)[1])
            if self.strict and member.name in names:
                raise Unreadable(f"the field {member.name!r} is there twice")
            names.add(member.name)
            return self._walk(member.value, inner)

        return self._members(at, value, self.most)

    def _keys(self, at: int, change: Change) -> int:
        def value(member: Member) -> int:
            if (new := change(member.name)) is not None:
                self.places.append((member.begin, member.colon, new))
            return int(SCAN(self.text, member.value)[1])

        return self._members(at, value)

    def _whole(self, at: int, shape: Whole) -> int:
        members: list[tuple[str, Any, str]] = []

        def value(member: Member) -> int:
            read, end = SCAN(self.text, member.value)
            members.append((member.name, read, self.text[member.value : end]))
            return int(end)

        end = self._members(at, value, shape.most)
        if (new := shape.change(members)) is not None:
            self.places.append((at, end, new))
        return end

    def _members(self, at: int, value: Callable[[Member], int], most: int | None = None) -> int:
        text = self.text
        at = _past(text, at + 1)
        if text[at] == "}":
            return at + 1
        count = 0
        while True:
            count += 1
            if most is not None and count > most:
                raise Unreadable(f"an object of more than {most} members")
            if text[at] != '"':
                raise Unreadable(f"no name at character {at}")
            name, colon = scanstring(text, at + 1, True)
            begin, colon_at = at, _past(text, colon)
            if text[colon_at] != ":":
                raise Unreadable(f"no colon at character {colon_at}")
            at = _past(text, value(Member(name, begin, colon, _past(text, colon_at + 1))))
            if text[at] == "}":
                return at + 1
            at = self._comma(at)

    def _elements(self, at: int, shape: Shape) -> int:
        at = _past(self.text, at + 1)
        if self.text[at] == "]":
            return at + 1
        while True:
            at = _past(self.text, self._walk(at, shape))
            if self.text[at] == "]":
                return at + 1
            at = self._comma(at)

    def _comma(self, at: int) -> int:
        if self.text[at] != ",":
            raise Unreadable(f"no comma at character {at}")
        return _past(self.text, at + 1)


def first_member(text: str, name: str, value: str) -> tuple[int, int, str]:
    """The place and text of a new first member of the object that ``text`` is."""
    begin = text.index("{") + 1
    more = "" if text[_past(text, begin)] == "}" else ", "
    return begin, begin, f"{json.dumps(name)}: {value}{more}"


def decoded(body: bytes) -> tuple[str, str]:
    """A body as text, and its encoding: as ``json.loads`` takes it.

    :raises Unreadable: the bytes do not fit the encoding they begin with.
    """
    encoding = json.detect_encoding(body)
    try:
        return body.decode(encoding, "surrogatepass"), encoding
    except UnicodeError as error:
        raise Unreadable(str(error)) from error


def encoded(text: str, encoding: str) -> bytes:
    """``decoded`` the way back."""
    return text.encode(encoding, "surrogatepass")


def _past(text: str, at: int) -> int:
    """Where the blanks at ``at`` end."""
    if at < len(text) and text[at] > " ":
        return at
    found = BLANK(text, at)
    return found.end() if found else at
