# mypy: disallow-subclassing-any=False
"""The network: backbone, tied head and MTP layer, and its seeded initial weights.

Owns the tensor names of the checkpoint: `state_dict()` is what ships.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scripts.tiny.layers import Layer, RMSNorm
from scripts.tiny.mtp import MTP
from scripts.tiny.shape import Shape


class Backbone(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape, kind) for kind in shape.layer_types)
        self.norm = RMSNorm(shape.hidden, shape.norm_eps)

    def forward(self, ids: Tensor) -> Tensor:
        """Hidden states after the final norm: what the head reads, and what the drafter is fed."""
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.norm(x)
        return out


class TinyModel(nn.Module):
    """Backbone, tied head and MTP layer; `state_dict()` is the checkpoint."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Backbone(shape)
        self.mtp = MTP(shape)

    @property
    def head(self) -> Tensor:
        return self.model.embed_tokens.weight

    def logits(self, ids: Tensor) -> Tensor:
        out: Tensor = self.model(ids) @ self.head.t()
        return out


def initialise(model: TinyModel, seed: int) -> None:
    """Seeded initial weights; residual outputs start at zero so that depth costs nothing early."""
    rng = torch.Generator().manual_seed(seed)
    for name, p in sorted(model.named_parameters()):
        with torch.no_grad():
            _initialise_one(name, p, rng)


def _initialise_one(name: str, p: Tensor, rng: torch.Generator) -> None:
    if name.endswith("A_log"):
        p.uniform_(0.5, 8.0, generator=rng).log_()
    elif name.endswith("dt_bias"):
        # Inverse softplus of steps spread over 0.001..0.1: fast and slow memories from the start.
        step = torch.empty_like(p).uniform_(-6.9, -2.3, generator=rng).exp()
        p.copy_(step + torch.log(-torch.expm1(-step)))
    elif "norm" in name:
        return
    elif name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight")):
        p.normal_(0.0, 0.002, generator=rng)
    elif name.endswith("embed_tokens.weight"):
        p.normal_(0.0, 0.02, generator=rng)
    else:
        fan_in = p[0].numel()
        p.normal_(0.0, fan_in**-0.5, generator=rng)
