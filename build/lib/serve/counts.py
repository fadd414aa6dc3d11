"""Whether counts of tokens are of a model's own vocabulary: told before an engine dies of it.

A model's counts are found by its name, and a folder of any name can be served. Reads what
``serve.plugin.draft_vocabulary`` will read, and imports as little.
"""

import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.plugin import draft_vocabulary

# Whatever damaged JSON, or JSON of another form, makes of the readers.
DAMAGED = (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, zlib.error)
SHOWN = 12


@dataclass(frozen=True)
class Counts:
    """The file ``path``; ``least`` tokens always stay, whatever their use. ``misfit`` says why it
    is not of this model; empty where it is.
    """

    path: Path
    least: int = 0
    misfit: str = ""


def read(path: Path, model: Path, tokens: int | None) -> Counts:
    """What the counts in ``path`` are to the checkpoint in ``model``, of as many ``tokens``."""
    try:
        told = json.loads(path.read_bytes())["tokenizer"]
        if misfit := _misfit(told, model, tokens):
            return Counts(path, misfit=misfit)
        rows = told["tokens"] if tokens is None else tokens
        levels, required = draft_vocabulary.counted(model, path, rows)
        if len(levels) > rows:
            raise ValueError(f"{len(levels)} levels for {rows} tokens")
        return Counts(path, least=len(required))
    except DAMAGED as error:
        what = f"{type(error).__name__}: {error}"
        return Counts(path, misfit=f"{path.name} cannot be compared with its vocabulary: {what}")


def _misfit(told: Any, model: Path, tokens: int | None) -> str:
    """In what a vocabulary that was counted with is not that of ``model``."""
    counted, digest = int(told["tokens"]), str(told["sha256"])
    pruned = model / draft_vocabulary.VOCAB_MAP
    if pruned.is_file():
        # Who pruned it had the texts of all tokens, and compared them.
        tokens = int(json.loads(pruned.read_bytes())["original_size"])
    elif (own := vocabulary(model / "tokenizer.json")) != digest:
        return (
            f"its counts are of another vocabulary ({digest[:SHOWN]}…, its own is {own[:SHOWN]}…)"
        )
    if tokens is not None and counted > tokens:
        return f"its counts are of {counted} tokens, and it has {tokens}"
    return ""


def vocabulary(tokenizer: Path) -> str:
    """SHA-256 over the vocabulary's texts in the order of ids, in hex: the digest that counts tell
    (``bake.vocabulary.tokenizer``), less its checks of the form.
    """
    vocab = json.loads(tokenizer.read_bytes())["model"]["vocab"]
    total = hashlib.sha256()
    for text in sorted(vocab, key=vocab.__getitem__):
        total.update(text.encode(errors="surrogatepass") + b"\0")
    return total.hexdigest()
