"""The tokenizer: byte-level BPE over our corpus, with Qwen2's splitting rule, and its files.

Owns the special tokens and the three tokenizer files. The chat markup itself is the template
beside this module's output, `chat_template.jinja`, kept as text in `chat_template.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from scripts.tiny.chat_template import CHAT_TEMPLATE

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
# (text, special): thinking and tool markers are visible text to a client, as in Qwen's own files.
MARKERS: tuple[tuple[str, bool], ...] = (
    (END_OF_TEXT, True),
    (TURN_START, True),
    (TURN_END, True),
    ("<think>", False),
    ("</think>", False),
    ("<tool_call>", False),
    ("</tool_call>", False),
    ("<tool_response>", False),
    ("</tool_response>", False),
)
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class TokenizerError(RuntimeError):
    """The corpus cannot give a tokenizer of the size that was asked for."""


def train_tokenizer(texts: Iterable[str], vocab: int) -> Tokenizer:
    """Learn merges until the vocabulary, markers included, has exactly `vocab` entries."""
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - len(MARKERS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        max_token_length=24,
    )
    tok.train_from_iterator(texts, trainer)
    tok.add_tokens(
        [AddedToken(text, special=special, normalized=False) for text, special in MARKERS]
    )
    got = tok.get_vocab_size()
    if got != vocab:
        raise TokenizerError(
            f"tokenizer: expected exactly {vocab} entries, got {got}\n"
            "hint: the corpus is too small for that vocabulary; give more text or a smaller one"
        )
    return tok


def marker_id(tok: Tokenizer, text: str) -> int:
    found = tok.token_to_id(text)
    if found is None:
        raise TokenizerError(f"tokenizer: marker {text!r} is missing\nhint: train it again")
    return int(found)


def save_tokenizer(tok: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json compactly, tokenizer_config.json and the chat template."""
    data = json.loads(tok.to_str())
    # "a b" is the older spelling of ["a", "b"]: every reader knows it, and it is 50 kB shorter.
    data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    config = json.dumps(tokenizer_config(tok), indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def tokenizer_config(tok: Tokenizer) -> dict[str, object]:
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(marker_id(tok, text)): {
                "content": text,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": special,
            }
            for text, special in MARKERS
        },
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": TURN_END,
        "errors": "replace",
        "model_max_length": 4096,
        "pad_token": END_OF_TEXT,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def load_tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))
