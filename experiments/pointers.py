"""Values of a record by JSON pointer (RFC 6901), and all its numbers with their places.

Knows nothing of files and nothing of what a record measures.
"""

from collections.abc import Iterator
from typing import Any

Path = tuple[str, ...]


def number_at(document: Any, pointer: str) -> float:
    """The number at ``pointer``.

    :raises KeyError: nothing lies there; the text says how far the pointer led and what it could
        have been.
    :raises ValueError: what lies there is no number.
    """
    found = document
    for step, part in enumerate(_parts(pointer)):
        found = _child(found, part, pointer, step)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ValueError(f"{pointer} is no number: {str(found)[:60]!r}")
    return float(found)


def _child(parent: Any, part: str, pointer: str, step: int) -> Any:
    if isinstance(parent, dict) and part in parent:
        return parent[part]
    if isinstance(parent, list) and part.isdigit() and int(part) < len(parent):
        return parent[int(part)]
    names = ", ".join(map(str, parent))[:120] if isinstance(parent, dict) else "nothing"
    raise KeyError(f"{pointer}: no {part!r} at step {step + 1} (there is: {names})")


def _parts(pointer: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]


def numbers(document: Any, path: Path = ()) -> Iterator[tuple[Path, float]]:
    """Every number under ``document`` with its place, in order; truth values are none."""
    if isinstance(document, bool):
        return
    if isinstance(document, int | float):
        yield path, float(document)
    elif isinstance(document, dict | list):
        pairs = document.items() if isinstance(document, dict) else enumerate(document)
        for key, value in pairs:
            yield from numbers(value, (*path, str(key)))


def spelled(path: Path) -> str:
    """``path`` as a JSON pointer."""
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in path)
