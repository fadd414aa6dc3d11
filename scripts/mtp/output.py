"""What a run is told by, and the files that it leaves: the head, and the `.json` that binds it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from scripts.mtp.base import sha256
from scripts.mtp.prompts import Prompt


def identity(*parts: object) -> str:
    """What a stage was made of, in twelve digits."""
    raw = json.dumps(parts, sort_keys=True).encode()
    return hashlib.sha256(raw).hexdigest()[:12]


def prompts_digest(asked: Sequence[Prompt]) -> str:
    """SHA-256 over the prompts in their order."""
    total = hashlib.sha256()
    for one in asked:
        total.update(one.prompt.encode() + b"\0")
    return total.hexdigest()


def write(out: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """The head and its `.json`, each whole; a head without its own `.json` is refused."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    save_file(tensors, part, metadata={"format": "pt"})
    part.chmod(0o644)
    about = {**about, "head": sha256(part)}
    beside = out.with_suffix(".json.part")
    beside.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    part.replace(out)
    beside.replace(out.with_suffix(".json"))
