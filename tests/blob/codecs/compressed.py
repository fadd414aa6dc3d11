"""What compressed-tensors itself makes of a weight, and reads out of one."""

import warnings
from functools import cache

import pytest


@cache
def library():
    """Its package, which imports transformers, which imports torchvision."""
    pytest.importorskip("torch")
    from serve.plugin.patches import TORCHVISION_OPS, apply_all

    apply_all([TORCHVISION_OPS])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("compressed_tensors.compressors.pack_quantized")


def arguments(bits, group):
    library()
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    args = QuantizationArgs(num_bits=bits, group_size=group, symmetric=True, strategy="group")
    return QuantizationScheme(targets=["Linear"], weights=args)


def tensor(bits):
    """A BF16 tensor of these bits."""
    import torch

    return torch.from_numpy(bits.copy()).view(torch.bfloat16)


def compressed(bits, group):
    """Four-bit parts of a BF16 weight with these bits, scales of the observer's formula."""
    scheme = arguments(4, group)
    import torch
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization.utils import calculate_qparams

    weight = tensor(bits)
    groups = weight.unflatten(-1, (-1, group))
    # As llm-compressor's min-max observer has it: the least and most of each group.
    least, most = torch.amin(groups, dim=-1), torch.amax(groups, dim=-1)
    scale, zero = calculate_qparams(least, most, scheme.weights)
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
    made = PackedQuantizationCompressor.compress(state, scheme)
    return {
        "packed": made["weight_packed"].numpy(),
        "scale": made["weight_scale"].view(torch.uint16).numpy(),
        "shape": made["weight_shape"].numpy(),
    }


def decompressed(parts, group):
    """BF16 bits of four-bit parts."""
    scheme = arguments(4, group)
    import torch
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor

    state = {
        "weight_packed": torch.from_numpy(parts["packed"].copy()),
        "weight_scale": tensor(parts["scale"]),
        "weight_shape": torch.from_numpy(parts["shape"]),
    }
    made = PackedQuantizationCompressor.decompress(state, scheme)["weight"]
    assert made.dtype == torch.bfloat16
    return made.view(torch.uint16).numpy()


def dequantized(integers, scale, group, bits):
    """BF16 bits of integers times their groups' scales (BF16 bits)."""
    scheme = arguments(bits, group)
    import torch
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    made = dequantize(torch.from_numpy(integers), tensor(scale), args=scheme.weights)
    assert made.dtype == torch.bfloat16
    return made.view(torch.uint16).numpy()
