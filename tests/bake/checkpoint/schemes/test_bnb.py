"""What bitsandbytes writes is read as bitsandbytes reads it."""

import json

import numpy as np
import pytest

from bake.errors import Malformed, Unsupported
from tests.bake.checkpoint.schemes import libraries
from tests.bake.checkpoint.schemes.stored import Stored, same

SETTINGS = {"quant_method": "bitsandbytes", "load_in_4bit": True}
SHAPES = [(64, 96), (7, 33), (1, 1), (5, 1000), (300, 256), (3, 5, 17)]


def quantized(weight, kind="nf4", blocksize=64, nested=False, storage=None):
    """bitsandbytes' own tensors of a weight, and what it reads out of them in float32."""
    functional = libraries.imported("bitsandbytes.functional")
    torch = libraries.patched()
    packed, state = functional.quantize_4bit(
        torch.from_numpy(weight),
        blocksize=blocksize,
        quant_type=kind,
        compress_statistics=nested,
        quant_storage=storage or torch.uint8,
    )
    arrays = {"x.weight": libraries.array(packed)}
    for key, value in state.as_dict(packed=True).items():
        arrays[f"x.weight.{key}"] = libraries.array(value)
    theirs = read(packed, state).numpy()
    if weight.shape[-1] % blocksize == 0 and blocksize < 2048:
        # FP4 has two zeros, and the kernel for CPUs with AVX-512 BF16 gives the other one for large
        # weights. Adding zero leaves the positive one.
        zero = np.float32(0)
        same(functional.dequantize_4bit(packed, state).numpy() + zero, theirs + zero)
    return Stored(arrays), theirs


def read(packed, state):
    """What the library's own arithmetic makes of this, in float32.

    Not its kernel for CPUs: where a row is no whole number of blocks, 0.50.2 takes the scale of
    another block there than it wrote, and than its arithmetic for every other device takes.
    """
    functional = libraries.imported("bitsandbytes.functional")
    ops = libraries.imported("bitsandbytes.backends.default.ops")
    torch = libraries.patched()
    absmax = state.absmax
    if state.nested:
        absmax = functional.dequantize_blockwise(absmax, state.state2) + state.offset
    code = functional.get_4bit_type(state.quant_type, device="cpu")
    flat = packed.view(torch.uint8).reshape(-1)
    compute = ops._dequantize_4bit_compute.__wrapped__
    return compute(flat, absmax, code, state.blocksize, state.shape, torch.float32)


def normal(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.mark.torch
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits_are_the_librarys_numbers(kind, nested, shape):
    stored, theirs = quantized(normal(shape), kind, nested=nested)
    same(stored.check_threads(SETTINGS, "x.weight"), theirs)


@pytest.mark.torch
@pytest.mark.parametrize("blocksize", [32, 128, 4096])
def test_every_size_of_block_is_the_librarys(blocksize):
    stored, theirs = quantized(normal((70, 130)), blocksize=blocksize, nested=True)
    same(stored.check_threads(SETTINGS, "x.weight"), theirs)


@pytest.mark.torch
def test_bytes_kept_as_bf16_are_the_same_numbers():
    torch = libraries.patched()
    stored, theirs = quantized(normal((64, 128)), storage=torch.bfloat16)
    assert stored.arrays["x.weight"].dtype == np.uint16
    same(stored.check_threads(SETTINGS, "x.weight"), theirs)


@pytest.mark.torch
def test_large_weights_span_pieces():
    stored, theirs = quantized(normal((517, 1031)), nested=True)
    same(stored.check_threads(SETTINGS, "x.weight"), theirs)


@pytest.mark.torch
@pytest.mark.parametrize("value", [0.0, np.inf, np.nan, 3e38])
def test_odd_scales_are_the_librarys(value):
    functional = libraries.imported("bitsandbytes.functional")
    stored, _ = quantized(normal((64, 64)))
    stored.arrays["x.weight.absmax"][:5] = value
    parts = {
        key.removeprefix("x.weight."): libraries.tensor(array)
        for key, array in stored.arrays.items()
        if key != "x.weight"
    }
    state = functional.QuantState.from_dict(parts, "cpu")
    packed = libraries.tensor(stored.arrays["x.weight"])
    theirs = functional.dequantize_4bit(packed, state).numpy()
    same(stored.check_threads(SETTINGS, "x.weight"), theirs)


@pytest.mark.torch
@pytest.mark.parametrize("shape", [(64, 96), (7, 33), (1, 1), (517, 600)])
def test_eight_bits_are_the_librarys_numbers(shape):
    functional = libraries.imported("bitsandbytes.functional")
    codes, scales, _ = functional.int8_vectorwise_quant(libraries.tensor(normal(shape)).half())
    codes[0, 0] = -128
    stored = Stored(
        {
            "x.weight": libraries.array(codes),
            "x.SCB": libraries.array(scales),
            "x.weight_format": np.array(0, np.uint8),
        }
    )
    theirs = functional.int8_vectorwise_dequant(codes, scales).numpy()
    same(stored.check_threads({"load_in_8bit": True}, "x.weight"), theirs)


def made(**changes):
    """One matrix of 8 × 16, by hand; ``changes`` to its JSON."""
    said = {
        "quant_type": "nf4",
        "blocksize": 64,
        "dtype": "bfloat16",
        "shape": [8, 16],
        **changes,
    }
    from bake.checkpoint.schemes import bnb

    return with_json(
        {
            "x.weight": np.full((64, 1), 0xF0, np.uint8),
            "x.weight.absmax": np.array([2, 3], np.float32),
            "x.weight.quant_map": bnb.TABLES["nf4"],
        },
        json.dumps(said).encode(),
    )


def with_json(arrays, raw, kind="nf4"):
    name = f"x.weight.quant_state.bitsandbytes__{kind}"
    return Stored({**arrays, name: np.frombuffer(raw, np.uint8)})


def test_the_upper_half_of_a_byte_comes_first():
    got = made().filled(SETTINGS, "x.weight")
    assert got[0, :4].tolist() == [2, -2, 2, -2]
    assert got[4, :4].tolist() == [3, -3, 3, -3]


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [2**40, 2**40]},
        {"shape": [2**63]},
        {"shape": [10**400]},
        {"shape": [-8, -16]},
        {"shape": [0, 16]},
        {"shape": []},
        {"shape": [1] * 9},
        {"shape": "8,16"},
        {"shape": [8.5, 16]},
        {"shape": None},
        {"shape": [8, 15]},
        {"blocksize": "64"},
        {"blocksize": None},
        {"blocksize": 128},
        {"quant_type": 4},
        {"dtype": {}},
        {"nested_offset": "0"},
        {"nested_blocksize": []},
    ],
)
def test_a_state_that_does_not_fit_is_malformed(changes):
    with pytest.raises(Malformed, match=r"x\.weight"):
        made(**changes).plan(SETTINGS)


@pytest.mark.parametrize("changes", [{"blocksize": 0}, {"blocksize": 3}, {"quant_type": "fp4"}])
def test_a_state_of_another_kind_is_unsupported(changes):
    with pytest.raises(Unsupported, match=r"(is|are) not known"):
        made(**changes).plan(SETTINGS)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 4000, b'{"a":' * 800, b"x" * 5000]
)
def test_what_is_no_state_is_malformed(raw):
    stored = with_json(made().arrays, raw)
    with pytest.raises(Malformed, match="quant_state"):
        stored.plan(SETTINGS)


@pytest.mark.parametrize("part", ["absmax", "quant_map"])
def test_a_missing_part_is_named(part):
    stored = made()
    del stored.arrays[f"x.weight.{part}"]
    with pytest.raises(Malformed, match=rf"x\.weight\.{part}: is missing"):
        stored.plan(SETTINGS)


def test_a_missing_state_is_told_by_what_is_left_over():
    stored = made()
    del stored.arrays["x.weight.quant_state.bitsandbytes__nf4"]
    with pytest.raises(Malformed, match=r"x\.weight"):
        stored.plan(SETTINGS)


def test_nested_scales_need_their_own():
    stored = made(nested_blocksize=256)
    stored.arrays["x.weight.absmax"] = np.zeros(2, np.uint8)
    with pytest.raises(Malformed, match="nested_absmax: is missing"):
        stored.plan(SETTINGS)
    stored = made(nested_blocksize=0)
    stored.arrays["x.weight.absmax"] = np.zeros(2, np.uint8)
    with pytest.raises(Malformed, match="nested_blocksize"):
        stored.plan(SETTINGS)


def test_another_table_is_refused_when_it_is_seen():
    stored = made()
    stored.arrays["x.weight.quant_map"] = np.linspace(-1, 1, 16, dtype=np.float32)
    with pytest.raises(Malformed, match="quant_map"):
        stored.filled(SETTINGS, "x.weight")


def test_without_a_reader_the_state_is_asked_for():
    from bake.checkpoint import schemes

    with pytest.raises(Unsupported, match="quant_state"):
        schemes.plan(made().tensors, {"quantization_config": SETTINGS})


def test_layouts_of_old_cards_are_refused_by_name():
    stored = Stored(
        {
            "x.weight": np.zeros((4, 8), np.int8),
            "x.SCB": np.zeros(4, np.float32),
            "x.weight_format": np.array(2, np.uint8),
        }
    )
    with pytest.raises(Unsupported, match="weight_format"):
        stored.filled({"load_in_8bit": True}, "x.weight")


def test_scales_of_another_shape_are_malformed():
    stored = Stored({"x.weight": np.zeros((4, 8), np.int8), "x.SCB": np.zeros(5, np.float32)})
    with pytest.raises(Malformed, match=r"x\.SCB: expected shape \[4\], got \[5\]"):
        stored.plan({"load_in_8bit": True})
