"""Matrices for the codecs of super-blocks (q4_k, q5_k), and what must hold for both."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from blob.codecs import Floats, RowCodec
from tests.blob.codecs import ggml

TINY = Path(__file__).parents[3] / "weights" / "tiny" / "model.safetensors"
LARGEST = np.finfo(np.float32).max
RANDOM = 102_400  # super-blocks


def random(blocks: int, cols: int = 256) -> Floats:
    """Weights as they are found in models: a normal distribution of width 0.02."""
    numbers = np.random.default_rng(11).normal(0, 0.02, (blocks * 256 // cols, cols))
    return numbers.astype(np.float32)


def edges(blocks: int) -> dict[str, Floats]:
    """So many blocks of each kind that a search could stumble over."""
    generator = np.random.default_rng(7)

    def normal() -> Floats:
        return generator.normal(0, 1, (blocks, 256)).astype(np.float32)

    def bits() -> Floats:
        # The lowest bit of the exponent is cleared: every magnitude, but nothing infinite.
        words = generator.integers(0, 2**32, (blocks, 256), np.uint32)
        return (words & np.uint32(0xFF7FFFFF)).view(np.float32)

    def outliers() -> Floats:
        values = normal()
        values[:, ::37] *= np.float32(1000)
        return values

    def alone(number: float) -> Floats:
        values = np.zeros((blocks, 256), np.float32)
        values[np.arange(blocks), np.arange(blocks) % 256] = number
        return values

    def one_sub_block_is(factor: float) -> Floats:
        values = normal()
        values[:, 32:64] *= np.float32(factor)
        return values

    def equal() -> Floats:
        return np.repeat(normal()[:, :1], 256, axis=1)

    steps = np.linspace(-1, 1, 256, dtype=np.float32)
    return {
        "zeros": np.zeros((blocks, 256), np.float32),
        "negative zeros": np.full((blocks, 256), -0.0, np.float32),
        "1e-20": normal() * np.float32(1e-20),
        "subnormal": normal() * np.float32(1e-40),
        "squares are subnormal": normal() * np.float32(1e-22),
        "scales are subnormal halves": normal() * np.float32(1e-5),
        "scales are no halves": normal() * np.float32(1e-8),
        "scales are infinite halves": normal() * np.float32(1e8),
        "squares are infinite": normal() * np.float32(1e20),
        "sums are infinite": normal() * np.float32(3e37),
        "largest": np.sign(normal()) * LARGEST,
        "bf16": (normal().view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32),
        "outliers": outliers(),
        "one is positive": alone(0.3),
        "one is negative": alone(-0.3),
        "one is the largest": alone(LARGEST),
        "equal": equal(),
        "equal and positive": np.abs(equal()),
        "positive": np.abs(normal()),
        "negative": -np.abs(normal()),
        "far above zero": normal() + np.float32(100),
        "far below zero": normal() - np.float32(100),
        "even steps": np.tile(steps, (blocks, 1)),
        "two numbers": np.sign(normal()),
        "whole numbers": np.round(normal() * np.float32(8)),
        "a sub-block is tiny": one_sub_block_is(1e-7),
        "a sub-block is huge": one_sub_block_is(1e7),
        "heavy tails": generator.standard_cauchy((blocks, 256)).astype(np.float32),
        "random bits": bits(),
    }


def real() -> Iterator[Floats]:
    """The tiny model's weights, as rows of 256 numbers; what is left of a tensor stays away.

    It has 30,000 such blocks, so each tensor is cut four times, each time at other places.
    """
    raw = np.fromfile(TINY, np.uint8)
    header = int(raw[:8].view(np.uint64)[0])
    for name, tensor in json.loads(raw[8 : 8 + header].tobytes()).items():
        if name == "__metadata__":
            continue
        assert tensor["dtype"] == "BF16"
        begin, end = (8 + header + offset for offset in tensor["data_offsets"])
        bits = raw[begin:end].view(np.uint16).astype(np.uint32) << np.uint32(16)
        for start in (0, 8, 16, 24):
            whole = (len(bits) - start) // 256 * 256
            if whole:
                yield bits[start : start + whole].view(np.float32).reshape(-1, 256)


@st.composite
def finite(draw: st.DrawFn) -> Floats:
    """One to three super-blocks of any finite float32: drawn bits, or sub-blocks of any size."""
    shape = (draw(st.integers(1, 3)), 256)
    if draw(st.booleans()):
        words = draw(arrays.arrays(np.uint32, shape))
        return (words & np.uint32(0xFF7FFFFF)).view(np.float32)
    exponents = draw(arrays.arrays(np.int64, (shape[0], 8), elements=st.integers(-149, 124)))
    offset = draw(st.sampled_from([0.0, 1.0, -1.0, 1000.0]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    normal = generator.normal(offset, 1, (shape[0], 8, 32)).clip(-8, 8)
    return np.ldexp(normal, exponents[:, :, None]).astype(np.float32).reshape(shape)


def encoded(codec: RowCodec, values: Floats) -> np.ndarray:
    part = codec.parts(*values.shape)["blocks"]
    blocks = np.full(part.shape, 0xA5, np.uint8)
    codec.encode(values, {"blocks": blocks})
    return blocks


def differing(codec: RowCodec, values: Floats) -> dict[str, int]:
    """Super-blocks whose bytes are not those of each C encoder."""
    ours = encoded(codec, values).reshape(-1, ggml.BYTES[codec.name])
    counts = {}
    for encoder in (ggml.quantize, ggml.quantize_by_libgguf):
        theirs = encoder(codec.name, values).reshape(ours.shape)
        counts[encoder.__name__] = int((ours != theirs).any(axis=1).sum())
    return counts


def encoded_in_pieces(codec: RowCodec, values: Floats, cuts: list[int], threads: int) -> np.ndarray:
    """Rows between each two ``cuts``, on some threads; rows of the blocks lie apart."""
    part = codec.parts(*values.shape)["blocks"]
    wide = np.full((part.shape[0], part.shape[1] + 3), 0xA5, np.uint8)
    blocks = wide[:, :-3]
    bounds = [0, *sorted(cuts), len(values)]

    def some(begin: int, end: int) -> None:
        codec.encode(values[begin:end], {"blocks": blocks[begin:end]})

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(some, bounds[:-1], bounds[1:]))
    assert (wide[:, -3:] == 0xA5).all()
    return blocks
