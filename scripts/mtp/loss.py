"""The discounted multi-step loss over texts of different lengths.

Step k at place p is shown the tokens up to p+k and asked for the base's greedy choice after them:
what a greedy verification compares its draft with. A later step counts less, because it matters
only where all before it were right: weights beta^(k-1), normed to sum 1 (FastMTP, arXiv
2509.18362, equation 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from scripts.mtp.features import Text
from scripts.tiny.loss import head_loss
from scripts.tiny.mtp import MTP


@dataclass(frozen=True)
class Batch:
    """Texts side by side, padded: `ids` and `goals` [texts, time], `hidden` [texts, time, width],
    `first` and `length` [texts]: where drafting begins and where the text ends.
    """

    ids: Tensor
    goals: Tensor
    hidden: Tensor
    first: Tensor
    length: Tensor


def step_weights(steps: int, beta: float) -> list[float]:
    """Weights of steps 1..steps; equal ones for beta 1."""
    raw = [beta**k for k in range(steps)]
    return [weight / sum(raw) for weight in raw]


def batch_of(texts: Sequence[Text], device: str) -> Batch:
    """Texts as the loss wants them."""
    return Batch(
        pad_sequence([t.ids for t in texts], batch_first=True).to(device),
        pad_sequence([t.goals for t in texts], batch_first=True).to(device),
        pad_sequence([t.hidden for t in texts], batch_first=True).to(device),
        torch.tensor([t.start for t in texts], device=device),
        torch.tensor([len(t.ids) for t in texts], device=device),
    )


@dataclass(frozen=True)
class Asked:
    """How far the layer is unrolled, and at which places its loss is taken (`places`)."""

    steps: int
    every: int = 1
    offset: int = 0


def places(batch: Batch, time: int, k: int, asked: Asked) -> Tensor:
    """Where step k is asked, [texts, time]: drafting has begun, its goal lies within the text, and
    it is this step's turn (one place in `every`, another one each time).
    """
    p = torch.arange(time, device=batch.ids.device)[None]
    within = (p >= batch.first[:, None]) & (p + k < batch.length[:, None])
    return within & ((p + asked.offset + k) % asked.every == 0)


def losses(mtp: MTP, embedding: Tensor, head: Tensor, batch: Batch, asked: Asked) -> list[Tensor]:
    """Mean cross-entropy of each step, in nats; `embedding` and `head` are [vocabulary, width]."""
    time = batch.ids.shape[1] - 1
    embedded = embedding[torch.nn.functional.pad(batch.ids, (0, asked.steps))].float()
    outputs = mtp.unrolled(batch.hidden[:, :time].float(), embedded, asked.steps)
    found = []
    for k, out in enumerate(outputs, 1):
        row, p = places(batch, time, k, asked).nonzero(as_tuple=True)
        goal = batch.goals[row, p + k]
        found.append(head_loss(out[row, p], head, goal) if len(row) else out.sum() * 0)
    return found
