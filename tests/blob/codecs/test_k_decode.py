"""Blocks are read as ggml reads them, whatever the bytes; then rounded once, to BF16."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blob.codecs import bfloat16, k_decode
from tests.blob.codecs import ggml

KINDS = list(ggml.TYPES)
# Where the halves of a block are.
HALVES = {"q8_0": [0], "q4_k": [0, 2], "q5_k": [0, 2], "q6_k": [208]}


def read(kind, blocks):
    """BF16 bits of the fast path, into an array full of something else."""
    cols = blocks.shape[1] // ggml.BYTES[kind] * ggml.VALUES[kind]
    out = np.full((len(blocks), cols), 0x5A5A, np.uint16)
    getattr(k_decode, f"decode_{kind}")(blocks, out)
    return out


def read_unrounded(kind, blocks):
    """The same kernel's float32 numbers."""
    cols = blocks.shape[1] // ggml.BYTES[kind] * ggml.VALUES[kind]
    out = np.full((len(blocks), cols), 5.5, np.float32)
    if out.size:
        flat, stride = k_decode.flat(blocks)
        getattr(k_decode, f"{kind}_rows")(flat, stride, len(blocks), out.reshape(-1))
    return out


def read_plainly(kind, blocks):
    return getattr(k_decode, f"decode_{kind}_reference")(blocks)


def random_blocks(kind, rows, per_row, seed=3):
    shape = (rows, per_row * ggml.BYTES[kind])
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def check(kind, blocks):
    """Plain and fast against ggml's C. A NaN is a NaN, whatever its payload."""
    theirs, plain = ggml.dequantize(kind, blocks), read_plainly(kind, blocks)
    nan = np.isnan(theirs)
    for ours in (plain, read_unrounded(kind, blocks)):
        assert ours.dtype == np.float32
        assert ours.shape == theirs.shape
        assert np.array_equal(np.isnan(ours), nan)
        assert np.array_equal(ours.view(np.uint32)[~nan], theirs.view(np.uint32)[~nan])
    assert np.array_equal(read(kind, blocks), bfloat16.from_float32_reference(theirs))


@pytest.mark.parametrize("kind", KINDS)
def test_random_bytes_are_read_as_ggml_reads_them(kind):
    blocks = random_blocks(kind, 1000, 800 // (ggml.VALUES[kind] // 32))
    check(kind, blocks)


@pytest.mark.parametrize("kind", KINDS)
def test_every_half_there_is_as_a_scale_is_read_as_ggml_reads_it(kind):
    blocks = random_blocks(kind, 2**16, 1)
    halves = np.arange(2**16, dtype="<u4").astype("<u2").view(np.uint8).reshape(-1, 2)
    for number, at in enumerate(HALVES[kind]):
        blocks[:, at : at + 2] = np.roll(halves, 12345 * number, axis=0)
    check(kind, blocks)


@pytest.mark.parametrize("kind", KINDS)
def test_what_ggml_encodes_is_read_as_ggml_reads_it(kind):
    values = np.random.default_rng(4).normal(0, 0.02, (256, 1024)).astype(np.float32)
    blocks = ggml.quantize(kind, values)
    check(kind, blocks)
    near = bfloat16.to_float32(read(kind, blocks))
    assert np.abs(near - values).max() < 0.02


@given(st.sampled_from(KINDS), st.integers(1, 3), st.integers(1, 3), st.data())
def test_any_bytes_are_read_as_ggml_reads_them(kind, rows, per_row, data):
    count = rows * per_row * ggml.BYTES[kind]
    raw = data.draw(st.binary(min_size=count, max_size=count))
    check(kind, np.frombuffer(raw, np.uint8).reshape(rows, -1))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_can_be_split_anywhere_over_threads_and_may_lie_apart(kind, threads):
    blocks = random_blocks(kind, 103, 3)
    whole = read(kind, blocks)
    wide = np.full((103, blocks.shape[1] + 5), 0xA5, np.uint8)
    apart = wide[:, 3:-2]
    apart[:] = blocks
    apart.flags.writeable = False
    out = np.empty_like(whole)
    bounds = [0, 1, 8, 8, 33, 64, 103]

    def some(begin, end):
        getattr(k_decode, f"decode_{kind}")(apart[begin:end], out[begin:end])

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(some, bounds[:-1], bounds[1:]))
    assert np.array_equal(out, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows_and_no_columns_are_nothing(kind):
    assert read(kind, np.empty((0, ggml.BYTES[kind]), np.uint8)).shape == (0, ggml.VALUES[kind])
    assert read(kind, np.empty((3, 0), np.uint8)).shape == (3, 0)
    assert read_plainly(kind, np.empty((0, ggml.BYTES[kind]), np.uint8)).shape[0] == 0
    assert read_plainly(kind, np.empty((3, 0), np.uint8)).shape == (3, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_is_refused(kind):
    size, values = ggml.BYTES[kind], ggml.VALUES[kind]
    decode = getattr(k_decode, f"decode_{kind}")
    blocks, out = np.zeros((2, size), np.uint8), np.zeros((2, values), np.uint16)
    for wrong in (blocks[:, :-1], blocks[:1], blocks.view(np.int8), np.zeros((2, 2 * size), "u1")):
        with pytest.raises(ValueError, match="blocks must be"):
            decode(wrong, out)
    with pytest.raises(ValueError, match="strides"):
        decode(np.zeros((2, 2 * size), np.uint8)[:, ::2], out)
    with pytest.raises(ValueError, match="multiple"):
        decode(blocks, out[:, :-1])
    with pytest.raises(ValueError, match="uint16"):
        decode(blocks, out.astype(np.float32))
    with pytest.raises(ValueError, match="contiguous"):
        decode(blocks, np.zeros((2, 2 * values), np.uint16)[:, ::2])
