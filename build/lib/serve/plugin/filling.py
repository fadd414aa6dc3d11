"""Fills a model's parameters from arrays, and says which of them are not whole. Knows no vLLM.

vLLM's own check goes by name, so a checkpoint without ``k_proj`` leaves a third of ``qkv_proj`` as
the memory was and passes. Here the numbers that are written to each parameter are counted.
"""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

# safetensors' names. Those that NumPy lacks come as arrays of their bits.
DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
}
NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
# What weight loaders write with; `param[…] = x` is one of the first.
WRITES = ("copy_", "fill_", "zero_")


def to_tensor(array: NDArray[Any], dtype: str) -> torch.Tensor:
    """The memory of ``array`` as a tensor that holds on to it; nothing is copied."""
    return torch.from_numpy(array).view(DTYPES[dtype])


def to_array(tensor: torch.Tensor) -> NDArray[Any]:
    """``tensor`` as an array of the same shape; types that NumPy lacks as their bits."""
    plain = tensor.detach().cpu().contiguous()
    if tensor.dtype is torch.bfloat16:
        plain = plain.view(torch.uint16)
    elif NAMES[tensor.dtype].startswith("F8"):
        plain = plain.view(torch.uint8)
    array: NDArray[Any] = plain.numpy()
    return array


class Written(TorchDispatchMode):  # type: ignore[misc]
    """Counts the numbers that this thread writes, by the storage they are written to.

    Only plain writes are counted; a parameter whose storage was replaced is for whoever did that.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self._numbers: Counter[int] = Counter()
        self._storages = {name: _storage(param) for name, param in model.named_parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, then do it."""
        if func.overloadpacket.__name__ in WRITES:
            self._numbers[_storage(args[0])] += args[0].numel()
        return func(*args, **(kwargs or {}))

    def not_whole(self, model: torch.nn.Module) -> list[str]:
        """``name (written of numbers)`` of each parameter that was not written in full."""
        return [
            f"{name} ({self._numbers[_storage(param)]} of {param.numel()} numbers)"
            for name, param in model.named_parameters()
            if _storage(param) == self._storages.get(name)
            and self._numbers[_storage(param)] < param.numel()
        ]


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage().data_ptr())


@dataclass
class Waited:
    """Seconds that the model waited for its weights, and how many tensors it was given."""

    seconds: float = 0.0
    tensors: int = 0

    def over(self, weights: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, Any]]:
        """``weights``, timed; no tensor is held while the next one is made."""
        while True:
            began = time.perf_counter()
            item = next(weights, None)
            self.seconds += time.perf_counter() - began
            if item is None:
                return
            self.tensors += 1
            yield item
            del item


@contextlib.contextmanager
def all_cores() -> Iterator[None]:
    """Threads started within may run wherever the parent process may.

    vLLM binds the worker of a CPU engine to its cores, less one for the scheduler, which is idle
    while weights are loaded; threads inherit that.
    """
    bound = os.sched_getaffinity(0)
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()) | bound)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, bound)
