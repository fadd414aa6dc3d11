"""One spelling for a tree of JSON: sorted keys, no spaces, a trailing newline.

Readers take that spelling and no other, so that equal files mean equal bytes, and a digest of the
bytes is one of the meaning.
"""

import json
from collections.abc import Sequence
from math import isfinite
from typing import Any


def canonical(tree: Any) -> bytes:
    """The one spelling of ``tree``, with its newline."""
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return (text + "\n").encode()


def strict(raw: bytes) -> Any:
    """What ``raw`` spells: UTF-8, no key twice, no ``NaN``, no number beyond a float's range.

    :raises ValueError: saying what is wrong; ``json.JSONDecodeError`` tells where.
    :raises RecursionError: nested too deep.
    """
    return json.loads(
        raw.decode(),
        object_pairs_hook=unique,
        parse_constant=_no_constant,
        parse_float=_finite,
    )


def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """For ``json``: a mapping of ``pairs``.

    :raises ValueError: a key stands twice.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _finite(text: str) -> float:
    if not isfinite(number := float(text)):
        raise ValueError(f"{text[:40]} is beyond what a number can be")
    return number


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")
