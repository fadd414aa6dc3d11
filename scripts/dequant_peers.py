"""Whom dequantization is measured against: ggml's C (``libggml-python``) and gguf-py.

Both give float32, on one thread. ggml's C fills what it is given; gguf-py makes a new array.
"""

import ctypes

import gguf
import numpy as np
from numpy.typing import NDArray

from bake.checkpoint.dequant.ggml import BLOCKS
from bake.checkpoint.ggml_types import TYPES
from blob.codecs import Floats
from scripts.codec_peers import ggml

NUMBERS = {one.name: number for number, one in TYPES.items()}
Bytes = NDArray[np.uint8]


def gguf_reads(kind: str) -> bool:
    """Whether gguf-py reads this type."""
    number = gguf.GGMLQuantizationType.__members__.get(kind)
    return number in gguf.quants._type_traits


def by_gguf(kind: str, blocks: Bytes) -> Floats:
    """``gguf.quants.dequantize``."""
    read: Floats = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    return read


def by_c(kind: str, blocks: Bytes, out: Floats) -> None:
    """``dequantize_row_*`` of ggml-quants.c, over all rows at once."""
    symbol = kind.lower().replace("_k", "_K")
    decode = getattr(ggml(), f"dequantize_row_{symbol}")
    address = ctypes.c_void_p
    decode(address(blocks.ctypes.data), address(out.ctypes.data), ctypes.c_int64(out.size))


def quantized(kind: str, values: Floats) -> Bytes:
    """``ggml_quantize_chunk`` with even importance, which some types ask for."""
    form, (rows, cols) = BLOCKS[kind], values.shape
    blocks = np.zeros((rows, cols // form.values * form.size), np.uint8)
    even = np.ones(cols, np.float32)
    ggml().ggml_quantize_chunk(
        NUMBERS[kind], values.ctypes.data, blocks.ctypes.data, 0, rows, cols, even.ctypes.data
    )
    return blocks
