"""Steps GatedDeltaNet without drafts by the CPU kernel that verifies drafts, so both round alike.

vLLM 0.32 has two kernels for one recurrence.

- ``fused_sigmoid_gating_delta_rule_update_cpu``, for a lone token, computes the sigmoid of the
  gate in BF16: ``exp(-b)``, the sum and the quotient are each rounded to eight bits.
- ``…_update_spec_cpu``, for drafts, computes it in F32, as vLLM's GPU kernel does. It also adds
  squares up in another order, which is the last bit of F32.

So states part, and an engine that drafts says another token than one that does not wherever two
are all but tied. Products, convolution, attention and choice were the same bit by bit. One token a
sequence is a draft block of one, so the second kernel, the finer of both, takes the first one's
place; the reverse would be a call for each drafted token.

The first kernel also insists on dense operands, and one prompt of the right length killed an engine
that drafts: a chunk of a lone token comes with a view of one element that has the stride of its
table's row, and ``contiguous()`` leaves a single element as it is.
"""

from functools import lru_cache
from typing import Any

# Sequences of a step: as many lengths as there may be of them on a CPU, and more.
LENGTHS = 256


def needed() -> bool:
    """Whether this is the CPU build and the op is not replaced yet."""
    import torch

    if torch.version.cuda is not None:
        return False
    from vllm import _custom_ops

    return not hasattr(_custom_ops.fused_sigmoid_gating_delta_rule_update_cpu, "preheat_wraps")


def apply() -> None:
    """Replace the op, which vLLM calls by keywords."""
    from vllm import _custom_ops

    update = _custom_ops.fused_sigmoid_gating_delta_rule_update_cpu

    def fused_sigmoid_gating_delta_rule_update_cpu(**operands: Any) -> Any:
        return step(_custom_ops.fused_sigmoid_gating_delta_rule_update_spec_cpu, **operands)

    replacing = fused_sigmoid_gating_delta_rule_update_cpu
    replacing.preheat_wraps = update  # type: ignore[attr-defined]
    _custom_ops.fused_sigmoid_gating_delta_rule_update_cpu = replacing


def step(verify: Any, *, initial_state_indices: Any, **operands: Any) -> Any:
    """One token for each of n sequences, its state read and written in place.

    ``q``, ``k`` and ``v`` are (1, n, heads, size); so is the result, as (n, 1, heads, size).
    ``initial_state_indices`` are the n rows of ``initial_state_source``.
    """
    rows = dense(initial_state_indices)
    flat = {name: operands.pop(name).squeeze(0) for name in ("q", "k", "v")}
    gates = {name: dense(operands.pop(name)) for name in ("a", "b", "cu_seqlens")}
    said = verify(
        spec_state_indices=rows.unsqueeze(1),
        num_accepted_tokens=_ones(len(rows), rows.dtype, rows.device),
        **flat,
        **gates,
        **operands,
    )
    return said.unsqueeze(1)


@lru_cache(LENGTHS)
def _ones(length: int, dtype: Any, device: Any) -> Any:
    """As many ones, for every layer of every step of that length. The kernel reads them only."""
    import torch

    return torch.ones(length, dtype=dtype, device=device)


def dense(operand: Any) -> Any:
    """The tensor itself if its elements lie one after the other, also by its strides, else a copy.

    ``contiguous()`` alone does not ask for the strides of a single element; the kernel does.
    """
    if operand.is_contiguous() and operand.stride()[-1] == 1:
        return operand
    return operand.new_empty(operand.shape).copy_(operand)
