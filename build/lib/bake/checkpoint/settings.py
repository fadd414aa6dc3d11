"""Where a config says how its model is quantized. Cheap to import: no arithmetic hangs on it."""

from collections.abc import Mapping
from typing import Any

# In the config itself or in its text_config.
SETTINGS = ("quantization_config", "compression_config")


def settings_of(config: Mapping[str, Any]) -> object:
    """``quantization_config``, wherever a config has it; nothing where it has none."""
    for key in SETTINGS:
        for where in (config, config.get("text_config")):
            if isinstance(where, Mapping) and where.get(key) is not None:
                return where[key]
    return None


def tied(config: Mapping[str, Any]) -> bool | None:
    """Whether the head is the embedding, as vLLM asks: of the text's part first. None: not told."""
    inner = config.get("text_config")
    told = {**config, **(inner if isinstance(inner, Mapping) else {})}.get("tie_word_embeddings")
    return None if told is None else bool(told)


def without_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` as of a model that nobody quantized."""
    kept = {key: value for key, value in config.items() if key not in SETTINGS}
    inner = kept.get("text_config")
    return {**kept, "text_config": without_settings(inner)} if isinstance(inner, dict) else kept
