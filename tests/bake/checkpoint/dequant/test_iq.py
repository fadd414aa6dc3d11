"""Blocks of the IQ types are read as ggml reads them, whatever the bytes; BF16 is that, rounded."""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import gguf
import numpy as np
import pytest
from gguf import quants
from hypothesis import given
from hypothesis import strategies as st

from bake.checkpoint.dequant import iq_grids
from bake.checkpoint.dequant.ggml import dequantize
from bake.checkpoint.dequant.iq import DECODERS
from blob.codecs import bfloat16
from blob.codecs.k_decode import flat
from tests.bake.checkpoint.dequant.peers import between_pages_nobody_may_touch
from tests.blob.codecs import ggml, super_blocks

KINDS = list(DECODERS)
GRIDS = {
    "IQ1S": (quants.IQ1_S, 2048),
    "IQ2XXS": (quants.IQ2_XXS, 256),
    "IQ2XS": (quants.IQ2_XS, 512),
    "IQ2S": (quants.IQ2_S, 1024),
    "IQ3XXS": (quants.IQ3_XXS, 256),
    "IQ3S": (quants.IQ3_S, 512),
}
# ggml finds every point's neighbours before it encodes the first block: up to ten seconds.
SLOW = ("IQ1_S", "IQ1_M", "IQ2_S", "IQ2_XS")
NAN = np.uint32(0x7FC00000)


def read(kind, blocks, dtype):
    """Rows × bytes as rows × cols of float32, or as BF16 bits if ``dtype`` is uint16."""
    form = DECODERS[kind]
    out = np.full((len(blocks), blocks.shape[1] // form.size * form.values), 0x5A5A, dtype)
    read_into(kind, blocks, out)
    return out


def read_into(kind, blocks, out):
    stored, stride = flat(blocks)
    read_only = stored.view()
    read_only.flags.writeable = False  # as mapped files are; kernels are compiled for that alone
    DECODERS[kind].rows(read_only, stride, len(blocks), out.reshape(-1))


@cache
def c_decoder(kind):
    decode = getattr(ggml.library(), f"dequantize_row_{kind.lower()}")
    decode.argtypes = [ggml.BYTE_ROWS, ggml.FLOATS, ctypes.c_int64]
    decode.restype = None
    return decode


def read_by_c(kind, blocks):
    form = DECODERS[kind]
    out = np.empty((len(blocks), blocks.shape[1] // form.size * form.values), np.float32)
    c_decoder(kind)(np.ascontiguousarray(blocks), out, out.size)
    return out


def read_by_gguf(kind, blocks):
    with np.errstate(all="ignore"):
        return quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])


def bits(numbers):
    """All there is to know of float32 numbers, but what kind of NaN one is."""
    return np.where(np.isnan(numbers), NAN, numbers.view(np.uint32))


def check(kind, blocks, *others):
    theirs = read_by_c(kind, blocks)
    assert np.array_equal(bits(read(kind, blocks, np.float32)), bits(theirs))
    assert np.array_equal(read(kind, blocks, np.uint16), bfloat16.from_float32(theirs))
    for other in others:
        assert np.array_equal(bits(other(kind, blocks)), bits(theirs))


def random_blocks(kind, rows, per_row, seed=3):
    shape = (rows, per_row * DECODERS[kind].size)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def set_scale(kind, blocks, halves):
    """Give each block, one a row, its scale, whatever else it holds."""
    if kind != "IQ1_M":
        blocks[:, :2] = halves.astype("<u2")[:, np.newaxis].view(np.uint8)
        return
    for nibble in range(4):  # on top of the last eight bytes
        kept = blocks[:, 49 + 2 * nibble] & 0x0F
        blocks[:, 49 + 2 * nibble] = kept | (halves >> 4 * nibble & 15).astype(np.uint8) << 4


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_is_that_of_gguf(name):
    theirs, points = GRIDS[name]
    theirs.init_grid()
    ours = getattr(iq_grids, name)
    assert ours.shape == (points,)
    assert np.array_equal(ours.view(np.int8).reshape(points, -1), theirs.grid[0, 0])


def test_signs_and_steps_are_those_of_gguf():
    assert iq_grids.EVEN_SIGNS.tobytes() == quants.IQ2_XXS.ksigns
    assert tuple(iq_grids.STEPS) == quants.IQ4_NL.kvalues


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_is_as_large_as_gguf_has_it(kind):
    form, number = DECODERS[kind], gguf.GGMLQuantizationType[kind]
    assert form.name == kind
    assert (form.values, form.size) == gguf.GGML_QUANT_SIZES[number]


@pytest.mark.parametrize("kind", KINDS)
def test_random_bytes_are_read_as_ggml_and_gguf_read_them(kind):
    check(kind, random_blocks(kind, 100, 2048 // DECODERS[kind].values), read_by_gguf)


@pytest.mark.parametrize("kind", KINDS)
def test_every_half_there_is_as_a_scale_is_read_as_ggml_reads_it(kind):
    blocks = random_blocks(kind, 2**16, 1)
    set_scale(kind, blocks, np.arange(2**16))
    theirs = read_by_c(kind, blocks)
    assert np.isnan(theirs).any()
    assert np.isinf(theirs).any()
    check(kind, blocks)


@pytest.mark.parametrize("kind", KINDS)
def test_every_pattern_of_equal_bytes_is_read_as_ggml_and_gguf_read_it(kind):
    blocks = np.repeat(np.arange(256, dtype=np.uint8)[:, np.newaxis], DECODERS[kind].size, axis=1)
    check(kind, blocks, read_by_gguf)
    # One, the smallest and the largest, zeros, infinity and a NaN for a scale.
    for half in (0x3C00, 0x0001, 0x7BFF, 0x0000, 0x8000, 0x7C00, 0x7E01):
        set_scale(kind, blocks, np.full(256, half))
        check(kind, blocks, read_by_gguf)


@given(st.sampled_from(KINDS), st.integers(1, 3), st.integers(1, 3), st.data())
def test_any_bytes_are_read_as_ggml_reads_them(kind, rows, per_row, data):
    count = rows * per_row * DECODERS[kind].size
    raw = data.draw(st.binary(min_size=count, max_size=count))
    check(kind, np.frombuffer(raw, np.uint8).reshape(rows, -1))


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind in SLOW else ()) for kind in KINDS]
)
def test_what_ggml_encodes_of_a_model_is_read_as_ggml_and_gguf_read_it(kind):
    largest = max(super_blocks.real(), key=len)[:32]
    values = np.ascontiguousarray(largest.reshape(-1, 512))
    form = DECODERS[kind]
    blocks = np.empty((len(values), 512 // form.values * form.size), np.uint8)
    importance = np.linspace(0.5, 1.5, 512, dtype=np.float32)
    number = gguf.GGMLQuantizationType[kind]
    address = importance.ctypes.data
    written = ggml.library().ggml_quantize_chunk(number, values, blocks, 0, *values.shape, address)
    assert written == blocks.nbytes
    check(kind, blocks, read_by_gguf)
    # And they are the numbers that were meant: one bit and a half keep half of a deviation.
    assert (read(kind, blocks, np.float32) - values).std() < 0.6 * values.std()


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_can_be_split_anywhere_over_threads_and_may_lie_apart(kind, dtype):
    blocks = random_blocks(kind, 103, 3)
    whole = read(kind, blocks, dtype)
    wide = np.full((103, blocks.shape[1] + 5), 0xA5, np.uint8)
    apart = wide[:, 3:-2]
    apart[:] = blocks
    apart.flags.writeable = False
    out = np.empty_like(whole)
    bounds = [0, 1, 8, 33, 64, 103]

    def some(begin, end):
        read_into(kind, apart[begin:end], out[begin:end])

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(some, bounds[:-1], bounds[1:]))
    assert out.tobytes() == whole.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_is_the_same_bytes_on_any_number_of_threads(kind, dtype):
    blocks = random_blocks(kind, 37, 20 * 1024 * 1024 // 37 // DECODERS[kind].values // 16)
    whole = read(kind, blocks, dtype)
    for threads in (1, 2, 3):
        out = np.full_like(whole, 7)
        dequantize(kind, blocks, out, threads)
        assert out.tobytes() == whole.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_outside_the_arrays_is_touched(kind, dtype):
    blocks = random_blocks(kind, 5, 2)
    wanted = read(kind, blocks, dtype)
    sources = between_pages_nobody_may_touch(blocks.nbytes)
    targets = between_pages_nobody_may_touch(wanted.nbytes)
    for source, target in zip(sources, targets, strict=True):
        source[:] = blocks.reshape(-1)
        out = target.view(dtype).reshape(wanted.shape)
        read_into(kind, source.reshape(blocks.shape), out)
        assert out.tobytes() == wanted.tobytes()
