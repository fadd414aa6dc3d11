"""q4_k is ggml's, byte for byte: random, edge and real blocks, and any finite numbers at all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blob.codecs import Part, RowCodec, bfloat16
from blob.codecs.q4_k import Q4_K
from tests.blob.codecs import ggml, super_blocks
from tests.blob.codecs.super_blocks import differing, encoded

CODEC = Q4_K()
BYTES = 144
NONE = {"quantize": 0, "quantize_by_libgguf": 0}
EDGES = super_blocks.edges(blocks=64)


def test_it_is_a_row_codec_of_one_part():
    assert isinstance(CODEC, RowCodec)
    assert (CODEC.name, CODEC.block) == ("q4_k", 256)
    assert CODEC.parts(3, 512) == {"blocks": Part("U8", (3, 2 * BYTES))}
    assert CODEC.constants(3, 512) == {}


def test_random_blocks_are_ggmls():
    assert differing(CODEC, super_blocks.random(super_blocks.RANDOM, cols=1024)) == NONE


@pytest.mark.parametrize("kind", EDGES)
def test_edge_blocks_are_ggmls(kind):
    assert differing(CODEC, EDGES[kind]) == NONE


def test_many_edge_blocks_are_ggmls():
    assert differing(CODEC, np.concatenate(list(super_blocks.edges(blocks=3600).values()))) == NONE


def test_the_tiny_models_weights_are_ggmls():
    blocks = 0
    for values in super_blocks.real():
        assert differing(CODEC, values) == NONE
        blocks += len(values)
    assert blocks > 100_000


@given(super_blocks.finite())
def test_any_finite_numbers_are_ggmls_and_the_references(values):
    assert differing(CODEC, values) == NONE
    assert np.array_equal(encoded(CODEC, values), CODEC.encode_reference(values)["blocks"])


def test_the_reference_says_the_same_of_random_edge_and_real_blocks():
    edges = np.concatenate(list(EDGES.values()))
    for values in (super_blocks.random(2048, cols=512), edges, next(super_blocks.real())[:2048]):
        reference = CODEC.encode_reference(values)["blocks"]
        assert reference.dtype == np.uint8
        assert np.array_equal(encoded(CODEC, values), reference)


@given(st.lists(st.integers(0, 23), max_size=6), st.sampled_from([1, 2, 3]))
def test_rows_can_be_split_anywhere_over_threads(cuts, threads):
    # Three super-blocks a row: a piece of odd rows ends between the two that go together.
    values = super_blocks.random(3 * 23, cols=768)
    split = super_blocks.encoded_in_pieces(CODEC, values, cuts, threads)
    assert np.array_equal(split, encoded(CODEC, values))


def test_no_rows_are_no_blocks():
    nothing = np.empty((0, 256), np.float32)
    assert encoded(CODEC, nothing).shape == (0, BYTES)
    assert CODEC.encode_reference(nothing)["blocks"].shape == (0, BYTES)


def test_numbers_may_be_read_only():
    values = super_blocks.random(2)
    writable = encoded(CODEC, values)
    values.flags.writeable = False
    assert np.array_equal(encoded(CODEC, values), writable)


def test_what_was_encoded_is_decoded_as_ggml_decodes_it():
    values = super_blocks.random(64, cols=512)
    blocks = encoded(CODEC, values)
    decoded = ggml.dequantize(CODEC.name, blocks)
    out = np.empty(values.shape, np.uint16)
    CODEC.decode({"blocks": blocks}, out)
    assert np.array_equal(CODEC.decode_reference({"blocks": blocks}), decoded)
    assert np.array_equal(out, bfloat16.from_float32(decoded))
    assert np.abs(decoded - values).max() < 0.02
