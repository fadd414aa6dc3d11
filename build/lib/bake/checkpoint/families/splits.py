"""How text is cut before bytes are merged: one entry for each ``tokenizer.ggml.pre`` known here.

Patterns are those of the models' own ``tokenizer.json``, as llama.cpp quotes them beside its own
(b11434, src/llama-vocab.cpp; MIT); Llama 3 and SmolLM2 ignore or cut digits as they do there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = (
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{REST}"
)
QWEN35 = (
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{REST}"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{REST}"
)
NFC = {"type": "NFC"}


def byte_level(*, regex: bool) -> dict[str, Any]:
    """Bytes as letters; with ``regex``, cut as GPT-2 does."""
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": regex,
    }


@dataclass(frozen=True)
class Split:
    """``whole``: a piece that is a token is not merged from its bytes. ``begins``: a text gets
    the token that begins one, where the file does not say.
    """

    cuts: tuple[dict[str, Any], ...]
    normalizer: dict[str, Any] | None = None
    whole: bool = False
    begins: bool = False

    @property
    def pre_tokenizer(self) -> dict[str, Any]:
        """As ``tokenizer.json`` has it."""
        if len(self.cuts) == 1:
            return self.cuts[0]
        return {"type": "Sequence", "pretokenizers": list(self.cuts)}


def _by(pattern: str) -> tuple[dict[str, Any], ...]:
    cut = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    return cut, byte_level(regex=False)


_GPT2 = Split((byte_level(regex=True),))
_DIGITS = Split(({"type": "Digits", "individual_digits": True}, byte_level(regex=True)))
_LLAMA3 = Split(_by(LLAMA3), whole=True, begins=True)

# GGUF has no word for normalizers. Qwen's own tokenizers have NFC, and so have these; llama.cpp
# itself never normalizes.
SPLITS: Mapping[str, Split] = {
    "gpt-2": _GPT2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "pixtral": _LLAMA3,
    "tekken": Split(_by(TEKKEN), whole=True, begins=True),
    "qwen2": Split(_by(QWEN2), NFC),
    "megrez": Split(_by(QWEN2), NFC),
    "deepseek-r1-qwen": Split(_by(QWEN2)),
    "qwen35": Split(_by(QWEN35), NFC),
}
