"""How often each token stands in a stated corpus: ``experiments/vocabularies/<model>.json``.

A count is kept as its logarithm in tenths of an octave, one byte an id, compressed: 7 % is nearer
than two corpora come to each other, and 248,000 counts take 200 KB. Level 0 is never seen.

    level = round(10 · log2(1 + count)),   count = 2^(level / 10) − 1
"""

import base64
import binascii
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bake.checkpoint.folder import read_object
from bake.errors import BakeError, Malformed

SCHEMA = 1
PER_OCTAVE = 10
MOST_LEVEL = 255
# No vocabulary is near; what is decompressed is bounded by it.
MOST_TOKENS = 2**22
AGAIN = "count again: python -m scripts.analyze_vocab"


@dataclass(frozen=True)
class Counts:
    """``tokenizer`` is the digest of the vocabulary counted with, which tokens may be added to.
    ``always`` are ids that stay whatever their count, as of the chat template's words. ``curve`` is
    what share of texts that were not counted would stay at several sizes.
    """

    model: str
    tokenizer: str
    levels: bytes
    always: tuple[int, ...] = ()
    corpus: Mapping[str, Any] = field(default_factory=dict)
    curve: Sequence[Mapping[str, Any]] = ()

    def numbers(self, tokens: int = 0) -> list[int]:
        """Counts to 7 %, of as many ids as there are ``tokens``; what is not known is 0."""
        levels = self.levels.ljust(tokens, b"\0")[: tokens or None]
        return [round(2 ** (level / PER_OCTAVE) - 1) for level in levels]


def levels(counts: Sequence[float]) -> bytes:
    """A byte for each count."""
    return bytes(min(MOST_LEVEL, round(PER_OCTAVE * math.log2(1 + one))) for one in counts)


def dumped(counts: Counts) -> str:
    """As it is kept."""
    told = {
        "schema": SCHEMA,
        "model": counts.model,
        "tokenizer": {"sha256": counts.tokenizer, "tokens": len(counts.levels)},
        "corpus": counts.corpus,
        "curve": list(counts.curve),
        "always": list(counts.always),
        "levels_per_octave": PER_OCTAVE,
        "levels": base64.b64encode(zlib.compress(counts.levels, 9)).decode(),
    }
    return json.dumps(told, indent=1, ensure_ascii=False) + "\n"


def read(path: Path) -> Counts:
    """The counts in the file ``path``.

    :raises BakeError: it cannot be read.
    :raises Malformed: it is something else.
    """
    told = read_object(path)
    try:
        if told["schema"] != SCHEMA or told["levels_per_octave"] != PER_OCTAVE:
            raise ValueError(f"schema {told['schema']!r:.20}, expected {SCHEMA}")
        raw = zlib.decompressobj().decompress(base64.b64decode(told["levels"]), MOST_TOKENS)
        tokenizer = told["tokenizer"]
        if len(raw) != tokenizer["tokens"]:
            raise ValueError(f"{len(raw)} levels for {tokenizer['tokens']!r:.20} tokens")
        always = tuple(told["always"])
        if not all(type(one) is int and 0 <= one < len(raw) for one in always):
            raise ValueError("'always' holds what is no id")
        digest, model = str(tokenizer["sha256"]), str(told["model"])
        return Counts(model, digest, raw, always, told["corpus"], tuple(told["curve"]))
    except (KeyError, TypeError, ValueError, binascii.Error, zlib.error) as error:
        raise Malformed(str(path), f"no counts of tokens: {error}", hint=AGAIN) from error


def check_same(counts: Counts, digest: str, tokens: int, path: Path) -> None:
    """Whether ``counts`` were made with the vocabulary of this digest.

    :raises BakeError: they were not.
    """
    if counts.tokenizer != digest:
        raise BakeError(
            f"{path}: counted with another vocabulary ({counts.tokenizer[:12]}…, "
            f"{len(counts.levels)} tokens; expected {digest[:12]}…, {tokens})",
            AGAIN,
        )
