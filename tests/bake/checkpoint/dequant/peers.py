"""The two that say what blocks mean: ggml's C through ctypes, and gguf-py."""

import ctypes
import mmap
from functools import cache

import gguf
import numpy as np

from bake.checkpoint.dequant.ggml import BLOCKS
from bake.checkpoint.ggml_types import TYPES
from tests.blob.codecs import ggml

NUMBERS = {one.name: number for number, one in TYPES.items()}
NAN = np.uint32(0x7FC00000)


@cache
def c_decoder(kind):
    """``dequantize_row_*`` of ggml-quants.c."""
    name = kind.lower().replace("_k", "_K")
    decode = getattr(ggml.library(), f"dequantize_row_{name}")
    decode.argtypes = [ggml.BYTE_ROWS, ggml.FLOATS, ctypes.c_int64]
    decode.restype = None
    return decode


def empty(kind, blocks, dtype):
    """Room for the numbers of ``blocks``, full of something else."""
    form = BLOCKS[kind]
    return np.full((len(blocks), blocks.shape[1] // form.size * form.values), 0x5A5A, dtype)


def read_by_c(kind, blocks):
    out = empty(kind, blocks, np.float32)
    c_decoder(kind)(np.ascontiguousarray(blocks), out, out.size)
    return out


def read_by_gguf(kind, blocks):
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])


def size_by_c(kind):
    """Values and bytes of a block."""
    library, number = ggml.library(), NUMBERS[kind]
    library.ggml_blck_size.restype = ctypes.c_int64
    library.ggml_type_size.restype = ctypes.c_size_t
    return library.ggml_blck_size(number), library.ggml_type_size(number)


def quantize_by_c(kind, values):
    """``ggml_quantize_chunk``: what llama-quantize calls. Rows × cols into rows × bytes."""
    form = BLOCKS[kind]
    blocks = np.zeros((len(values), values.shape[1] // form.values * form.size), np.uint8)
    written = ggml.library().ggml_quantize_chunk(
        NUMBERS[kind], values, blocks, 0, *values.shape, None
    )
    assert written == blocks.nbytes
    return blocks


def bits(numbers):
    """All there is to know of float32 numbers, but what kind of NaN one is."""
    return np.where(np.isnan(numbers), NAN, numbers.view(np.uint32))


def random_blocks(kind, rows, per_row, seed=3):
    shape = (rows, per_row * BLOCKS[kind].size)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def between_pages_nobody_may_touch(size):
    """Two arrays of bytes: the first begins where a page does, the second ends where one does."""
    page = mmap.PAGESIZE
    inside = -(-size // page) * page
    memory = mmap.mmap(-1, inside + 2 * page)
    whole = np.frombuffer(memory, np.uint8)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start in (0, inside + page):
        assert protect(whole.ctypes.data + start, page, 0) == 0
    return whole[page : page + size], whole[page + inside - size : page + inside]
