"""A GGUF's tokenizer as the files that transformers and vLLM load."""

import json
from collections.abc import Mapping
from typing import Any

from bake.checkpoint.families import merging
from bake.checkpoint.families.metadata import Metadata
from bake.checkpoint.families.vocabulary import (
    CONTROL,
    UNKNOWN,
    USER_DEFINED,
    Specials,
    Vocabulary,
    vocabulary,
)
from bake.errors import Unsupported

MAKERS = {"gpt2": merging.of_bytes, "llama": merging.of_characters}


def tokenizer_files(
    metadata: Metadata, rows: int, positions: int
) -> tuple[Mapping[str, int | None], dict[str, bytes]]:
    """What a config says of ids, and the files of a tokenizer for an embedding of ``rows``.

    :raises Unsupported: what kind it is, or how it cuts text, is not known here.
    :raises Malformed: its lists are damaged.
    """
    kind = metadata.text("tokenizer.ggml.model")
    if kind not in MAKERS:
        raise Unsupported(
            f"{metadata.where}: tokenizer.ggml.model {kind[:40]!r} is not converted",
            f"known: {', '.join(MAKERS)}",
        )
    tokens = vocabulary(metadata, rows, spm=kind == "llama")
    bos, eos = _ends(metadata, kind, tokens)
    made = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(tokens),
        **MAKERS[kind](metadata, tokens),
    }
    made["post_processor"] = _template(made["post_processor"], tokens, bos=bos, eos=eos)
    template = metadata.text("tokenizer.chat_template", "")
    settings = _settings(tokens, template, positions, bos=bos, eos=eos)
    files = {
        "tokenizer.json": json.dumps(made, ensure_ascii=False, separators=(",", ":")).encode(),
        "tokenizer_config.json": _dump(settings),
        "generation_config.json": _dump(_generation(tokens.specials)),
    }
    if template:
        files["chat_template.jinja"] = template.encode(errors="replace")
    found = tokens.specials
    ids = {"bos_token_id": found.bos, "eos_token_id": found.eos, "pad_token_id": found.pad}
    return ids, files


def _ends(metadata: Metadata, kind: str, tokens: Vocabulary) -> tuple[bool, bool]:
    """Whether a text gets a token before it, and one after, as llama.cpp has it."""
    own = metadata.under("tokenizer.ggml")
    begins = kind == "llama" or merging.split_of(metadata).begins
    bos = own.truth("add_bos_token", begins) and tokens.specials.bos is not None
    eos = own.truth("add_eos_token", default=False) and tokens.specials.eos is not None
    return bos, eos


def _added(tokens: Vocabulary) -> list[dict[str, Any]]:
    """Tokens that are found in a text as they stand, before anything is cut or replaced."""
    special = set(tokens.of_kind(CONTROL, UNKNOWN))
    return [
        {
            "id": number,
            "content": tokens.texts[number],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": number in special,
        }
        for number in sorted(special | set(tokens.of_kind(USER_DEFINED)))
    ]


def _template(
    before: dict[str, Any] | None, tokens: Vocabulary, *, bos: bool, eos: bool
) -> dict[str, Any] | None:
    if not bos and not eos:
        return before

    def piece(number: int | None, part: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": tokens.text(number), "type_id": part}}

    def text(name: str, part: int) -> list[dict[str, Any]]:
        middle = [{"Sequence": {"id": name, "type_id": part}}]
        first = [piece(tokens.specials.bos, part)] if bos else []
        return first + middle + ([piece(tokens.specials.eos, part)] if eos else [])

    used = [number for number, there in zip(_pair(tokens), (bos, eos), strict=True) if there]
    made = {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": text("A", 0) + text("B", 1),
        "special_tokens": {
            tokens.text(one): {"id": tokens.text(one), "ids": [one], "tokens": [tokens.text(one)]}
            for one in used
        },
    }
    return {"type": "Sequence", "processors": [before, made]} if before else made


def _pair(tokens: Vocabulary) -> tuple[int | None, int | None]:
    return tokens.specials.bos, tokens.specials.eos


def _settings(
    tokens: Vocabulary, template: str, positions: int, *, bos: bool, eos: bool
) -> dict[str, Any]:
    """``PreTrainedTokenizerFast`` takes ``tokenizer.json`` as it is; a model's own class would
    put its own splits in their place.
    """
    found = tokens.specials
    made: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": positions,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": bos,
        "add_eos_token": eos,
        "bos_token": tokens.text(found.bos),
        "eos_token": tokens.text(found.eos),
        "unk_token": tokens.text(found.unk),
        "pad_token": tokens.text(found.pad),
    }
    return {**made, "chat_template": template} if template else made


def _generation(found: Specials) -> dict[str, Any]:
    """Every token that ends a reply; a chat's is often another than a text's."""
    ids = {"bos_token_id": found.bos, "pad_token_id": found.pad}
    made: dict[str, Any] = {key: value for key, value in ids.items() if value is not None}
    if found.ends:
        made["eos_token_id"] = list(found.ends)
    return made


def _dump(told: Mapping[str, Any]) -> bytes:
    return (json.dumps(told, indent=2, ensure_ascii=False) + "\n").encode(errors="replace")
