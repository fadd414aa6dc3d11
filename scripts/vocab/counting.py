"""Tokens of texts counted by group, and the groups weighed against each other."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bake.progress import Shown
from scripts.vocab.texts import CODE, NEVER_COUNTED, Text

Histogram = NDArray[np.int64]
AT_ONCE = 64
# Tokens that all shares together stand for.
TOTAL = 2**25
ENGLISH, CODES, OTHERS = "english", "code", "other languages"


def ids_of(tokenizer: Any, texts: Sequence[Text], shown: Shown) -> Iterator[tuple[Text, list[int]]]:
    """Each text with its ids, without what a post-processor would add."""
    for at in range(0, len(texts), AT_ONCE):
        some = texts[at : at + AT_ONCE]
        encoded = tokenizer.encode_batch_fast([one.text for one in some], add_special_tokens=False)
        yield from zip(some, (one.ids for one in encoded), strict=True)
        shown(at + len(some), len(texts))


def histograms(
    tokenizer: Any, texts: Sequence[Text], tokens: int, shown: Shown
) -> dict[str, Histogram]:
    """Counts by id of each group."""
    found: dict[str, Histogram] = {}
    for text, ids in ids_of(tokenizer, texts, shown):
        group = found.setdefault(text.group, np.zeros(tokens, np.int64))
        group += np.bincount(ids, minlength=tokens)
    return found


def kind_of(group: str) -> str:
    """English, code, or another language."""
    return ENGLISH if group == "en" else CODES if group.startswith(CODE) else OTHERS


def weights(sizes: Mapping[str, int], shares: Mapping[str, float]) -> dict[str, float]:
    """The share of each group: those of a kind divide its share by the square root of their sizes,
    so that a language of few texts is not drowned by one of many.

    ``shares`` are of kinds, or of groups themselves.
    """
    of = {group: group if group in shares else kind_of(group) for group in sizes}
    roots = {group: size**0.5 for group, size in sizes.items() if of[group] in shares}
    totals: dict[str, float] = {}
    for group, root in roots.items():
        totals[of[group]] = totals.get(of[group], 0.0) + root
    given = sum(shares[kind] for kind in totals)
    return {g: shares[of[g]] / given * root / totals[of[g]] for g, root in roots.items() if root}


def weighed(
    found: Mapping[str, Histogram], shares: Mapping[str, float]
) -> tuple[NDArray[np.float64], dict[str, float]]:
    """Counts by id as if each group had its share of 2^25 tokens, and the shares."""
    given = weights({group: int(one.sum()) for group, one in found.items()}, shares)
    total = np.zeros(len(next(iter(found.values()))), np.float64)
    for group, share in given.items():
        total += found[group] * (share * TOTAL / found[group].sum())
    return total, given


def counted(texts: Sequence[Text]) -> list[Text]:
    """Those that a vocabulary is counted on."""
    return [one for one in texts if not one.held_out]


def held_out(texts: Sequence[Text]) -> dict[str, list[Text]]:
    """Those that it is not: texts of the same sources, and of sources that are never counted."""
    rest = [one for one in texts if one.held_out]
    return {
        "same sources": [one for one in rest if one.source not in NEVER_COUNTED],
        "other sources": [one for one in rest if one.source in NEVER_COUNTED],
    }
