"""Hidden states of the tiny model on its held-out texts: what its head reads."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from scripts.tiny.corpus import read_held_out
from scripts.tiny.model import TinyModel
from scripts.tiny.shape import Shape
from scripts.tiny.tokenizer import load_tokenizer

WIDTH = 256


def held_out_states(folder: Path, tokens: int) -> tuple[Tensor, Tensor]:
    """States to take directions from, and others to test on: each (about tokens/2, hidden).

    Texts take turns, so that no text is in both.
    """
    model = TinyModel(Shape())
    state = load_file(folder / "model.safetensors")
    model.load_state_dict({name: value.float() for name, value in state.items()})
    model.eval()
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    halves: tuple[list[Tensor], list[Tensor]] = ([], [])
    for number, item in enumerate(read_held_out(folder / "heldout.jsonl")):
        ids = tokenizer.encode(item.text).ids[:WIDTH]
        if len(ids) < 2:
            continue
        with torch.inference_mode():
            halves[number % 2].append(model.model(torch.tensor([ids]))[0])
        if sum(map(len, halves[0])) + sum(map(len, halves[1])) >= tokens:
            break
    return torch.cat(halves[0]), torch.cat(halves[1])
