"""Hands the CPU's recurrent step of GatedDeltaNet the dense operands that it insists on.

An engine that drafts hands a lone token without drafts (the last chunk of a prompt that is one
token longer than a step, say 2049 of 2048) to ``fused_sigmoid_gating_delta_rule_update_cpu``. The
state's index is then a view of one element with the stride of its table's row. ``contiguous()``
leaves a single element as it is, the kernel does not take it ("must be contiguous at last
dimension"), and the engine dies: one prompt of the right length is enough.
"""

from typing import Any

# Written to by the kernel: a copy of it would be lost.
STATE = "initial_state_source"


def needed() -> bool:
    """Whether this is the CPU build and the op is not wrapped yet."""
    import torch

    if torch.version.cuda is not None:
        return False
    from vllm import _custom_ops

    return not hasattr(_custom_ops.fused_sigmoid_gating_delta_rule_update_cpu, "preheat_wraps")


def apply() -> None:
    """Wrap the op, which vLLM calls by keywords."""
    from vllm import _custom_ops

    update = _custom_ops.fused_sigmoid_gating_delta_rule_update_cpu

    def fused_sigmoid_gating_delta_rule_update_cpu(*args: Any, **operands: Any) -> Any:
        return update(*args, **{k: v if k == STATE else dense(v) for k, v in operands.items()})

    wrapped = fused_sigmoid_gating_delta_rule_update_cpu
    wrapped.preheat_wraps = update  # type: ignore[attr-defined]
    _custom_ops.fused_sigmoid_gating_delta_rule_update_cpu = wrapped


def dense(operand: Any) -> Any:
    """A tensor whose last stride is not 1 as one whose is; anything else as it is."""
    strides = operand.stride() if hasattr(operand, "stride") else ()
    if not strides or strides[-1] == 1:
        return operand
    return operand.new_empty(operand.shape).copy_(operand)
