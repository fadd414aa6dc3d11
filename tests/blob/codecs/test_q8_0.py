"""q8_0 is ggml's, byte for byte: random, edge and real blocks, and any finite numbers at all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blob.codecs import Part, RowCodec
from blob.codecs.q8_0 import Q8_0
from tests.blob.codecs import ggml, rows, super_blocks
from tests.blob.codecs.super_blocks import differing, encoded

CODEC = Q8_0()
BYTES = 34
NONE = {"quantize": 0, "quantize_by_libgguf": 0}


def edges(blocks):
    """What rounding eight bits could stumble over, beside what all could; eight blocks a row."""
    generator = np.random.default_rng(19)
    # The scale is 1 here: numbers stay as they are and are rounded.
    ties = generator.integers(-127, 127, (blocks, 256)) + np.float32(0.5)
    ties[:, ::32] = 127
    beside = np.nextafter(ties, generator.choice([-200, 200], ties.shape).astype(np.float32))
    beside[:, ::32] = 127
    small = np.full((blocks, 256), np.nextafter(np.float32(0.5), np.float32(0)), np.float32)
    small[:, ::32] = 127
    normal = generator.standard_normal((blocks, 256)).astype(np.float32)
    # Around 127 · 2⁻¹²⁸ inverse scales begin to be infinite.
    inverses = np.float32(3.7321e-37) * generator.uniform(0.98, 1.02, (blocks, 8)).repeat(32, 1)
    own = {
        "halfway between two integers": ties,
        "beside halfway": beside,
        "the number below a half": small,
        "inverses at the edge of infinity": np.sign(normal) * inverses,
        "scales are subnormal": normal * np.float32(1e-37),
    }
    kinds = super_blocks.edges(blocks) | own
    return {kind: values.astype(np.float32) for kind, values in kinds.items()}


EDGES = edges(blocks=64)


def test_it_is_a_row_codec_of_one_part():
    assert isinstance(CODEC, RowCodec)
    assert (CODEC.name, CODEC.block) == ("q8_0", 32)
    assert CODEC.parts(3, 96) == {"blocks": Part("U8", (3, 3 * BYTES))}
    assert CODEC.constants(3, 96) == {}


def test_random_blocks_are_ggmls():
    assert differing(CODEC, super_blocks.random(super_blocks.RANDOM, cols=1024)) == NONE


def test_ggmls_own_reference_makes_the_same():
    values = super_blocks.random(4096)
    assert np.array_equal(encoded(CODEC, values), ggml.quantize_row_ref("q8_0", values))


@pytest.mark.parametrize("kind", EDGES)
def test_edge_blocks_are_ggmls(kind):
    assert differing(CODEC, EDGES[kind]) == NONE


def test_many_edge_blocks_are_ggmls():
    assert differing(CODEC, np.concatenate(list(edges(blocks=3600).values()))) == NONE


def test_what_has_no_inverse_becomes_zeros_where_c_leaves_the_bytes_undefined():
    # A float outside a byte's range has no defined conversion in C. Both packages, being for
    # x86, store what its instruction leaves: 0.
    values = np.tile(np.float32([3e-37, -3e-37, 1e-40, 0]), (1, 8))
    assert not encoded(CODEC, values).any()
    assert differing(CODEC, values) == NONE
    assert not CODEC.encode_reference(values)["blocks"].any()


def test_a_scale_beyond_a_half_is_infinite_and_gives_no_numbers_back_as_in_ggml():
    values = np.full((1, 32), 1e10, np.float32)
    blocks = encoded(CODEC, values)
    assert differing(CODEC, values) == NONE
    assert not np.isfinite(ggml.dequantize("q8_0", blocks)).any()
    assert not np.isfinite(CODEC.decode_reference({"blocks": blocks})).any()


def test_the_tiny_models_weights_are_ggmls():
    blocks = 0
    for values in super_blocks.real():
        assert differing(CODEC, values) == NONE
        blocks += 8 * len(values)
    assert blocks > 800_000


@given(super_blocks.finite())
def test_any_finite_numbers_are_ggmls_and_the_references(values):
    assert differing(CODEC, values) == NONE
    rows.same_as_the_references(CODEC, values)


def test_the_reference_says_the_same_of_random_edge_and_real_blocks():
    edge = np.concatenate(list(EDGES.values()))
    for values in (super_blocks.random(1024, cols=512), edge, next(super_blocks.real())[:1024]):
        rows.same_as_the_references(CODEC, values)


@given(st.lists(st.integers(0, 23), max_size=6), st.sampled_from([1, 2, 3]))
def test_rows_can_be_split_anywhere_over_threads(cuts, threads):
    values = super_blocks.random(3 * 23, cols=256)[:, :96]
    values = np.ascontiguousarray(values)
    split = super_blocks.encoded_in_pieces(CODEC, values, cuts, threads)
    assert np.array_equal(split, encoded(CODEC, values))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_rows_are_read_the_same_on_any_number_of_threads(threads):
    rows.same_however_rows_are_split(CODEC, super_blocks.random(2 * 101, cols=512), threads)


def test_no_rows_are_no_blocks():
    nothing = np.empty((0, 32), np.float32)
    assert encoded(CODEC, nothing).shape == (0, BYTES)
    assert CODEC.encode_reference(nothing)["blocks"].shape == (0, BYTES)


def test_numbers_may_be_read_only():
    values = super_blocks.random(2)
    writable = encoded(CODEC, values)
    values.flags.writeable = False
    assert np.array_equal(encoded(CODEC, values), writable)


def test_what_does_not_fit_is_refused():
    blocks = np.zeros((2, 34), np.uint8)
    with pytest.raises(ValueError, match="multiple of 32"):
        CODEC.encode(np.zeros((2, 31), np.float32), {"blocks": blocks})
    with pytest.raises(ValueError, match="float32"):
        CODEC.encode(np.zeros((2, 32)), {"blocks": blocks})
    with pytest.raises(ValueError, match=r"\(3, 34\)"):
        CODEC.encode(np.zeros((3, 32), np.float32), {"blocks": blocks})
