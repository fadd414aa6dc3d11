"""Optimisers and their schedule: Muon for the hidden matrices, AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Rates:
    muon: float = 0.02
    embedding: float = 0.004
    other: float = 0.004
    warmup: float = 0.02
    cooldown: float = 0.5  # share of the steps over which the rate falls linearly


def factor(step: int, steps: int, rates: Rates) -> float:
    """The share of the full rate at `step`: up, level, and down to a tenth."""
    done = (step + 1) / steps
    if done < rates.warmup:
        return done / rates.warmup
    if done > 1 - rates.cooldown:
        return 0.03 + 0.97 * (1 - done) / rates.cooldown
    return 1.0


class Optimisers:
    """The two optimisers as one, for one set of parameters."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], rates: Rates) -> None:
        matrices, embeddings, others = [], [], []
        for name, p in named:
            if "embed_tokens" in name:
                embeddings.append(p)
            elif p.ndim == 2 and min(p.shape) > 4:
                matrices.append(p)
            else:
                others.append(p)
        groups = [
            {"params": group, "lr": rate}
            for group, rate in ((embeddings, rates.embedding), (others, rates.other))
            if group
        ]
        self.rates = rates
        self.all: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=rates.muon, weight_decay=0.01, momentum=0.95),
            torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        ]
        self.full = [[group["lr"] for group in each.param_groups] for each in self.all]

    def step(self, step: int, steps: int) -> None:
        share = factor(step, steps, self.rates)
        for each, rates in zip(self.all, self.full, strict=True):
            for group, rate in zip(each.param_groups, rates, strict=True):
                group["lr"] = rate * share
            each.step()
            each.zero_grad(set_to_none=True)

    def state(self) -> list[dict[str, object]]:
        return [each.state_dict() for each in self.all]

    def load(self, states: list[dict[str, object]]) -> None:
        for each, state in zip(self.all, states, strict=True):
            each.load_state_dict(state)
