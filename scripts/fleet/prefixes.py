"""A load whose prompts begin alike: families of one long beginning, each visited several times.

Pure: everything follows from the texts and the seed.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scripts.latency.prompts import number


@dataclass(frozen=True)
class Shape:
    """So many beginnings of so many characters, each visited so often; tokens of each answer."""

    families: int
    visits: int
    characters: int
    tokens: int


def visited(shape: Shape, seed: int, round_: int) -> list[int]:
    """Which family each request belongs to: every one as often as the shape says, in an order of
    the round's own.
    """
    order = [family for family in range(shape.families) for _ in range(shape.visits)]
    random.Random(f"{seed} visits {round_}").shuffle(order)  # noqa: S311 - an order, no secret
    return order


def beginnings(texts: Sequence[str], shape: Shape, *key: object) -> list[str]:
    """One text for each family. They part in the first word, which no earlier ``key`` had, so that
    no cache and no router knows any of them.
    """
    whole = "\n\n".join(texts)
    stride = len(whole) // shape.families
    found = []
    for family in range(shape.families):
        turned = whole[family * stride :] + whole[: family * stride]
        # A text shorter than was asked for is said again.
        long = turned * -(-shape.characters // len(turned))
        found.append(f"{number(family, *key)}\n\n{long[: shape.characters]}")
    return found


def requests(
    begun: Sequence[str], order: Sequence[int], model: str, shape: Shape
) -> list[dict[str, Any]]:
    """A streamed completion for each visit: its family's beginning, then what nobody else asks."""
    return [
        {
            "path": "/v1/completions",
            "body": {
                "model": model,
                "prompt": f"{begun[family]}\n\nQuestion {place}: what was said?",
                "max_tokens": shape.tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            },
        }
        for place, family in enumerate(order)
    ]
