"""Repairs sampling with a temperature while drafts are verified on the CPU backend.

The rejection sampler spreads each request's temperature, top-k and top-p over its drafted tokens
with ``expand_kernel``. vLLM 0.32's CPU version turns values *and output* into int64 first: a
temperature of 0.8 becomes 0, and the result goes to a copy that nobody reads, so logits are
divided by uninitialised memory and every sampled text is noise. Greedy requests never come here.
"""

from typing import Any


def needed() -> bool:
    """Whether this is the CPU build and its kernel is still vLLM's."""
    import torch

    if torch.version.cuda is not None:
        return False
    from vllm.utils import cpu_triton_utils

    return cpu_triton_utils._expand_kernel_impl is not expand


def apply() -> None:
    """Put ``expand`` where the platform's kernel table takes its functions from."""
    from vllm.utils import cpu_triton_utils

    cpu_triton_utils._expand_kernel_impl = expand


def expand(  # noqa: PLR0913 - the kernel's signature
    output: Any,
    values: Any,
    cu_num_tokens: Any,
    replace_from: float,
    replace_to: float,
    MAX_NUM_TOKENS: int | None = None,  # noqa: N803 - the caller's keyword
) -> None:
    """Write ``values[i]`` to each of request i's tokens; ``replace_from`` becomes ``replace_to``.

    ``output`` is (tokens,), ``values`` and the cumulated counts are (requests,).
    """
    import torch

    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    replaced = torch.where(values == replace_from, torch.full_like(values, replace_to), values)
    output.copy_(replaced.repeat_interleave(counts.long()))
