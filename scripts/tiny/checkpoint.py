"""The model folder that ships: weights in BF16 under vLLM's names, config, tokenizer.

Owns which tensors stay float32 (none: everything is BF16) and the order and form of the files.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from scripts.tiny.model import TinyModel
from scripts.tiny.shape import hf_config
from scripts.tiny.tokenizer import END_OF_TEXT, TURN_END, marker_id, save_tokenizer


def write_model_folder(model: TinyModel, tok: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    eos, pad = marker_id(tok, TURN_END), marker_id(tok, END_OF_TEXT)
    write_weights(model, folder, eos=eos, pad=pad)
    _write_json(
        folder / "generation_config.json",
        {"do_sample": False, "eos_token_id": [eos, pad], "pad_token_id": pad},
    )
    save_tokenizer(tok, folder)


def write_weights(model: TinyModel, folder: Path, *, eos: int, pad: int) -> None:
    tensors = {
        name: p.detach().to(torch.bfloat16).contiguous()
        for name, p in sorted(model.state_dict().items())
    }
    path = folder / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors leaves it readable by the owner only
    _write_json(folder / "config.json", hf_config(model.shape, eos=eos, pad=pad))


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
