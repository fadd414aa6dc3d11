"""The gated delta rule: a fast chunked form for training and the plain recurrence it equals.

Both take queries and keys of unit length. All arithmetic is float32: the products of decays
inside a chunk lose their meaning in bfloat16.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 64  # measured: 32 and 128 are slower


def recurrent(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """The definition, one token at a time; q, k, v are [batch, heads, time, dim]."""
    state = torch.zeros(*q.shape[:2], q.shape[-1], v.shape[-1], dtype=q.dtype)
    out = []
    for t in range(q.shape[2]):
        state = state * g[:, :, t, None, None].exp()
        known = (state * k[:, :, t, :, None]).sum(-2)
        delta = (v[:, :, t] - known) * beta[:, :, t, None]
        state = state + k[:, :, t, :, None] * delta[:, :, None, :]
        out.append((state * q[:, :, t, :, None]).sum(-2))
    return torch.stack(out, 2) * q.shape[-1] ** -0.5


def chunked(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """The same function, in chunks: inside a chunk one triangular solve replaces the loop."""
    time = q.shape[2]
    pad = -time % CHUNK
    if pad:
        q, k, v = (torch.nn.functional.pad(x, (0, 0, 0, pad)) for x in (q, k, v))
        g, beta = (torch.nn.functional.pad(x, (0, pad)) for x in (g, beta))
    q, k, v = (x.unflatten(2, (-1, CHUNK)) for x in (q * q.shape[-1] ** -0.5, k, v))
    g, beta = (x.unflatten(2, (-1, CHUNK)) for x in (g, beta))
    total = g.cumsum(-1)
    gap = total[..., :, None] - total[..., None, :]
    lower = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=q.device).tril()
    # Masked before exp: above the diagonal the exponent is positive and may overflow.
    decay = gap.masked_fill(~lower, float("-inf")).exp()
    kb = k * beta[..., None]
    system = (kb @ k.transpose(-1, -2)) * decay
    right = torch.cat([v * beta[..., None], kb * total.exp()[..., None]], -1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    fresh, seen = solved.split([v.shape[-1], k.shape[-1]], -1)
    inside = (q @ k.transpose(-1, -2)) * decay
    pieces = _Pieces(
        q=q * total.exp()[..., None],
        k=k * (total[..., -1:] - total).exp()[..., None],
        fresh=fresh,
        seen=seen,
        inside=inside,
        fade=total[..., -1].exp(),
    )
    return _scan(pieces).flatten(2, 3)[:, :, :time]


class _Pieces(NamedTuple):
    """What the scan needs of every chunk, each [batch, heads, chunks, ...]."""

    q: Tensor  # queries, decayed from the chunk's start
    k: Tensor  # keys, decayed to the chunk's end
    fresh: Tensor  # values to write if the state were empty
    seen: Tensor  # what is subtracted of them per unit of state
    inside: Tensor  # attention within the chunk
    fade: Tensor  # decay of the state over the whole chunk


def _scan(x: _Pieces) -> Tensor:
    """Carry the state from chunk to chunk; everything else was done for all chunks at once."""
    state = x.q.new_zeros(*x.q.shape[:2], x.q.shape[-1], x.fresh.shape[-1])
    out = []
    for i in range(x.q.shape[2]):
        new = x.fresh[:, :, i] - x.seen[:, :, i] @ state
        out.append(x.q[:, :, i] @ state + x.inside[:, :, i] @ new)
        written = x.k[:, :, i].transpose(-1, -2) @ new
        state = state * x.fade[:, :, i, None, None] + written
    return torch.stack(out, 2)
