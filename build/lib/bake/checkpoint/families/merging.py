"""``tokenizer.json``'s parts for the two ways GGUF's models merge: bytes by a list of merges
(``gpt2``), and characters by the scores of what they become (``llama``, SentencePiece).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bake.checkpoint.families.metadata import Metadata
from bake.checkpoint.families.splits import SPLITS, Split, byte_level
from bake.checkpoint.families.vocabulary import BYTE, NORMAL, UNKNOWN, Vocabulary
from bake.errors import Malformed, Unsupported

SPACE = "▁"
# Characters of a vocabulary whose merges are worked out, and of one token: a few times what the
# largest has. Every place to cut each of them is looked at.
MOST_CHARACTERS, MOST_OF_ONE = 4_000_000, 256

Parts = dict[str, Any]


def of_bytes(metadata: Metadata, tokens: Vocabulary) -> Parts:
    """A byte-level tokenizer's normalizer, splits, model and decoder.

    :raises Unsupported: how it cuts text is not known, or merges are missing.
    :raises Malformed: a merge is none.
    """
    ids = tokens.ids()
    split = split_of(metadata)
    return {
        "normalizer": split.normalizer,
        "pre_tokenizer": split.pre_tokenizer,
        "post_processor": {**byte_level(regex=True), "trim_offsets": False},
        "decoder": byte_level(regex=True),
        "model": bpe(ids, _listed(metadata, ids), ignore_merges=split.whole),
    }


def split_of(metadata: Metadata) -> Split:
    """:raises Unsupported: the file does not say how text is cut, or it is not known here."""
    name = metadata.text("tokenizer.ggml.pre", "default")
    if name not in SPLITS:
        raise Unsupported(
            f"{metadata.where}: tokenizer.ggml.pre {name[:40]!r} is not known here",
            f"how it cuts text cannot be told; known: {', '.join(SPLITS)}",
        )
    return SPLITS[name]


def of_characters(metadata: Metadata, tokens: Vocabulary) -> Parts:
    """A SentencePiece tokenizer's parts.

    :raises Unsupported: scores are missing.
    :raises Malformed: scores are none, or texts are longer than any vocabulary's.
    """
    own = metadata.under("tokenizer.ggml")
    scores = own.numbers("scores")
    if scores is None:
        raise Unsupported(f"{own.where}: tokenizer.ggml.scores is missing: nothing can be merged")
    if len(scores) != len(tokens.texts):
        raise Malformed(own.where, f"{len(scores)} scores for {len(tokens.texts)} tokens")
    spaced = own.truth("add_space_prefix", default=True)
    if own.truth("remove_extra_whitespaces", default=False):
        raise Unsupported(f"{own.where}: tokenizer.ggml.remove_extra_whitespaces is not converted")
    model = bpe(
        tokens.ids(),
        scored(own.where, tokens, scores),
        byte_fallback=len(tokens.of_kind(BYTE)) == 256,
        unk_token=tokens.text(tokens.specials.unk),
        fuse_unk=True,
    )
    return {
        "normalizer": _spaces(spaced=spaced),
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": _unspaced(spaced=spaced),
        "model": model,
    }


def scored(where: str, tokens: Vocabulary, scores: NDArray[Any]) -> list[tuple[str, str]]:
    """Merges that a vocabulary of scores implies: the best score first. All that two tokens can
    be put together as a third stands there; those of one token, the longest left part first.

    :raises Malformed: texts are longer than any vocabulary's.
    """
    normal = tokens.of_kind(0, NORMAL, UNKNOWN)
    # Those of other kinds are not made of parts, and are no parts.
    parts = {tokens.texts[i] for i in normal}
    if sum(map(len, parts)) > MOST_CHARACTERS or max(map(len, parts), default=0) > MOST_OF_ONE:
        raise Malformed(where, "its tokens are longer than any vocabulary's")
    order = np.array(normal, np.int64)[np.argsort(-scores[normal], kind="stable")]
    found = []
    for text in map(tokens.texts.__getitem__, order.tolist()):
        for at in range(len(text) - 1, 0, -1):
            if (left := text[:at]) in parts and (right := text[at:]) in parts:
                found.append((left, right))
    return found


def _listed(metadata: Metadata, ids: dict[str, int]) -> list[tuple[str, str]]:
    where = metadata.where
    raw = metadata.texts("tokenizer.ggml.merges")
    if raw is None:
        raise Unsupported(f"{where}: tokenizer.ggml.merges is missing: nothing can be merged")
    found: dict[tuple[str, str], None] = {}
    for i, one in enumerate(raw):
        # The first byte may be a space itself: llama.cpp looks from the second.
        left, _, right = one[1:].partition(b" ")
        try:
            pair = ((one[:1] + left).decode(), right.decode())
        except UnicodeDecodeError as error:
            raise Malformed(where, f"merge {i} is not UTF-8: {one[:40]!r}") from error
        if pair[0] not in ids or pair[1] not in ids or "".join(pair) not in ids:
            raise Malformed(where, f"merge {i} is not of two tokens to a third: {one[:80]!r}")
        # llama.cpp keeps the first of two that are alike.
        found.setdefault(pair)
    return list(found)


def bpe(ids: Mapping[str, int], merges: Sequence[Sequence[str]], **more: Any) -> Parts:
    """The model of a ``tokenizer.json``, as tokenizers 0.23 writes it: of pairs, nothing else but
    what ``more`` says.
    """
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **more,
        "vocab": ids,
        "merges": merges,
    }


def _spaces(*, spaced: bool) -> Parts:
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if not spaced:
        return replace
    return {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace]}


def _unspaced(*, spaced: bool) -> Parts:
    steps: list[Parts] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if spaced:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}
