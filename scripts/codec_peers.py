"""Whom the codecs are measured against, on the same arrays: ggml's C and compressed-tensors.

ggml comes from ``libggml-python`` and is called through ctypes, which gives the GIL away. Of
compressed-tensors it is what reads a packed weight back: ``unpack_from_int32``, ``dequantize``.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from importlib.metadata import distribution
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blob.codecs import Bfloats, Floats, Parts

# enum ggml_type in ggml.h.
GGML = {"q8_0": 8, "q4_k": 12, "q5_k": 13, "q6_k": 14}


@cache
def ggml() -> ctypes.CDLL:
    """ggml-base as the package ships it.

    :raises PackageNotFoundError: ``libggml-python`` is not installed.
    """
    shared = distribution("libggml-python").locate_file("libggml/lib64/libggml-base.so")
    library = ctypes.CDLL(str(shared))
    # What kind, from where, to where, the first value, rows, columns, and no importance matrix.
    address, count = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, address, address, count, count, count, address,
    ]  # fmt: skip
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library


def ggml_encode(kind: str, values: Floats, out: NDArray[np.uint8]) -> None:
    """``ggml_quantize_chunk``, which llama-quantize calls: rows × cols into rows × bytes."""
    rows, cols = values.shape
    ggml().ggml_quantize_chunk(GGML[kind], values.ctypes.data, out.ctypes.data, 0, rows, cols, None)


def compressed_decode(
    integers: NDArray[np.int8], scale: Bfloats, group: int, bits: int
) -> Callable[[int], Bfloats]:
    """compressed-tensors' way from words to BF16 bits, as a function of the threads it may use.

    The words are its own: with five bits, version 0.17.0 puts six to a word.
    """
    from serve.plugin.patches import TORCHVISION_OPS, apply_all

    apply_all([TORCHVISION_OPS])
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import (
        pack_to_int32,
        unpack_from_int32,
    )
    from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    args = QuantizationArgs(
        num_bits=bits, group_size=group, symmetric=True, strategy=QuantizationStrategy.GROUP
    )
    words = pack_to_int32(torch.from_numpy(integers), bits)
    factors = torch.from_numpy(scale).view(torch.bfloat16)
    shape = torch.Size(integers.shape)

    def decode(threads: int) -> Bfloats:
        torch.set_num_threads(threads)
        read = dequantize(unpack_from_int32(words, bits, shape), factors, args=args)
        bits_read: Bfloats = read.view(torch.uint16).numpy()
        return bits_read

    return decode


def integers_of(parts: Parts, bits: int) -> NDArray[np.int8]:
    """The signed integers of dense words."""
    packed = parts["packed"]
    stored = np.unpackbits(packed.view(np.uint8), axis=1, bitorder="little")
    weights = (1 << np.arange(bits)).astype(np.int8)
    signed: Any = stored.reshape(len(packed), -1, bits).astype(np.int8) @ weights
    integers: NDArray[np.int8] = (signed - (1 << (bits - 1))).astype(np.int8)
    return integers
