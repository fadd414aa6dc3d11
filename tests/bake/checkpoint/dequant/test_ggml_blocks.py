"""Blocks are read as ggml reads them, whatever the bytes; BF16 is that, rounded once.

Compared is every bit of every float32 number, but a NaN's: ggml, gguf-py and NumPy have several,
and none of them means anything. ggml's C is what is followed; gguf-py 0.19 gives the same bits.
The IQ types have tests of their own (``test_iq``).
"""

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bake.checkpoint.dequant import floats4, iq
from bake.checkpoint.dequant.ggml import BLOCKS, dequantize
from blob.codecs import bfloat16
from tests.bake.checkpoint.dequant import peers
from tests.bake.checkpoint.dequant.peers import bits, random_blocks
from tests.blob.codecs import super_blocks

KINDS = [kind for kind in BLOCKS if kind not in iq.DECODERS]
OF_GGUF = [kind for kind in KINDS if kind not in ("Q1_0", "Q2_0")]
# Where the halves of a block are, and the scales of one byte.
HALVES = {
    **dict.fromkeys(["Q1_0", "Q2_0", "Q4_0", "Q5_0", "Q8_0"], (0,)),
    **dict.fromkeys(["Q4_1", "Q5_1", "Q4_K", "Q5_K"], (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}
BYTES = {"MXFP4": (0,), "NVFP4": (0, 1, 2, 3)}
EDGES = {  # halves: zeros, the smallest, subnormal, one, the largest, infinities, NaN
    "zero": 0x0000, "minus zero": 0x8000, "smallest": 0x0001, "largest subnormal": 0x83FF,
    "one": 0x3C00, "largest": 0x7BFF, "infinity": 0x7C00, "minus infinity": 0xFC00,
    "quiet NaN": 0x7E01, "signalling NaN": 0xFC01,
}  # fmt: skip


def read(kind, blocks, dtype=np.float32):
    out = peers.empty(kind, blocks, dtype)
    dequantize(kind, blocks, out)
    return out


def check(kind, blocks, gguf_too=True):
    theirs = peers.read_by_c(kind, blocks)
    assert np.array_equal(bits(read(kind, blocks)), bits(theirs))
    assert np.array_equal(read(kind, blocks, np.uint16), bfloat16.from_float32_reference(theirs))
    if gguf_too and kind in OF_GGUF:
        others = peers.read_by_gguf(kind, blocks)
        assert others.dtype == np.float32
        assert np.array_equal(bits(others), bits(theirs))


def set_halves(kind, blocks, halves):
    """Give each block, one a row, these halves; where it has two, in two orders."""
    for number, at in enumerate(HALVES[kind]):
        some = np.roll(halves, 12345 * number).astype("<u2")
        blocks[:, at : at + 2] = some.view(np.uint8).reshape(-1, 2)


def test_there_is_a_kernel_for_every_type_that_gguf_reads():
    theirs = {kind.name for kind in gguf.quants._type_traits} - {"BF16"}
    assert set(BLOCKS) == theirs | {"Q1_0", "Q2_0"}


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_is_as_large_as_ggml_and_gguf_have_it(kind):
    form = BLOCKS[kind]
    assert form.name == kind
    assert (form.values, form.size) == peers.size_by_c(kind)
    number = gguf.GGMLQuantizationType.__members__.get(kind)
    if number is not None and kind != "Q2_0":
        assert (form.values, form.size) == gguf.GGML_QUANT_SIZES[number]


@pytest.mark.parametrize("kind", KINDS)
def test_random_bytes_are_read_as_ggml_and_gguf_read_them(kind):
    check(kind, random_blocks(kind, 100, 5120 // BLOCKS[kind].values))


@pytest.mark.parametrize("kind", HALVES)
def test_every_half_there_is_as_a_scale_is_read_as_ggml_reads_it(kind):
    blocks = random_blocks(kind, 2**16, 1)
    set_halves(kind, blocks, np.arange(2**16))
    check(kind, blocks, gguf_too=False)
    check(kind, blocks[::37].copy())


@pytest.mark.parametrize("kind", HALVES)
def test_edges_beside_every_pattern_of_equal_bytes_are_read_as_ggml_and_gguf_read_them(kind):
    blocks = np.repeat(np.arange(256, dtype=np.uint8)[:, np.newaxis], BLOCKS[kind].size, axis=1)
    check(kind, blocks)
    for half in EDGES.values():
        set_halves(kind, blocks, np.full(256, half))
        check(kind, blocks)


@pytest.mark.parametrize("kind", BYTES)
def test_every_scale_of_one_byte_is_read_as_ggml_and_gguf_read_it(kind):
    # Every byte of quants at every place, beside every scale.
    blocks = np.empty((256, 256, BLOCKS[kind].size), np.uint8)
    blocks[:] = (np.arange(256, dtype=np.uint8)[:, np.newaxis] + np.arange(blocks.shape[2])) % 256
    for number, at in enumerate(BYTES[kind]):
        blocks[:, :, at] = np.roll(np.arange(256), 77 * number)[:, np.newaxis]
    check(kind, blocks.reshape(256, -1))


def test_scales_of_one_byte_are_never_nan_nor_infinite():
    assert np.isfinite(floats4.E8M0).all()
    assert np.isfinite(floats4.UE4M3).all()
    assert [floats4.E8M0[0], floats4.E8M0[255]] == [2.0**-128, 2.0**127]
    assert [*floats4.UE4M3[[0, 1, 0x7E, 0x7F, 0x80, 0xFF]]] == [0, 2.0**-10, 224, 0, 0, 240]


@given(st.sampled_from(KINDS), st.integers(1, 3), st.integers(1, 3), st.data())
def test_any_bytes_are_read_as_ggml_and_gguf_read_them(kind, rows, per_row, data):
    count = rows * per_row * BLOCKS[kind].size
    raw = data.draw(st.binary(min_size=count, max_size=count))
    check(kind, np.frombuffer(raw, np.uint8).reshape(rows, -1))


@pytest.mark.parametrize("kind", KINDS)
def test_what_ggml_encodes_of_a_model_is_read_as_ggml_and_gguf_read_it(kind):
    largest = max(super_blocks.real(), key=len)[:128]
    values = np.ascontiguousarray(largest.reshape(-1, 512))
    blocks = peers.quantize_by_c(kind, values)
    check(kind, blocks)
    # And they are the numbers that were meant; one bit, or -1, 0 and 1, keep little of them.
    left = 0.9 if kind in ("Q1_0", "Q2_0", "TQ1_0", "TQ2_0") else 0.5
    assert (read(kind, blocks) - values).std() < left * values.std()


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_outside_the_arrays_is_touched(kind, dtype):
    blocks = random_blocks(kind, 5, 2)
    wanted = read(kind, blocks, dtype)
    sources = peers.between_pages_nobody_may_touch(blocks.nbytes)
    targets = peers.between_pages_nobody_may_touch(wanted.nbytes)
    for source, target in zip(sources, targets, strict=True):
        source[:] = blocks.reshape(-1)
        out = target.view(dtype).reshape(wanted.shape)
        dequantize(kind, source.reshape(blocks.shape), out)
        assert out.tobytes() == wanted.tobytes()
