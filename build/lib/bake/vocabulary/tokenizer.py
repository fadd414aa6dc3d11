"""A ``tokenizer.json`` of byte-level BPE: read with care, and made again of fewer tokens.

The form is that of Hugging Face ``tokenizers`` 0.23: ``model.vocab`` maps texts to ids from 0 on,
``model.merges`` lists pairs by rank, ``added_tokens`` stand outside or name a text of the
vocabulary. On loading, the library numbers added tokens that are new from the vocabulary's length
on, whatever id stands there, so ids without gaps are a need and not a taste.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bake.checkpoint.folder import read_whole
from bake.errors import Malformed, Unsupported
from bake.vocabulary.bpe import Bpe
from bake.vocabulary.ids import Number, over_ids
from blob.spelling import unique

NAME = "tokenizer.json"
# Ten times the largest known.
MOST_BYTES = 256 * 1024**2
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
# GPT-2's spelling of bytes: printable ones of Latin-1 are themselves, the others follow U+0100.
SPELLED = {byte: chr(byte) for byte in PRINTABLE} | {
    byte: chr(256 + at) for at, byte in enumerate(OTHERS)
}
BYTES = {text: byte for byte, text in SPELLED.items()}
ONLY = "only byte-level BPE is pruned (GPT-2, Llama 3, Qwen, …)"


@dataclass(frozen=True)
class Added:
    """A token that is found in a text as it stands."""

    id: int
    text: str


@dataclass(frozen=True)
class Tokenizer:
    """``texts`` by id: the vocabulary's as bytes are spelled, then those of added tokens."""

    tree: Mapping[str, Any]
    texts: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]
    added: tuple[Added, ...]

    @property
    def vocabulary(self) -> int:
        """Tokens of the model itself."""
        return len(self.tree["model"]["vocab"])

    @property
    def digest(self) -> str:
        """SHA-256 of the vocabulary's texts in the order of ids: equal however the file is laid
        out, and whatever was added to it, as that is kept in any case.
        """
        total = hashlib.sha256()
        for text in self.texts[: self.vocabulary]:
            total.update(text.encode(errors="surrogatepass") + b"\0")
        return total.hexdigest()

    def by_merging(self) -> list[int]:
        """Ids that texts should become by merging: all but those of added tokens."""
        added = {one.id for one in self.added}
        return [token for token in range(len(self.texts)) if token not in added]

    def bytes_of(self, token: int) -> bytes:
        """What a token of the vocabulary stands for."""
        return bytes(BYTES[one] for one in self.texts[token])

    def bytes_there(self) -> list[int]:
        """Ids of single bytes. A vocabulary may lack some: those that its corpus never had."""
        ids = self.tree["model"]["vocab"]
        return [ids[text] for text in SPELLED.values() if text in ids]

    def bpe(self) -> Bpe:
        """How its tokens are made of bytes."""
        ids = self.tree["model"]["vocab"]
        ranks = {
            (ids[left], ids[right]): (rank, ids[left + right])
            for rank, (left, right) in enumerate(self.merges)
        }
        added = {one.id for one in self.added}
        pieces = [
            None if token in added else _pieces(text, ids) for token, text in enumerate(self.texts)
        ]
        return Bpe(ranks, pieces, whole=bool(self.tree["model"].get("ignore_merges")))


def _pieces(text: str, ids: Mapping[str, int]) -> tuple[int, ...] | None:
    if all(one in BYTES and one in ids for one in text):
        return tuple(ids[one] for one in text)
    return None


def read(path: Path) -> Tokenizer:
    """The tokenizer in the file ``path``; errors as ``parsed``."""
    return parsed(read_whole(path, MOST_BYTES), str(path))


def parsed(raw: bytes, name: str) -> Tokenizer:
    """The tokenizer that ``raw`` is.

    :raises Malformed: it is not JSON, or says two things of one token.
    :raises Unsupported: it is not byte-level BPE; the message says what it is.
    """
    try:
        tree = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise Malformed(name, f"not JSON: {error}") from error
    if not isinstance(tree, dict) or not isinstance(model := tree.get("model"), dict):
        raise Malformed(name, "no object with a 'model'")
    _check_kind(tree, model, name)
    ids, merges = _vocab(model, name), _merges(model, name)
    _check_merges(merges, ids, name)
    added = _added(tree, ids, name)
    texts = [text for text, _ in sorted(ids.items(), key=lambda item: item[1])]
    texts += [one.text for one in added if one.text not in ids]
    return Tokenizer(tree, tuple(texts), merges, added)


def _check_kind(tree: Mapping[str, Any], model: Mapping[str, Any], name: str) -> None:
    kind = model.get("type") or ("BPE" if "merges" in model else "of no known kind")
    if kind != "BPE":
        raise Unsupported(f"{name}: its model is {kind!r:.40}, not byte-level BPE", ONLY)
    if model.get("byte_fallback"):
        raise Unsupported(f"{name}: is BPE of characters with byte_fallback (SentencePiece)", ONLY)
    for stage in ("pre_tokenizer", "decoder"):
        if not _has_byte_level(tree.get(stage)):
            raise Unsupported(f"{name}: is BPE, but its {stage} has no ByteLevel", ONLY)
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise Unsupported(f"{name}: its model has a {key} ({model[key]!r:.40})", ONLY)


def _has_byte_level(stage: Any) -> bool:
    if isinstance(stage, list):
        return any(map(_has_byte_level, stage))
    if not isinstance(stage, dict):
        return False
    inner = [stage.get("pretokenizers"), stage.get("decoders")]
    return stage.get("type") == "ByteLevel" or any(map(_has_byte_level, inner))


def _vocab(model: Mapping[str, Any], name: str) -> dict[str, int]:
    ids = model.get("vocab")
    if not isinstance(ids, dict) or not ids:
        raise Malformed(name, "no 'vocab' of texts and ids")
    if sorted(map(repr, ids.values())) != sorted(map(repr, range(len(ids)))):
        raise Malformed(name, f"ids of its {len(ids)} texts are not 0 to {len(ids) - 1}, each once")
    return ids


def _merges(model: Mapping[str, Any], name: str) -> tuple[tuple[str, str], ...]:
    told = model.get("merges")
    pairs = [
        tuple(one.split(" ")) if isinstance(one, str) else tuple(one)
        for one in (told if isinstance(told, list) else [])
        if isinstance(one, str | list)
    ]
    if not isinstance(told, list) or len(pairs) != len(told):
        raise Malformed(name, "no 'merges' of pairs")
    for rank, pair in enumerate(pairs):
        if len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
            raise Malformed(name, f"merge {rank} is no pair: {told[rank]!r:.80}")
    if len(set(pairs)) != len(pairs):
        twice = Counter(pairs).most_common(1)[0][0]
        raise Malformed(name, f"the merge {twice!r:.80} stands twice")
    return tuple((left, right) for left, right in pairs)


def _check_merges(merges: Sequence[tuple[str, str]], ids: Mapping[str, int], name: str) -> None:
    for rank, (left, right) in enumerate(merges):
        for text in (left, right, left + right):
            if text not in ids:
                raise Malformed(name, f"merge {rank} is of {text!r:.60}, which no id has")


def _added(tree: Mapping[str, Any], ids: Mapping[str, int], name: str) -> tuple[Added, ...]:
    told = tree.get("added_tokens") or []
    if not isinstance(told, list) or not all(map(_is_added, told)):
        raise Malformed(name, "its 'added_tokens' are no list of ids and contents")
    added = sorted((Added(one["id"], one["content"]) for one in told), key=lambda one: one.id)
    for kind in ({one.id for one in added}, {one.text for one in added}):
        if len(kind) != len(added):
            raise Malformed(name, "two of its added tokens have one id, or one content")
    following = len(ids)
    for one in added:
        wanted = ids.get(one.text, following)
        if one.id != wanted:
            detail = f"added token {one.text!r:.40} has the id {one.id}, expected {wanted}"
            raise Malformed(name, detail, hint="ids must follow the vocabulary's without a gap")
        following += one.text not in ids
    return tuple(added)


def _is_added(one: Any) -> bool:
    return (
        isinstance(one, dict) and type(one.get("id")) is int and isinstance(one.get("content"), str)
    )


def pruned(tokenizer: Tokenizer, number: Number, kept: Sequence[int]) -> dict[str, Any]:
    """The tree of a tokenizer of the ids ``kept``, numbered by ``number``.

    Merges stay in order, where both parts and what they become do.
    """
    tree, model = dict(tokenizer.tree), dict(tokenizer.tree["model"])
    last = tokenizer.vocabulary
    ids = {tokenizer.texts[token]: number(token) for token in kept if token < last}
    model["vocab"] = ids
    model["merges"] = [
        told
        for told, (left, right) in zip(model["merges"], tokenizer.merges, strict=True)
        if left in ids and right in ids and left + right in ids
    ]
    tree["model"] = model
    tree["added_tokens"] = [{**one, "id": number(one["id"])} for one in tree["added_tokens"] or []]
    for stage in ("post_processor", "padding"):
        tree[stage] = _stage(tree.get(stage), number)
    return tree


def named(tokenizer: Tokenizer) -> list[int]:
    """Ids that the file itself asks for: added tokens, the unknown one, templates, padding."""
    found = [one.id for one in tokenizer.added]
    unknown = tokenizer.tree["model"].get("unk_token")
    if unknown in tokenizer.texts:
        found.append(tokenizer.texts.index(unknown))

    def note(token: int) -> int:
        found.append(token)
        return token

    for stage in ("post_processor", "padding"):
        _stage(tokenizer.tree.get(stage), note)
    return found


def _stage(stage: Any, number: Number) -> Any:
    """A post-processor or the padding, with its ids through ``number``."""
    if not isinstance(stage, dict):
        return stage
    made = dict(stage)
    if "pad_id" in made:
        made["pad_id"] = number(made["pad_id"])
    if isinstance(inner := made.get("processors"), list):
        made["processors"] = [_stage(one, number) for one in inner]
    for key in ("sep", "cls"):
        if isinstance(pair := made.get(key), list):
            made[key] = [pair[0], number(pair[1])]
    if isinstance(specials := made.get("special_tokens"), dict):
        made["special_tokens"] = {
            text: {**one, "ids": over_ids(one["ids"], number)} for text, one in specials.items()
        }
    return made
