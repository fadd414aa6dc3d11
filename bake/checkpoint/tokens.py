"""What a checkpoint's tokenizer is, in a few facts: how many tokens, how they merge, which end."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bake.checkpoint.contents import Contents, Listed
from bake.checkpoint.folder import read_object
from bake.errors import Malformed

TOKENIZER = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
MAX_BYTES = 256 * 1024**2
LIST = "tokenizer.ggml.tokens"


@dataclass(frozen=True)
class Tokens:
    """``tokens`` counts all, specials too; ``highest`` is the largest id."""

    kind: str
    tokens: int
    highest: int
    merges: int = 0
    specials: int = 0
    bos: str = ""
    eos: str = ""
    template: bool = False


def of_gguf(contents: Contents) -> Tokens | None:
    """As GGUF's metadata tells it; none if it has no tokens."""
    told = contents.metadata
    count = _count(told.get(LIST))
    if not count:
        return None
    kind = str(told.get("tokenizer.ggml.model", "unknown"))
    if before := told.get("tokenizer.ggml.pre"):
        kind = f"{kind} ({before})"
    return Tokens(
        kind,
        count,
        count - 1,
        merges=_count(told.get("tokenizer.ggml.merges")),
        bos=str(told.get("tokenizer.ggml.bos_token_id", "")),
        eos=str(told.get("tokenizer.ggml.eos_token_id", "")),
        template="tokenizer.chat_template" in told,
    )


def of_folder(files: Mapping[str, Path]) -> Tokens | None:
    """As ``tokenizer.json`` tells it; none without one.

    :raises Malformed: it is no tokenizer.
    """
    if TOKENIZER not in files:
        return None
    told = read_object(files[TOKENIZER], MAX_BYTES)
    settings = read_object(files[SETTINGS]) if SETTINGS in files else {}
    model = told.get("model")
    ids = _ids(model.get("vocab") if isinstance(model, dict) else None)
    added = told.get("added_tokens") or []
    if not isinstance(model, dict) or ids is None or not isinstance(added, list):
        raise Malformed(str(files[TOKENIZER]), "no model with a vocabulary")
    extra = {one["id"] for one in added if isinstance(one, dict) and type(one.get("id")) is int}
    merges = model.get("merges")
    return Tokens(
        str(model.get("type", "unknown"))[:40],
        len(ids | extra),
        max(ids | extra, default=-1),
        merges=len(merges) if isinstance(merges, list) else 0,
        specials=len(extra),
        bos=_token(settings.get("bos_token")),
        eos=_token(settings.get("eos_token")),
        template="chat_template" in settings or TEMPLATE in files,
    )


def _ids(vocabulary: Any) -> set[int] | None:
    """BPE and WordPiece map tokens to ids; Unigram lists them."""
    if isinstance(vocabulary, list):
        return set(range(len(vocabulary)))
    if not isinstance(vocabulary, dict):
        return None
    ids = set(vocabulary.values())
    return ids if all(type(one) is int for one in ids) else None


def _token(told: Any) -> str:
    content = told.get("content") if isinstance(told, dict) else told
    return content if isinstance(content, str) else ""


def _count(told: Any) -> int:
    if isinstance(told, Listed):
        return told.count
    return len(told) if isinstance(told, list) else 0
