# mypy: disallow-untyped-decorators=False
"""What the frozen base makes of each text, computed once: hidden states and its greedy choices.

A base of 4B parameters is run over the text once and not in every epoch, and training then needs
the embedding, the output head and the MTP layer alone. Hidden states are kept in BF16, as the
engine hands them to its drafter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from scripts.mtp.base import Checkpoint
from scripts.mtp.continuations import Continuation
from scripts.tiny.loss import head_argmax
from scripts.tiny.model import Backbone

# Texts of one file: what an interrupted run loses at most.
FILE = 256
BATCH = 16
# A draft needs a token before it and one after.
LEAST_SAID = 3


@dataclass(frozen=True)
class Text:
    """One text: `ids` [tokens], `hidden` [tokens, width] BF16, `goals` [tokens], the base's greedy
    choice after each; `start` is the first place that the engine drafts from.
    """

    ids: Tensor
    hidden: Tensor
    goals: Tensor
    start: int


def backbone_of(checkpoint: Checkpoint, device: str) -> Backbone:
    """The frozen base. Matrices stay BF16; what its arithmetic needs exactly becomes float32."""
    with torch.device("meta"):
        base = Backbone(checkpoint.shape)
    prefix = "model."
    state = {
        name.removeprefix(prefix): _kept(tensor).to(device)
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(prefix)
    }
    base.load_state_dict(state, assign=True)
    base.requires_grad_(requires_grad=False)
    return base


def _kept(tensor: Tensor) -> Tensor:
    """Norms, decays and convolutions in float32: one plus a BF16 offset would lose its bits."""
    return tensor if tensor.ndim == 2 else tensor.float()


def compute(
    checkpoint: Checkpoint,
    texts: Sequence[Continuation],
    folder: Path,
    device: str,
    shown: Callable[[int, int], None],
) -> list[Text]:
    """Features of all texts that are long enough, from `folder` where they lie already."""
    texts = [text for text in texts if len(text.said) >= LEAST_SAID]
    folder.mkdir(parents=True, exist_ok=True)
    base: Backbone | None = None
    found: list[Text] = []
    for begin in range(0, len(texts), FILE):
        path = folder / f"{begin:06d}.safetensors"
        some = texts[begin : begin + FILE]
        if not path.exists():
            base = base or backbone_of(checkpoint, device)
            _write(path, list(_features(base, checkpoint.head.to(device), some, device)))
        found += _read(path, some)
        shown(begin + len(some), len(texts))
    return found


@torch.no_grad()
def _features(
    base: Backbone, head: Tensor, texts: Sequence[Continuation], device: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Hidden states and choices of each text. Padding follows it, and nothing looks ahead."""
    for begin in range(0, len(texts), BATCH):
        some = [torch.tensor(t.prompt + t.said) for t in texts[begin : begin + BATCH]]
        ids = torch.nn.utils.rnn.pad_sequence(some, batch_first=True).to(device)
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
            hidden = base(ids)
            goals = head_argmax(hidden, head)
        for row, one in enumerate(some):
            yield hidden[row, : len(one)].bfloat16().cpu(), goals[row, : len(one)].int().cpu()


def _write(path: Path, features: Sequence[tuple[Tensor, Tensor]]) -> None:
    hidden = torch.cat([h for h, _ in features])
    goals = torch.cat([g for _, g in features])
    part = path.with_suffix(".part")
    save_file({"hidden": hidden, "goals": goals}, part)
    part.replace(path)


def _read(path: Path, texts: Sequence[Continuation]) -> list[Text]:
    stored = load_file(path)
    lengths = [len(text.prompt) + len(text.said) for text in texts]
    hidden, goals = (stored[name].split(lengths) for name in ("hidden", "goals"))
    return [
        Text(torch.tensor(text.prompt + text.said), h, g.long(), len(text.prompt) - 1)
        for text, h, g in zip(texts, hidden, goals, strict=True)
    ]
