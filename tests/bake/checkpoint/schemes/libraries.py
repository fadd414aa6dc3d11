"""The canonical libraries, and tensors from arrays and back."""

import warnings
from functools import cache

import numpy as np
import pytest


@cache
def patched():
    """torch, so that transformers can be imported after it: here torchvision is not whole."""
    torch = pytest.importorskip("torch")
    from serve.plugin.patches import TORCHVISION_OPS, apply_all

    apply_all([TORCHVISION_OPS])
    return torch


def imported(name):
    """A module, or a skip; it may warn while it is imported."""
    patched()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


def tensor(array, dtype=None):
    """``array`` as torch has it; ``dtype`` by safetensors' name where NumPy lacks it."""
    torch = patched()
    kinds = {
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "F8_E8M0": torch.float8_e8m0fnu,
    }
    made = torch.from_numpy(np.array(array))
    return made.view(kinds[dtype]) if dtype else made


def array(tensor):
    """Its numbers; BF16 and F8 as their bits."""
    torch = patched()
    bits = {
        torch.bfloat16: torch.uint16,
        torch.float8_e4m3fn: torch.uint8,
        torch.float8_e5m2: torch.uint8,
        torch.float8_e8m0fnu: torch.uint8,
    }
    kind = bits.get(tensor.dtype)
    return (tensor.view(kind) if kind else tensor).contiguous().numpy().copy()
