"""Hands the CPU's causal convolution the dense rows that it insists on.

On CPUs with AVX-512 BF16, prefill of a GatedDeltaNet layer runs ``causal_conv1d_fwd_cpu``, which
refuses ``x`` unless its columns lie one after the other. Compiled graphs pass a view into the
fused projection (rows of 768, say, of which 512 are meant), and the engine dies at the first
prompt: "expect x to be transposed". Copying those few rows is all it takes.
"""

from typing import Any


def needed() -> bool:
    """Whether this is a CPU build on a CPU that takes that kernel, and it is not wrapped yet."""
    import torch

    if torch.version.cuda is not None or not torch.cpu._is_avx512_bf16_supported():
        return False
    from vllm import _custom_ops

    return not hasattr(_custom_ops.causal_conv1d_fwd_cpu, "preheat_wraps")


def apply() -> None:
    """Wrap the op: ``x``, of shape (channels, tokens), is made dense first."""
    from vllm import _custom_ops

    convolve = _custom_ops.causal_conv1d_fwd_cpu

    def causal_conv1d_fwd_cpu(x: Any, *args: Any, **kwargs: Any) -> Any:
        return convolve(dense(x), *args, **kwargs)

    causal_conv1d_fwd_cpu.preheat_wraps = convolve  # type: ignore[attr-defined]
    _custom_ops.causal_conv1d_fwd_cpu = causal_conv1d_fwd_cpu


def dense(x: Any) -> Any:
    """``x`` with strides (1, channels): itself if it has them, else a copy.

    Not ``contiguous()``, which leaves a single token's stride as it is; the kernel does not.
    """
    channels, tokens = x.shape
    if x.stride() == (1, channels):
        return x
    return x.new_empty((tokens, channels)).copy_(x.transpose(0, 1)).transpose(0, 1)
