# mypy: disallow-subclassing-any=False
"""The layers of Qwen3.5's text model, written for training on a CPU.

Owns the arithmetic of one layer and its parameter names, which are the checkpoint's. Knows nothing
of how layers are stacked. Checked against transformers' own implementation in the tests.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name everyone knows

from scripts.tiny import delta
from scripts.tiny.shape import LINEAR, Shape


class RMSNorm(nn.Module):
    """Zero-centred: the stored weight is an offset from one."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), 1.0 + self.weight, self.eps)


class GatedNorm(nn.Module):
    """The output norm of the delta rule: an ordinary weight, then a SiLU gate."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps) * F.silu(gate.float())


def rope_tables(
    shape: Shape, time: int, offset: int = 0, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines for positions offset..offset+time, each [time, rotary_dim]."""
    pairs = torch.arange(0, shape.rotary_dim, 2, dtype=torch.float32, device=device)
    half = pairs / shape.rotary_dim
    places = torch.arange(offset, offset + time, dtype=torch.float32, device=device)
    angles = torch.outer(places, shape.rope_theta**-half)
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary positions to the first rotary_dim channels of [..., time, head_dim]."""
    cos, sin = tables
    width = cos.shape[-1]
    turn, keep = x[..., :width], x[..., width:]
    left, right = turn.chunk(2, -1)
    turned = turn * cos + torch.cat([-right, left], -1) * sin
    return torch.cat([turned, keep], -1)


class Attention(nn.Module):
    """Grouped-query attention with per-head q/k norms and a sigmoid output gate."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.heads * shape.head_dim
        kv_width = shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, 2 * width, bias=False)
        self.k_proj = nn.Linear(shape.hidden, kv_width, bias=False)
        self.v_proj = nn.Linear(shape.hidden, kv_width, bias=False)
        self.o_proj = nn.Linear(width, shape.hidden, bias=False)
        self.q_norm = RMSNorm(shape.head_dim, shape.norm_eps)
        self.k_norm = RMSNorm(shape.head_dim, shape.norm_eps)

    def project(
        self, x: Tensor, tables: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Query, key, value as [batch, heads, time, dim], keys repeated per group, and the gate."""
        s = self.shape
        q, gate = self.q_proj(x).unflatten(-1, (s.heads, 2 * s.head_dim)).chunk(2, -1)
        k = self.k_proj(x).unflatten(-1, (s.kv_heads, s.head_dim))
        v = self.v_proj(x).unflatten(-1, (s.kv_heads, s.head_dim))
        q = rotate(self.q_norm(q).transpose(1, 2), tables)
        k = rotate(self.k_norm(k).transpose(1, 2), tables)
        group = s.heads // s.kv_heads
        k = k.repeat_interleave(group, 1)
        v = v.transpose(1, 2).float().repeat_interleave(group, 1)
        return q, k, v, gate.flatten(-2)

    def finish(self, mixed: Tensor, gate: Tensor) -> Tensor:
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(-2) * gate.float().sigmoid())
        return out

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, gate = self.project(x, rope_tables(self.shape, x.shape[1], device=x.device))
        return self.finish(F.scaled_dot_product_attention(q, k, v, is_causal=True), gate)


class DeltaNet(nn.Module):
    """Gated DeltaNet: short causal convolution, gated delta rule, gated norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.in_proj_qkv = nn.Linear(shape.hidden, shape.conv_width, bias=False)
        self.in_proj_z = nn.Linear(shape.hidden, shape.value_width, bias=False)
        self.in_proj_b = nn.Linear(shape.hidden, shape.linear_value_heads, bias=False)
        self.in_proj_a = nn.Linear(shape.hidden, shape.linear_value_heads, bias=False)
        self.conv1d = nn.Conv1d(
            shape.conv_width,
            shape.conv_width,
            shape.conv_kernel,
            groups=shape.conv_width,
            bias=False,
        )
        self.dt_bias = nn.Parameter(torch.ones(shape.linear_value_heads))
        self.A_log = nn.Parameter(torch.zeros(shape.linear_value_heads))
        self.norm = GatedNorm(shape.linear_head_dim, shape.norm_eps)
        self.out_proj = nn.Linear(shape.value_width, shape.hidden, bias=False)

    def _convolve(self, x: Tensor) -> Tensor:
        """Depthwise and causal, as a sum of shifted products.

        On a CPU that beats the backward pass of a grouped conv1d by far.
        """
        taps = self.conv1d.weight[:, 0]
        size = taps.shape[1]
        padded = F.pad(x, (0, 0, size - 1, 0))
        time = x.shape[1]
        mixed = padded[:, :time] * taps[:, 0]
        for i in range(1, size):
            mixed = mixed + padded[:, i : i + time] * taps[:, i]
        return F.silu(mixed)

    def forward(self, x: Tensor) -> Tensor:
        s = self.shape
        mixed = self._convolve(self.in_proj_qkv(x).float())
        q, k, v = (
            part.unflatten(-1, (-1, s.linear_head_dim)).transpose(1, 2)
            for part in mixed.split([s.key_width, s.key_width, s.value_width], -1)
        )
        group = s.linear_value_heads // s.linear_key_heads
        q, k = (unit(part).repeat_interleave(group, 1) for part in (q, k))
        beta = self.in_proj_b(x).float().sigmoid().transpose(1, 2)
        step = F.softplus(self.in_proj_a(x).float() + self.dt_bias)
        g = (-self.A_log.exp() * step).transpose(1, 2)
        with torch.autocast(x.device.type, enabled=False):
            out = delta.chunked(q, k, v, g, beta)
        z = self.in_proj_z(x).unflatten(-1, (-1, s.linear_head_dim))
        mixed_out: Tensor = self.out_proj(self.norm(out.transpose(1, 2), z).flatten(-2))
        return mixed_out


def unit(x: Tensor) -> Tensor:
    """Scale vectors to unit length, as the reference kernels do."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


class MLP(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """One decoder layer; which mixer it has decides the name of the mixer's tensors."""

    def __init__(self, shape: Shape, kind: str) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden, shape.norm_eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.norm_eps)
        if kind == LINEAR:
            self.linear_attn = DeltaNet(shape)
        else:
            self.self_attn = Attention(shape)
        self.mlp = MLP(shape)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        mixer = self.linear_attn if self.kind == LINEAR else self.self_attn
        x = x + mixer(self.input_layernorm(x))
        return self.feed(x)

    def feed(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out
