# mypy: disallow-subclassing-any=False, disallow-untyped-decorators=False
"""Cross-entropy through the tied head, a chunk of tokens at a time.

The head is more than half of the arithmetic of this model and its logits the largest tensor by
far. Computing the gradient in the forward pass keeps one chunk of logits alive instead of all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = 1024


def _product_dtype(hidden: Tensor) -> torch.dtype:
    """What autocast would multiply in: it does not reach into a function of our own."""
    lowered = torch.is_autocast_enabled(hidden.device.type)
    return torch.bfloat16 if lowered else hidden.dtype


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        dtype = _product_dtype(hidden)
        low, weight = hidden.to(dtype), head.to(dtype)
        d_hidden = torch.empty_like(hidden)
        wants_head = ctx.needs_input_grad[1]
        d_head = torch.zeros_like(head) if wants_head else head.new_empty(0)
        total = hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, targets.numel(), CHUNK):
            part, goal = low[start : start + CHUNK], targets[start : start + CHUNK]
            p = torch.softmax(part @ weight.t(), -1)
            # Indexed, not scattered: scatter_ copies the whole chunk in bfloat16.
            at = (torch.arange(goal.numel(), device=goal.device), goal)
            chosen = p[at]
            total -= chosen.float().clamp_min(1e-30).log().sum()
            p[at] = chosen - 1
            d_hidden[start : start + CHUNK] = p @ weight
            if wants_head:
                d_head += p.t() @ part
        ctx.save_for_backward(d_hidden, d_head)
        ctx.scale = 1.0 / targets.numel()
        return total * ctx.scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        d_hidden, d_head = ctx.saved_tensors
        scale = grads[0] * ctx.scale
        wants_head = ctx.needs_input_grad[1]
        return d_hidden.mul_(scale), d_head.mul_(scale) if wants_head else None, None


def head_loss(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of `hidden` [tokens, width] through `head` against `targets` [tokens]."""
    loss: Tensor = _HeadLoss.apply(hidden, head, targets)
    return loss


@torch.no_grad()
def head_argmax(hidden: Tensor, head: Tensor) -> Tensor:
    """The token the head would choose greedily, for [..., width]."""
    flat = hidden.flatten(0, -2)
    dtype = _product_dtype(hidden)
    weight = head.to(dtype).t()
    parts = [(part.to(dtype) @ weight).argmax(-1) for part in flat.split(CHUNK)]
    return torch.cat(parts).unflatten(0, hidden.shape[:-1])
