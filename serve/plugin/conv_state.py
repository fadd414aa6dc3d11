"""Keeps the convolution state of a drafting engine right when a step has fewer tokens than K+1.

Without AMX, vLLM 0.32 verifies drafts with a convolution in plain torch, whose rolling buffer is
refilled as if every step brought K+1 tokens. A grammar that rejects drafts makes shorter steps:
then the copy fails ("size of tensor a (7) must match … (6)", the engine dies) or, when it happens
to fit, the next step reads the wrong history. What has to be kept is the width - 2 entries before
the new tokens, whatever their number; for K+1 tokens that is what vLLM does.
"""

import inspect
from typing import Any

OLD = """\
            keep = B[:, offset + 1 : offset + 1 + (state_len - q_i)]
            new_B = torch.cat([keep, x_seq], dim=-1)
            B.copy_(new_B)
"""
NEW = """\
            keep = B[:, offset + 1 : offset + width - 1]
            new_B = torch.cat([keep, x_seq], dim=-1)
            B[:, : new_B.shape[-1]].copy_(new_B)
"""
MARK = "preheat_wraps"


def needed() -> bool:
    """Whether this is a CPU build on a CPU without AMX whose function still has those lines."""
    import torch

    if torch.version.cuda is not None or torch.cpu._is_amx_tile_supported():
        return False
    function = _module()._spec_forward
    return not hasattr(function, MARK) and OLD in inspect.getsource(function)


def apply() -> None:
    """Compile the function again from its own source with the three lines exchanged."""
    module = _module()
    stock = module._spec_forward
    scope: dict[str, Any] = {}
    source = inspect.getsource(stock).replace(OLD, NEW)
    # Its own globals, so that whatever it calls stays what vLLM calls.
    exec(compile(source, __file__, "exec"), module.__dict__, scope)  # noqa: S102 - vLLM's own text
    module._spec_forward = scope["_spec_forward"]
    setattr(module._spec_forward, MARK, stock)


def _module() -> Any:
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention

    return gdn_attention
