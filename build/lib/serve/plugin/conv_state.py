"""Keeps the convolution state of a drafting engine right, and lets the kernel do its convolutions.

vLLM 0.32 verifies drafts by its own kernel where the CPU has AMX and every sequence brings as many
tokens, else in plain torch, sequence by sequence.

- The torch path refills its rolling buffer as if every step brought K+1 tokens. A grammar that
  rejects drafts makes shorter steps: then the copy fails ("size of tensor a (7) must match … (6)",
  the engine dies) or, when it happens to fit, the next step reads the wrong history. What has to be
  kept is the width - 2 entries before the new tokens, whatever their number; for K+1 tokens that is
  what vLLM does.
- The kernel refuses steps shorter than what was accepted before ("must be in [1, seqlen]"), so it
  gets whole steps only.
- The kernel takes no AMX tiles but VDPBF16PS (vLLM says so, and packs its weights by that), so any
  CPU with AVX-512 BF16 can have it: 0.04 ms where torch takes 0.85, for 8 sequences of tiny. Both
  leave the same state; results differ in the last bit of BF16, as drafting engines then round as
  those do that draft nothing.
"""

import inspect
from collections.abc import Mapping
from typing import Any

KEPT = (
    """\
            keep = B[:, offset + 1 : offset + 1 + (state_len - q_i)]
            new_B = torch.cat([keep, x_seq], dim=-1)
            B.copy_(new_B)
""",
    """\
            keep = B[:, offset + 1 : offset + width - 1]
            new_B = torch.cat([keep, x_seq], dim=-1)
            B[:, : new_B.shape[-1]].copy_(new_B)
""",
)
WHOLE = (
    "and int(seq_lens[0].item()) > 0\n",
    "and int(seq_lens[0].item()) == state_len - width + 2\n",
)
KERNEL = ("torch.cpu._is_amx_tile_supported()", "torch.cpu._is_avx512_bf16_supported()")
EDITS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "_spec_forward": (KEPT, WHOLE, KERNEL),
    "_spec_aware_nonspec": (KERNEL,),
    "_spec_aware_nonspec_subset": (KERNEL,),
}
MARK = "preheat_wraps"


def needed() -> bool:
    """Whether this is a CPU build whose functions still have those lines."""
    import torch

    if torch.version.cuda is not None:
        return False
    module = _module()
    return all(_has(getattr(module, name), edits) for name, edits in EDITS.items())


def apply() -> None:
    """Compile each function again from its own source with the lines exchanged."""
    module = _module()
    for name, edits in EDITS.items():
        stock = getattr(module, name)
        source = inspect.getsource(stock)
        for old, new in edits:
            source = source.replace(old, new)
        scope: dict[str, Any] = {}
        # Its own globals, so that whatever it calls stays what vLLM calls.
        exec(compile(source, __file__, "exec"), module.__dict__, scope)  # noqa: S102 - vLLM's own text
        setattr(scope[name], MARK, stock)
        setattr(module, name, scope[name])


def _has(function: Any, edits: tuple[tuple[str, str], ...]) -> bool:
    if hasattr(function, MARK):
        return False
    source = inspect.getsource(function)
    return all(old in source for old, _ in edits)


def _module() -> Any:
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention

    return gdn_attention
