"""Small checkpoints, sound ones and broken ones, made by code."""

import json
import struct
from pathlib import Path
from typing import Any


def shard(header: object, tail: int = 0) -> bytes:
    """A safetensors file with ``header`` and ``tail`` bytes of tensors."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(tail)


def tensor(begin: int, end: int) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}


def checkpoint(folder: Path, *names: str, **shards: bytes) -> Path:
    """A sound checkpoint with tensors ``names``, or the given ``shards``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"architectures": ["Qwen3_5ForCausalLM"]}')
    (folder / "tokenizer.json").write_text("{}")
    header = {name: tensor(2 * number, 2 * number + 2) for number, name in enumerate(names)}
    whole = shards or {"model": shard({"__metadata__": {"a": "b"}, **header}, 2 * len(names))}
    for name, raw in whole.items():
        (folder / f"{name}.safetensors").write_bytes(raw)
    return folder
