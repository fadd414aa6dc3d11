"""Token ids of a pruned vocabulary, and those that clients know the same tokens by.

``bake.vocabulary`` renumbers the tokens it keeps; ``vocab_map.json`` beside the model says which
was which. The fields that hold ids are those of vLLM 0.32's ``protocol.py`` files, by route.
Pure: facts are passed in, nothing here knows of HTTP.
"""

import json
import re
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import msgspec

from serve.errors import ConfigError
from serve.translate_json import Each, Edits, Keys, Shape, Whole, decoded, encoded

SCHEMA = 1
GONE = 0xFFFFFFFF
# A token that `return_tokens_as_token_ids` asked to be told by its id.
PLACEHOLDER = re.compile(r"token_id:([0-9]+)")
# What an answer that holds ids holds at least; found in a text by chance, it costs only a parse.
# One by one, because each then begins with letters that are searched for as fast as memory is read.
MARKS = tuple(
    re.compile(mark)
    for mark in (
        rb'token_ids"\s*:\s*\[',
        rb"token_id:[0-9]",
        rb'"tokens"\s*:\s*\[',
        rb'"prompt_logprobs"\s*:\s*\[',
        rb'"stop_reason"\s*:\s*[0-9]',
    )
)
# Formats of a structural tag that may name a token by its id (xgrammar.structural_tag).
TOKEN_FIELDS = MappingProxyType(
    {
        "token": ("token",),
        "exclude_token": ("exclude_tokens",),
        "any_tokens": ("exclude_tokens",),
        "token_triggered_tags": ("trigger_tokens", "exclude_tokens"),
        "token_dispatch": ("rules", "exclude_tokens"),
    }
)
# How a grammar names a token by its id: xgrammar's EBNF by macros, between whose name and bracket a
# comment may stand; llguidance's Lark by `<[5]>`, `<[5-9]>` and `<[^5]>`.
TOKEN_IN_GRAMMAR = re.compile(
    r"\b(?:Exclude)?Token(?:TagDispatch)?(?:\s|#[^\n]*)*\(|<\[[\s\d,^*-]+\]>"
)
# Longer than any model's context.
MOST_IDS = 2**20
NOTHING: Mapping[str, Shape] = MappingProxyType({})


class Refused(Exception):
    """A request that cannot be translated without changing what it means."""

    def __init__(self, field: str, message: str, code: str) -> None:
        super().__init__(message)
        self.field = field
        self.code = code


@dataclass(frozen=True)
class Vocabulary:
    """``kept`` tells the original id of each that is served, ``served`` the way back or GONE."""

    kept: "array[int]"
    served: "array[int]"

    @classmethod
    def of(cls, kept: Iterable[int], original_size: int) -> "Vocabulary":
        """From the original ids in their new order, each below ``original_size`` and there once.

        :raises ValueError: one is not.
        """
        originals = array("I", kept)
        served = array("I", [GONE]) * original_size
        for new, original in enumerate(originals):
            if original >= original_size or served[original] != GONE:
                raise ValueError(f"id {original} is there twice, or not below {original_size}")
            served[original] = new
        return cls(originals, served)

    def originals(self, new: list[int]) -> list[int]:
        """``original`` of each."""
        if new and (min(new) < 0 or max(new) >= len(self.kept)):
            return list(map(self.original, new))
        kept = self.kept
        return [kept[one] for one in new]

    def original(self, new: int) -> int:
        """The id that clients know. One past the kept tokens lands past the original ones, where
        no token is: never on another's.
        """
        if 0 <= new < len(self.kept):
            return self.kept[new]
        return new if new < 0 else len(self.served) + new - len(self.kept)


def load_map(path: Path, size: int | None = None) -> Vocabulary:
    """Read ``vocab_map.json`` of a model of ``size`` tokens, where that is known.

    :raises ConfigError: it is not there, not of the form that ``prune-vocab`` writes, or another
        model's: ids would be translated to other tokens' without a word.
    """
    hint = "make the model again: preheat bake derive"
    try:
        said = json.loads(path.read_bytes())
        if said["schema"] != SCHEMA:
            raise ConfigError(f"{path}: schema {said['schema']!r}, expected {SCHEMA}", hint)
        if size is not None and len(said["kept"]) != size:
            told = f"{path}: {len(said['kept'])} tokens, and the model beside it has {size}"
            raise ConfigError(told, hint)
        return Vocabulary.of(said["kept"], said["original_size"])
    except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise ConfigError(f"{path}: no map of a vocabulary: {error!r}", hint) from error


class Requests:
    """Original ids to served ones, in what clients send."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        grammar: dict[str, Shape] = {
            "structured_outputs": {"structural_tag": _tag, "grammar": _grammar},
            "response_format": _format,
        }
        # What a prefill elsewhere has read already: taken instead of the messages.
        handed: dict[str, Shape] = {
            "kv_transfer_params": {
                "prompt_token_ids": lambda value: self._all(
                    "kv_transfer_params.prompt_token_ids", value, "leave it out"
                )
            }
        }
        common: dict[str, Shape] = {
            "logit_bias": Whole(self._bias, len(vocabulary.served)),
            "stop_token_ids": self._stops,
            **grammar,
            **handed,
        }
        sampling = common | {
            "allowed_token_ids": self._allowed,
            "logprob_token_ids": lambda value: self._all(
                "logprob_token_ids", value, "leave it out"
            ),
        }
        prompted: dict[str, Shape] = {"prompt": lambda value: self._prompt("prompt", value)}
        pooled: dict[str, Shape] = {"input": lambda value: self._prompt("input", value)}
        self._shapes: dict[str, Mapping[str, Shape]] = {
            "/v1/completions": sampling | prompted,
            "/v1/chat/completions": sampling,
            "/v1/chat/completions/batch": sampling,
            "/v1/responses": common,
            "/v1/messages": handed,
            "/cohere/v2/chat": handed,
            # Whichever of the others' requests it is.
            "/invocations": sampling | prompted | pooled,
            "/generative_scoring": {
                "query": lambda value: self._prompt("query", value),
                "items": lambda value: self._prompt("items", value),
                "label_token_ids": lambda value: self._all(
                    "label_token_ids", value, "ask for a token that is left"
                ),
            },
            "/v1/embeddings": pooled,
            "/pooling": pooled,
            "/classify": pooled,
            "/detokenize": {
                "tokens": lambda value: self._all(
                    "tokens", value, "ask the original tokenizer for its text"
                )
            },
        }

    def shape(self, route: str) -> Mapping[str, Shape]:
        """Where the bodies of a route hold ids."""
        return self._shapes.get(route, NOTHING)

    def _served(self, name: str, values: list[Any]) -> list[int]:
        """Served ids, GONE for those that were pruned.

        :raises Refused: one is no integer, or no token of the original vocabulary.
        """
        if len(values) > MOST_IDS:
            message = f"{name}: {len(values)} token ids, and {MOST_IDS} are taken at most"
            raise Refused(name, message, "too_many_token_ids")
        if odd := [value for value in values if type(value) is not int]:
            message = f"{name}: token ids are integers, got {json.dumps(odd[0])[:80]}"
            raise Refused(name, message, "invalid_token_id")
        served = self._vocabulary.served
        if values and (min(values) < 0 or max(values) >= len(served)):
            bad = next(value for value in values if not 0 <= value < len(served))
            size = f"vocabulary size: {len(served)}"
            message = f"{name}: token id {bad} is out of vocabulary ({size})"
            raise Refused(name, message, "token_id_out_of_vocabulary")
        return [served[value] for value in values]

    def _all(self, name: str, values: Any, instead: str) -> str | None:
        if not isinstance(values, list):
            return None
        served = self._served(name, values)
        if GONE in served:
            raise _pruned(name, values[served.index(GONE)], instead)
        return _spelled(served)

    def _prompt(self, name: str, value: Any) -> str | None:
        """Text, messages, one list of ids, or a list of such lists."""
        if not isinstance(value, list) or all(isinstance(part, str | dict) for part in value):
            return None
        instead = f"send the {name} as text"
        if not all(isinstance(part, list) for part in value):
            return self._all(name, value, instead)
        if all(isinstance(part, dict) for inner in value for part in inner):
            return None
        lists = (cast("str", self._all(name, inner, instead)) for inner in value)
        return f"[{','.join(lists)}]"

    def _stops(self, values: Any) -> str | None:
        """A token that cannot occur stops nothing: left out."""
        if not isinstance(values, list):
            return None
        return _spelled(new for new in self._served("stop_token_ids", values) if new != GONE)

    def _allowed(self, values: Any) -> str | None:
        if not isinstance(values, list):
            return None
        served = self._served("allowed_token_ids", values)
        left = [new for new in served if new != GONE]
        if served and not left:
            raise _pruned("allowed_token_ids", values[0], "allow a token that is left")
        return _spelled(left)

    def _bias(self, members: list[tuple[str, Any, str]]) -> str | None:
        parts, told = [], []
        for key, value, written in members:
            try:
                told.append((int(key), value, written))
            except ValueError:
                # vLLM says of it what is wrong.
                parts.append(f"{json.dumps(key)}:{written}")
        served = self._served("logit_bias", [original for original, _, _ in told])
        for (original, value, written), new in zip(told, served, strict=True):
            if new != GONE:
                parts.append(f'"{new}":{written}')
            elif not _not_above_zero(value):
                raise _pruned("logit_bias", original, "leave it out: it cannot be favoured")
        return f"{{{','.join(parts)}}}"


class Answers:
    """Served ids to original ones, in what the engine answers."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._original, self._originals = vocabulary.original, vocabulary.originals
        named: dict[str, Shape] = {"token": self._name, "bytes": self._bytes}
        choice: dict[str, Shape] = {
            "token_ids": self._ids,
            "prompt_token_ids": self._ids,
            "prompt_logprobs": Each(Keys(self._key)),
            "stop_reason": self._id,
            "logprobs": {
                "tokens": Each(self._name),
                "top_logprobs": Each(Keys(self._name)),
                "content": Each(named | {"top_logprobs": Each(named)}),
            },
        }
        completion: dict[str, Shape] = {
            "choices": Each(choice),
            "prompt_token_ids": self._ids,
            "prompt_logprobs": Each(Keys(self._key)),
        }
        raw: Shape = Each({"tokens": self._ids})
        response: dict[str, Shape] = {"input_messages": raw, "output_messages": raw}
        heard: dict[str, Shape] = {"segments": raw, "choices": Each({"stop_reason": self._id})}
        streamed: dict[str, Shape] = response | {"response": response}
        self._shapes: dict[str, Mapping[str, Shape]] = {
            "/v1/completions": completion,
            "/v1/chat/completions": completion,
            "/v1/chat/completions/batch": completion,
            "/v1/responses": streamed,
            "/v1/responses/{response_id}": streamed,
            "/v1/responses/{response_id}/cancel": streamed,
            "/cohere/v2/chat": {"logprobs": Each({"token_ids": self._ids})},
            "/invocations": completion,
            "/v1/audio/transcriptions": heard,
            "/v1/audio/translations": heard,
            "/tokenize": {"tokens": self._ids},
        }

    def shape(self, route: str) -> Mapping[str, Shape]:
        """Where the answers of a route hold ids."""
        return self._shapes.get(route, NOTHING)

    def translated(self, route: str, body: bytes) -> bytes:
        """One whole JSON text; the very same when it holds no ids.

        :raises Unreadable: it is no JSON.
        """
        shape = self.shape(route)
        if not shape or not any(mark.search(body) for mark in MARKS):
            return body
        text, encoding = decoded(body)
        edits = Edits(text, strict=False)
        edits.walk(shape)
        return encoded(edits.made(), encoding) if edits.places else body

    def _ids(self, values: Any) -> str | None:
        return _spelled(self._originals(values)) if isinstance(values, list) else None

    def _id(self, value: Any) -> str | None:
        return str(self._original(value)) if type(value) is int else None

    def _key(self, name: str) -> str:
        return f'"{self._original(int(name))}"'

    def _renamed(self, name: Any) -> str | None:
        if isinstance(name, str) and (found := PLACEHOLDER.fullmatch(name)):
            return f"token_id:{self._original(int(found[1]))}"
        return None

    def _name(self, name: Any) -> str | None:
        return f'"{new}"' if (new := self._renamed(name)) else None

    def _bytes(self, values: Any) -> str | None:
        """The placeholder once more, as a list of its bytes."""
        if not isinstance(values, list):
            return None
        new = self._renamed(bytes(values).decode("utf-8", "replace"))
        return _spelled(new.encode()) if new else None


def _spelled(ids: Iterable[int]) -> str:
    return msgspec.json.encode(list(ids)).decode()


def _pruned(field: str, token: int, instead: str) -> Refused:
    message = f"{field}: token id {token} is not in this variant's pruned vocabulary; {instead}"
    return Refused(field, message, "token_id_pruned")


def _not_above_zero(bias: Any) -> bool:
    """Whether a token that cannot occur loses nothing by this bias; text as vLLM takes it."""
    try:
        return float(bias) <= 0
    except (TypeError, ValueError, OverflowError):
        return False


def _format(value: Any) -> None:
    """``response_format``: :raises Refused: it is a structural tag that names a token by its id."""
    if isinstance(value, dict) and value.get("type") == "structural_tag":
        _no_token_ids(value, "response_format")


def _tag(value: Any) -> None:
    _no_token_ids(value, "structured_outputs")


def _grammar(value: Any) -> None:
    _no_token_in(value, "structured_outputs")


def _no_token_ids(tag: Any, field: str) -> None:
    """:raises Refused: a structural tag, as JSON or a text of it, names a token by its id."""
    if isinstance(tag, str):
        try:
            tag = json.loads(tag)
        except ValueError:
            return
    pending = [tag]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            _no_numbers(value, field)
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def _no_numbers(shape: dict[str, Any], field: str) -> None:
    kind = shape.get("type")
    if kind == "grammar":
        _no_token_in(shape.get("grammar"), field)
    for name in TOKEN_FIELDS.get(kind, ()) if isinstance(kind, str) else ():
        said = shape.get(name)
        for token in said if isinstance(said, list) else [said]:
            first = token[0] if isinstance(token, list) and token else token
            if isinstance(first, int | float):
                raise _by_id(field, f"a structural tag names token {first}")


def _no_token_in(grammar: Any, field: str) -> None:
    if isinstance(grammar, str) and (found := TOKEN_IN_GRAMMAR.search(grammar)):
        raise _by_id(field, f"the grammar names a token ({found[0][:40]!r})")


def _by_id(field: str, what: str) -> Refused:
    message = f"{what} by its id; write the token's text"
    return Refused(field, message, "token_id_in_grammar")
