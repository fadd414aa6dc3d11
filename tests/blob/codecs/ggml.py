"""ggml's own C encoders and decoders, as two packages ship them: what the codecs must equal.

``libggml-python`` holds the whole library (called through ctypes, which lets go of the GIL);
``libgguf`` compiles ggml's quantization for itself, so it is a second opinion. Neither contracts
products and sums into FMA instructions: a compiler that does makes other bytes.
"""

import ctypes
from functools import cache
from importlib.metadata import distribution

import libgguf
import numpy as np
from numpy.typing import NDArray

# enum ggml_type in ggml.h; bytes and values of a block: block_q8_0 … block_q6_K in ggml-common.h.
TYPES = {"q8_0": 8, "q4_k": 12, "q5_k": 13, "q6_k": 14}
BYTES = {"q8_0": 34, "q4_k": 144, "q5_k": 176, "q6_k": 210}
VALUES = {"q8_0": 32, "q4_k": 256, "q5_k": 256, "q6_k": 256}
SYMBOLS = {"q8_0": "q8_0", "q4_k": "q4_K", "q5_k": "q5_K", "q6_k": "q6_K"}

FLOATS = np.ctypeslib.ndpointer(np.float32, flags="C_CONTIGUOUS")
BYTE_ROWS = np.ctypeslib.ndpointer(np.uint8, flags="C_CONTIGUOUS")


@cache
def library() -> ctypes.CDLL:
    shared = distribution("libggml-python").locate_file("libggml/lib64/libggml-base.so")
    lib = ctypes.CDLL(str(shared))
    lib.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,  # type
        FLOATS,
        BYTE_ROWS,
        ctypes.c_int64,  # where to start, in values
        ctypes.c_int64,  # rows
        ctypes.c_int64,  # values of a row
        ctypes.c_void_p,  # importance matrix: none
    ]
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    for symbol in SYMBOLS.values():
        quantize = getattr(lib, f"quantize_row_{symbol}_ref")
        quantize.argtypes = [FLOATS, BYTE_ROWS, ctypes.c_int64]
        quantize.restype = None
        dequantize = getattr(lib, f"dequantize_row_{symbol}")
        dequantize.argtypes = [BYTE_ROWS, FLOATS, ctypes.c_int64]
        dequantize.restype = None
    return lib


def empty(kind: str, rows: int, cols: int) -> NDArray[np.uint8]:
    """Room for what ``rows`` × ``cols`` values become."""
    return np.empty((rows, cols // VALUES[kind] * BYTES[kind]), np.uint8)


def quantize_into(kind: str, values: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    """``ggml_quantize_chunk``: what llama-quantize calls. Rows × cols into rows × bytes."""
    rows, cols = values.shape
    library().ggml_quantize_chunk(TYPES[kind], values, out, 0, rows, cols, None)


def quantize(kind: str, values: NDArray[np.float32]) -> NDArray[np.uint8]:
    out = empty(kind, *values.shape)
    quantize_into(kind, values, out)
    return out


def quantize_row_ref(kind: str, values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """``quantize_row_*_ref``: ggml's "reference implementation for deterministic model files"."""
    out = empty(kind, *values.shape)
    getattr(library(), f"quantize_row_{SYMBOLS[kind]}_ref")(values, out, values.size)
    return out


def quantize_by_libgguf(kind: str, values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The other package's compilation of the same source."""
    out = empty(kind, *values.shape)
    libgguf.quantize_rows_into_raw(TYPES[kind], values, out, *values.shape)
    return out


def dequantize_into(kind: str, blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    getattr(library(), f"dequantize_row_{SYMBOLS[kind]}")(blocks, out, out.size)


def dequantize(kind: str, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """``dequantize_row_*``: rows × bytes as rows × cols of float32."""
    out = np.empty((len(blocks), blocks.shape[1] // BYTES[kind] * VALUES[kind]), np.float32)
    dequantize_into(kind, blocks, out)
    return out
