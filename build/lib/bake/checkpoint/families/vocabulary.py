"""The tokens of a GGUF: texts, kinds, and which begin and end a text.

The list is what somebody put into a file. An empty token counts as unused, as llama.cpp has it;
one that is not UTF-8, or stands there twice, is refused: the folder's tokenizer is a mapping of
texts to ids, and would lose one of them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bake.checkpoint.families.metadata import Metadata
from bake.errors import Malformed, Unsupported

# llama_token_type of llama.cpp.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
LONGEST = 4096
# Texts after which llama.cpp stops writing (special_eog_ids, b11434): a file names one end, and
# a chat has another.
ENDS_WORDS = """
    <|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn>
    <|endoftext|> <|eom_id|> <EOT> _<EOT> [EOT] <|end_of_text|> <end_of_utterance>
"""
ENDS = frozenset(ENDS_WORDS.split())


@dataclass(frozen=True)
class Specials:
    """Ids, where a file names them."""

    bos: int | None
    eos: int | None
    unk: int | None
    pad: int | None
    ends: tuple[int, ...] = ()


@dataclass(frozen=True)
class Vocabulary:
    """``texts`` has an empty text where an id is not used. ``kinds`` are llama_token_type."""

    texts: list[str]
    kinds: NDArray[np.int64]
    specials: Specials

    def text(self, number: int | None) -> str | None:
        """That of an id."""
        return None if number is None else self.texts[number] or None

    def ids(self) -> dict[str, int]:
        """Every text that is used."""
        return {text: i for i, text in enumerate(self.texts) if text}

    def of_kind(self, *kinds: int) -> list[int]:
        """Ids of used tokens of these kinds."""
        found = np.flatnonzero(np.isin(self.kinds, kinds)).tolist()
        return [number for number in found if self.texts[number]]


def vocabulary(metadata: Metadata, rows: int, *, spm: bool) -> Vocabulary:
    """The tokens for an embedding of so many ``rows``.

    :raises Malformed: the list is damaged, or longer than the embedding.
    :raises Unsupported: it is missing, or has a token twice.
    """
    own = metadata.under("tokenizer.ggml")
    raw = own.texts("tokens")
    if not raw:
        raise Unsupported(f"{own.where}: tokenizer.ggml.tokens is missing: it has no vocabulary")
    if len(raw) > rows:
        raise Malformed(own.where, f"{len(raw)} tokens, and an embedding of {rows} rows")
    kinds = _kinds(own, len(raw))
    texts = [_text(own.where, i, one) for i, one in enumerate(raw)]
    for i in np.flatnonzero(kinds == UNUSED):
        texts[i] = ""
    _check_once(own.where, texts)
    return Vocabulary(texts, kinds, _specials(own, texts, kinds, spm=spm))


def _text(where: str, number: int, raw: bytes) -> str:
    if len(raw) > LONGEST:
        raise Malformed(where, f"token {number} is {len(raw)} bytes long")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise Malformed(where, f"token {number} is not UTF-8: {raw[:40]!r}") from error


def _kinds(own: Metadata, count: int) -> NDArray[np.int64]:
    told = own.numbers("token_type")
    if told is None:
        return np.full(count, NORMAL, np.int64)
    if len(told) != count or told.dtype.kind not in "iu":
        raise Malformed(own.where, f"{len(told)} token types for {count} tokens")
    kinds = told.astype(np.int64)
    if kinds.min() < 0 or kinds.max() > BYTE:
        raise Malformed(own.where, f"a token type is not from 0 to {BYTE}")
    return kinds


def _check_once(where: str, texts: list[str]) -> None:
    seen: dict[str, int] = {}
    for i, text in enumerate(texts):
        if text and (first := seen.setdefault(text, i)) != i:
            raise Unsupported(
                f"{where}: tokens {first} and {i} are both {text[:40]!r}",
                "a tokenizer of this kind has each text once",
            )


def _specials(own: Metadata, texts: list[str], kinds: NDArray[np.int64], *, spm: bool) -> Specials:
    """llama.cpp takes 1, 2 and 0 of a SentencePiece vocabulary that names none; its defaults for
    others are Falcon's, and nobody's meaning.
    """
    default = {"bos": 1, "eos": 2, "unknown": 0} if spm else {}

    def one(name: str) -> int | None:
        key = f"{name}_token_id"
        if own.get(key) is None:
            number = default.get(name)
            return number if number is not None and number < len(texts) else None
        number = own.natural(key)
        if number >= len(texts):
            raise Malformed(own.where, f"tokenizer.ggml.{key} is {number}, of {len(texts)} tokens")
        return number

    eos = one("eos")
    control = np.flatnonzero(kinds == CONTROL).tolist()
    ends = [i for i in control if texts[i] in ENDS]
    named = [eos, one("eot"), one("eom"), *ends]
    return Specials(
        one("bos"), eos, one("unknown"), one("padding"), tuple(dict.fromkeys(_there(named)))
    )


def _there(numbers: list[int | None]) -> list[int]:
    return [number for number in numbers if number is not None]
