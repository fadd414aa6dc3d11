"""What a checkpoint's tokenizer is, in a few facts: how many tokens, how they merge, which end."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from bake.checkpoint.contents import Contents, Listed
from bake.checkpoint.folder import read_object
from bake.errors import BakeError, Malformed
from blob.files import opened

TOKENIZER = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
# Gemma 3's, among the largest, has 33 MB and 1.3 million commas.
MAX_BYTES = 64 * 1024**2
# Commas of a mapping, or of a list of pairs: no fewer than there are things in it. A million
# tokens are the most known.
COMMAS, PAIRS = 1_200_000, 2_400_000
LIST = "tokenizer.ggml.tokens"


Id = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class _Pair(msgspec.Struct, array_like=True, gc=False):
    """A merge or a token with its score: that it is there, nothing of what is in it."""


class _Added(msgspec.Struct, gc=False):
    id: Id


class _Model(msgspec.Struct):
    """Held as they are written until it is known how much they would come to."""

    vocab: msgspec.Raw
    merges: msgspec.Raw = msgspec.Raw(b"[]")
    type: str | None = None


class _File(msgspec.Struct):
    """What is asked of ``tokenizer.json``; whatever else it holds is passed over unmade."""

    model: _Model
    added_tokens: msgspec.Raw = msgspec.Raw(b"[]")


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
    settings = read_object(files[SETTINGS]) if SETTINGS in files else {}
    where = str(files[TOKENIZER])
    try:
        told = msgspec.json.decode(_raw(files[TOKENIZER]), type=_File)
        ids = _ids(told.model.vocab, where)
        merges = _things(told.model.merges, list[_Pair | str] | None, where, PAIRS) or ()
        added = _things(told.added_tokens, list[_Added] | None, where) or ()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(where, f"no model with a vocabulary: {error}") from error
    extra = {one.id for one in added}
    return Tokens(
        (told.model.type or "unknown")[:40],
        len(ids | extra),
        max(ids | extra, default=-1),
        merges=len(merges),
        specials=len(extra),
        bos=_token(settings.get("bos_token")),
        eos=_token(settings.get("eos_token")),
        template="chat_template" in settings or TEMPLATE in files,
    )


def _raw(path: Path) -> bytes:
    """:raises BakeError: it cannot be read, or is larger than any tokenizer."""
    try:
        with opened(path.resolve()) as file:
            if (size := os.fstat(file.fileno()).st_size) > MAX_BYTES:
                raise Malformed(str(path), f"is larger than {MAX_BYTES} bytes: no tokenizer is")
            return file.read(size) or b""
    except OSError as error:
        raise BakeError(f"{path}: cannot be read: {error.strerror}") from error


def _ids(vocabulary: msgspec.Raw, where: str) -> set[int]:
    """BPE and WordPiece map tokens to ids; Unigram lists them."""
    if bytes(memoryview(vocabulary)[:1]) == b"[":
        return set(range(len(_things(vocabulary, list[_Pair], where, PAIRS))))
    return set(_things(vocabulary, dict[str, Id], where).values())


def _things(raw: msgspec.Raw, kind: Any, where: str, most: int = COMMAS) -> Any:
    """``raw`` as what it should be, if there are not too many in it.

    :raises Malformed: there are.
    """
    if (commas := bytes(raw).count(b",")) > most:
        raise Malformed(where, f"{commas} commas in one list, more than {most}")
    return msgspec.json.decode(raw, type=kind)


def _token(told: Any) -> str:
    content = told.get("content") if isinstance(told, dict) else told
    return content if isinstance(content, str) else ""


def _count(told: Any) -> int:
    if isinstance(told, Listed):
        return told.count
    return len(told) if isinstance(told, list) else 0
