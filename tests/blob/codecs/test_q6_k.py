"""q6_k is ggml's, byte for byte: random, edge and real blocks, and any finite numbers at all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blob.codecs import Part, RowCodec
from blob.codecs.q6_k import Q6_K
from tests.blob.codecs import ggml, rows, super_blocks
from tests.blob.codecs.super_blocks import differing, encoded

CODEC = Q6_K()
BYTES = 210
NONE = {"quantize": 0, "quantize_by_libgguf": 0}


def edges(blocks):
    """What super-blocks of sixteen groups could stumble over, beside what all could."""
    generator = np.random.default_rng(17)
    normal = generator.standard_normal((blocks, 16, 16))
    sizes = np.ldexp(1.0, generator.integers(-60, 60, (blocks, 16, 1)))
    near = 1e-15 * generator.choice([0.99, 1.0, 1.01], (blocks, 16, 1))
    idle = normal * (generator.random((blocks, 16, 1)) < 0.5)
    # Cubes of these are as large as a float32 can be; squares are not.
    cubes = normal * 7e12 * np.ldexp(1.0, generator.integers(-2, 3, (blocks, 16, 1)))
    ties = np.round(normal * 8) / 2
    ties[:, :, 0] = -32
    of_groups = {
        "groups of all sizes": normal * sizes,
        "groups at the least size there is": np.sign(normal) * near,
        "groups of zeros": idle,
        "cubes overflow": cubes,
        "halfway between two levels": ties,
        "both signs of the largest": np.where(np.abs(normal) < 0.5, np.sign(normal), normal / 8),
    }
    own = {kind: of.astype(np.float32).reshape(-1, 256) for kind, of in of_groups.items()}
    return super_blocks.edges(blocks) | own


EDGES = edges(blocks=64)


def test_it_is_a_row_codec_of_one_part():
    assert isinstance(CODEC, RowCodec)
    assert (CODEC.name, CODEC.block) == ("q6_k", 256)
    assert CODEC.parts(3, 512) == {"blocks": Part("U8", (3, 2 * BYTES))}
    assert CODEC.constants(3, 512) == {}


def test_random_blocks_are_ggmls():
    assert differing(CODEC, super_blocks.random(super_blocks.RANDOM, cols=1024)) == NONE


def test_ggmls_own_reference_makes_the_same():
    values = super_blocks.random(4096)
    assert np.array_equal(encoded(CODEC, values), ggml.quantize_row_ref("q6_k", values))


@pytest.mark.parametrize("kind", EDGES)
def test_edge_blocks_are_ggmls(kind):
    assert differing(CODEC, EDGES[kind]) == NONE


def test_many_edge_blocks_are_ggmls():
    assert differing(CODEC, np.concatenate(list(edges(blocks=3200).values()))) == NONE


def test_the_tiny_models_weights_are_ggmls():
    blocks = 0
    for values in super_blocks.real():
        assert differing(CODEC, values) == NONE
        blocks += len(values)
    assert blocks > 100_000


@given(super_blocks.finite())
def test_any_finite_numbers_are_ggmls_and_the_references(values):
    assert differing(CODEC, values) == NONE
    rows.same_as_the_references(CODEC, values)


def test_the_reference_says_the_same_of_random_edge_and_real_blocks():
    edge = np.concatenate([blocks[:8] for blocks in EDGES.values()])
    for values in (super_blocks.random(256, cols=512), edge, next(super_blocks.real())[:128]):
        rows.same_as_the_references(CODEC, values)


def test_a_scale_beyond_a_half_is_infinite_and_gives_no_numbers_back_as_in_ggml():
    values = np.full((1, 256), 1e10, np.float32)
    blocks = encoded(CODEC, values)
    assert differing(CODEC, values) == NONE
    assert not np.isfinite(ggml.dequantize("q6_k", blocks)).any()
    assert not np.isfinite(CODEC.decode_reference({"blocks": blocks})).any()


@given(st.lists(st.integers(0, 23), max_size=6), st.sampled_from([1, 2, 3]))
def test_rows_can_be_split_anywhere_over_threads(cuts, threads):
    values = super_blocks.random(3 * 23, cols=768)
    split = super_blocks.encoded_in_pieces(CODEC, values, cuts, threads)
    assert np.array_equal(split, encoded(CODEC, values))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_rows_are_read_the_same_on_any_number_of_threads(threads):
    rows.same_however_rows_are_split(CODEC, super_blocks.random(2 * 101, cols=512), threads)


def test_no_rows_are_no_blocks():
    nothing = np.empty((0, 256), np.float32)
    assert encoded(CODEC, nothing).shape == (0, BYTES)
    assert CODEC.encode_reference(nothing)["blocks"].shape == (0, BYTES)


def test_numbers_may_be_read_only():
    values = super_blocks.random(2)
    writable = encoded(CODEC, values)
    values.flags.writeable = False
    assert np.array_equal(encoded(CODEC, values), writable)


@pytest.mark.parametrize(
    ("values", "blocks", "said"),
    [
        (np.zeros((2, 256)), np.zeros((2, 210), np.uint8), "float32"),
        (np.zeros((2, 255), np.float32), np.zeros((2, 210), np.uint8), "multiple of 256"),
        (np.zeros((2, 256), np.float32), np.zeros((2, 209), np.uint8), r"\(2, 210\)"),
        (np.zeros((2, 256), np.float32), np.zeros((1, 210), np.uint8), r"\(2, 210\)"),
        (np.zeros((2, 256), np.float32), np.zeros((2, 210), np.int8), "uint8"),
        (np.zeros((2, 512), np.float32)[:, ::2], np.zeros((2, 210), np.uint8), "contiguous"),
        (np.zeros((2, 256), np.float32), np.zeros((2, 420), np.uint8)[:, ::2], "strides"),
        (np.zeros((2, 256), np.float32), np.zeros((2, 210), np.uint8)[::-1], "apart"),
    ],
)
def test_what_does_not_fit_is_refused(values, blocks, said):
    with pytest.raises(ValueError, match=said):
        CODEC.encode(values, {"blocks": blocks})
