"""Ids of tokens in configs: where they stand, and how they are numbered anew.

One walk knows the places. It serves to find what must be kept and, with other numbers, to rewrite.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from bake.errors import BakeError

Number = Callable[[int], int]
# transformers 5 and vLLM 0.32: eos_token_id, image_token_index, forced_bos_token_id, …
KEYS = re.compile(r"(^|_)token_(id|ids|index|indices)$")
# Of generation_config.json, named otherwise.
LISTS = {
    "bad_words_ids",
    "begin_suppress_tokens",
    "force_words_ids",
    "suppress_tokens",
}
# Pairs of ids and something that is none: a bias. Pairs of a position and an id.
BIAS, POSITIONS = "sequence_bias", "forced_decoder_ids"
SIZE = "vocab_size"
DECODER = "added_tokens_decoder"


def over_ids(value: Any, number: Number) -> Any:
    """``value`` with every id in it through ``number``. Below zero, and nothing, is no id."""
    if isinstance(value, list):
        return [over_ids(one, number) for one in value]
    if type(value) is int and value >= 0:
        return number(value)
    return value


def over_tree(tree: Any, number: Number, size: Number) -> Any:
    """A config with its ids through ``number``, and each ``vocab_size`` through ``size``."""
    if isinstance(tree, list):
        return [over_tree(one, number, size) for one in tree]
    if not isinstance(tree, dict):
        return tree
    return {key: _value(key, value, number, size) for key, value in tree.items()}


def _value(key: str, value: Any, number: Number, size: Number) -> Any:
    if key == SIZE and type(value) is int:
        return size(value)
    if key == DECODER and isinstance(value, dict):
        return {str(number(int(token))): told for token, told in value.items()}
    if key == BIAS and isinstance(value, list):
        return [[over_ids(ids, number), bias] for ids, bias in value]
    if key == POSITIONS and isinstance(value, list):
        return [[position, over_ids(token, number)] for position, token in value]
    if KEYS.search(key) or key in LISTS:
        return over_ids(value, number)
    return over_tree(value, number, size)


def ids_in(tree: Any, rows: int, tokens: int, where: str) -> set[int]:
    """Every id that a config names.

    :raises BakeError: one that no token has, or another ``vocab_size`` than the table's ``rows``.
    """
    found: set[int] = set()

    def note(token: int) -> int:
        if token >= tokens:
            raise BakeError(
                f"{where}: names the id {token}, and the tokenizer's are 0 to {tokens - 1}",
                "take tokenizer and config of one model",
            )
        found.add(token)
        return token

    def same(size: int) -> int:
        if size != rows:
            raise BakeError(
                f"{where}: {SIZE} is {size}, and the embedding has {rows} rows",
                "take weights and config of one model",
            )
        return size

    over_tree(tree, note, same)
    return found


class Numbering:
    """Old ids → new ones: those that stay, in order, from 0 on."""

    def __init__(self, kept: tuple[int, ...]) -> None:
        self.kept = kept
        self._new: Mapping[int, int] = {old: new for new, old in enumerate(kept)}

    def __call__(self, token: int) -> int:
        """The new id.

        :raises KeyError: the token is dropped; whoever asks has kept what it names.
        """
        return self._new[token]
