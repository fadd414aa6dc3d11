# mypy: disallow-subclassing-any=False
"""The multi-token-prediction layer, unrolled in training exactly as vLLM re-runs it in serving.

In serving, step 1 runs over every position p with the backbone's hidden state h_p and the token
x_{p+1}, and leaves its keys and values in the cache. Step k then runs once per drafted token at
position p+k-1, fed with its own hidden output and its own last draft, and sees the cache of
step 1 up to p plus the keys of its own earlier steps. `unrolled` reproduces that for all p at once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name everyone knows

from scripts.tiny.layers import Layer, RMSNorm, rope_tables
from scripts.tiny.shape import FULL, Shape


class MTP(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.fc = nn.Linear(2 * shape.hidden, shape.hidden, bias=False)
        self.layers = nn.ModuleList([Layer(shape, FULL)])
        self.norm = RMSNorm(shape.hidden, shape.norm_eps)
        self.pre_fc_norm_hidden = RMSNorm(shape.hidden, shape.norm_eps)
        self.pre_fc_norm_embedding = RMSNorm(shape.hidden, shape.norm_eps)

    def enter(self, embedded: Tensor, hidden: Tensor) -> Tensor:
        both = [self.pre_fc_norm_embedding(embedded), self.pre_fc_norm_hidden(hidden)]
        out: Tensor = self.fc(torch.cat(both, -1))
        return out

    def unrolled(self, hidden: Tensor, embedded: Tensor, steps: int) -> list[Tensor]:
        """Outputs of steps 1..steps for all positions with a full chain of known tokens.

        `hidden` is [batch, time, width]; `embedded` the embeddings of x_0..x_{time+steps-1}.
        Entry k-1 of the result predicts x_{p+k+1} at position p.
        """
        time = hidden.shape[1]
        chain: list[tuple[Tensor, Tensor]] = []
        out = []
        for k in range(1, steps + 1):
            hidden = self._step(hidden, embedded[:, k : k + time], k, chain)
            out.append(hidden)
        return out

    def _step(
        self, hidden: Tensor, embedded: Tensor, k: int, chain: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        layer = self.layers[0]
        x = self.enter(embedded, hidden)
        tables = rope_tables(self.shape, x.shape[1], offset=k - 1, device=x.device)
        q, key, value, gate = layer.self_attn.project(layer.input_layernorm(x), tables)
        chain.append((key, value))
        mixed = chain_attention(q, chain)
        x = x + layer.self_attn.finish(mixed, gate)
        out: Tensor = self.norm(layer.feed(x))
        return out


def chain_attention(q: Tensor, chain: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Attend causally to step 1's keys, and to later steps' keys only on the own diagonal."""
    first_key, first_value = chain[0]
    if len(chain) == 1:
        return F.scaled_dot_product_attention(q, first_key, first_value, is_causal=True)
    scale = q.shape[-1] ** -0.5
    time = q.shape[2]
    causal = torch.ones(time, time, dtype=torch.bool, device=q.device).tril()
    scores = (q @ first_key.transpose(-1, -2)).masked_fill(~causal, float("-inf"))
    own = torch.stack([(q * key).sum(-1) for key, _ in chain[1:]], -1)
    weights = (torch.cat([scores, own], -1) * scale).softmax(-1)
    mixed = weights[..., :time] @ first_value
    for i, (_, value) in enumerate(chain[1:]):
        mixed = mixed + weights[..., time + i, None] * value
    return mixed
