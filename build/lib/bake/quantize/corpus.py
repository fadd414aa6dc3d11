"""Which tokens AWQ looks at: texts of a corpus in an order of the seed, back to back. Pure but for
reading the two files.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bake.errors import BakeError, Malformed
from bake.quantize.recipe import Recipe

MAX_BYTES = 256 * 1024**2


def texts(path: Path) -> list[str]:
    """The texts of a corpus: JSON lines with ``text``.

    :raises BakeError: it is not there.
    :raises Malformed: a line is no object with a text.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BakeError(f"{path}: more than {MAX_BYTES} bytes", "give a smaller corpus")
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        hint = "give one with --corpus, or say --scheme rtn-w4a16"
        raise BakeError(f"{path}: no corpus there: {error.strerror}", hint) from error
    except UnicodeDecodeError as error:
        raise Malformed(
            str(path), "is not UTF-8", error.start, "give a file of JSON lines"
        ) from error
    return [_text(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _text(path: Path, number: int, line: str) -> str:
    try:
        told: Any = json.loads(line)
    except (ValueError, RecursionError):
        told = None
    text = told.get("text") if isinstance(told, dict) else None
    if not isinstance(text, str):
        hint = 'give JSON lines such as {"source": "…", "text": "…"}'
        raise Malformed(str(path), f"line {number} is no object with a text", hint=hint)
    return text


def windows(chosen: Sequence[str], tokenizer: Path, recipe: Recipe) -> NDArray[np.int64]:
    """``samples`` × ``sequence`` token ids; fewer samples where the corpus ends.

    :raises BakeError: no tokenizer there, or not one sequence of text.
    """
    from tokenizers import Tokenizer

    if not tokenizer.is_file():
        raise BakeError(f"{tokenizer}: not there, so no text can be read", "say --scheme rtn-w4a16")
    try:
        encoder = Tokenizer.from_file(str(tokenizer))
    # The library raises Exception itself.
    except Exception as error:
        raise Malformed(str(tokenizer), f"no tokenizer: {error!s:.200}") from error
    order = list(chosen)
    random.Random(recipe.seed).shuffle(order)  # noqa: S311 - an order, not a secret
    wanted = recipe.samples * recipe.sequence
    ids: list[int] = []
    for text in order:
        ids.extend(encoder.encode(text).ids)
        if len(ids) >= wanted:
            break
    rows = min(len(ids), wanted) // recipe.sequence
    if not rows:
        hint = "say a smaller --sequence, or give a larger corpus"
        raise BakeError(f"the corpus has {len(ids)} tokens, not {recipe.sequence}", hint)
    return np.array(ids[: rows * recipe.sequence], np.int64).reshape(rows, recipe.sequence)
