"""Integers are read as compressed-tensors reads them, packed or one in a byte."""

import numpy as np
import pytest

from bake.errors import Malformed, Unsupported
from tests.bake.checkpoint.schemes import libraries
from tests.bake.checkpoint.schemes.stored import Stored, same

RNG = np.random.default_rng
SHAPES = [(64, 128), (33, 256), (1, 64), (257, 640)]


def settings(bits, group=None, symmetric=True, form="pack-quantized", **weights):
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, **weights}
    if group is not None:
        weights |= {"group_size": group, "strategy": "group"}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


def arranged(bits, group, symmetric, actorder=None):
    quantization = libraries.imported("compressed_tensors.quantization")
    strategy = "group" if group else "channel"
    args = quantization.QuantizationArgs(
        num_bits=bits,
        symmetric=symmetric,
        strategy=strategy,
        group_size=group or None,
        actorder=actorder,
    )
    return quantization.QuantizationScheme(targets=["Linear"], weights=args)


def compressed(shape, bits, group=0, symmetric=True, dtype=None, actorder=False, seed=0):
    """The package's own tensors of random integers, and what it reads out of them."""
    base = libraries.imported("compressed_tensors.compressors.pack_quantized.base")
    torch = libraries.patched()
    scheme = arranged(bits, group, symmetric, "group" if actorder else None)
    rng = RNG(seed)
    many = shape[1] // group if group else 1
    half = 1 << bits - 1
    state = {
        "weight": torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)),
        "weight_scale": torch.from_numpy(
            rng.standard_normal((shape[0], many), dtype=np.float32) / half
        ).to(dtype or torch.float32),
    }
    if not symmetric:
        points = rng.integers(-half, half, (shape[0], many), dtype=np.int8)
        state["weight_zero_point"] = torch.from_numpy(points)
    if actorder:
        index = rng.permutation(np.repeat(np.arange(many), group)).astype(np.int32)
        state["weight_g_idx"] = torch.from_numpy(index)
    state["weight"] = state["weight"].to(state["weight_scale"].dtype)
    packed = base.PackedQuantizationCompressor.compress(state, scheme)
    read = base.PackedQuantizationCompressor.decompress(packed, scheme)["weight"]
    dtypes = {"x.weight_scale": "BF16"} if dtype == torch.bfloat16 else {}
    arrays = {f"x.{name}": libraries.array(part) for name, part in packed.items()}
    return Stored(arrays, dtypes), read


@pytest.mark.torch
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_groups_are_the_packages(bits, symmetric, shape):
    stored, theirs = compressed(shape, bits, 32, symmetric)
    got = stored.check_threads(settings(bits, 32, symmetric), "x.weight")
    same(got, theirs.numpy())


@pytest.mark.torch
@pytest.mark.parametrize("cols", [64, 63, 13, 1])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_channels_are_the_packages_where_rows_end_within_words(bits, symmetric, cols):
    stored, theirs = compressed((37, cols), bits, 0, symmetric)
    got = stored.check_threads(settings(bits, None, symmetric), "x.weight")
    same(got, theirs.numpy())


@pytest.mark.torch
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [1, 2, 3, 5, 6, 7])
def test_bits_that_leave_room_in_words_are_the_packages(bits, symmetric):
    stored, theirs = compressed((65, 640), bits, 128, symmetric)
    got = stored.check_threads(settings(bits, 128, symmetric), "x.weight")
    same(got, theirs.numpy())


@pytest.mark.torch
@pytest.mark.parametrize("symmetric", [True, False])
def test_ordered_columns_are_the_packages(symmetric):
    stored, theirs = compressed((65, 256), 4, 32, symmetric, actorder=True)
    got = stored.check_threads(settings(4, 32, symmetric), "x.weight")
    same(got, theirs.numpy())
    stored.arrays["x.weight_g_idx"][3] = -1
    plainly, _ = compressed((65, 256), 4, 32, symmetric)
    plainly.arrays |= stored.arrays
    del plainly.arrays["x.weight_g_idx"]
    np.testing.assert_array_equal(
        stored.filled(settings(4, 32, symmetric), "x.weight"),
        plainly.filled(settings(4, 32, symmetric), "x.weight"),
    )


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_packages_product_in_sixteen_bits_is_ours_rounded(symmetric, kind):
    torch = libraries.patched()
    stored, theirs = compressed((64, 256), 4, 32, symmetric, getattr(torch, kind))
    assert theirs.dtype == getattr(torch, kind)
    got = torch.from_numpy(stored.check_threads(settings(4, 32, symmetric), "x.weight"))
    assert torch.equal(got.to(theirs.dtype), theirs)


def dense(integers, bits):
    """Words of rows of unsigned integers, plainly: every bit by itself."""
    every = (integers.astype(np.int64)[..., np.newaxis] >> np.arange(bits)) & 1
    rows = every.reshape(len(integers), -1).astype(np.uint8)
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 32)))
    return np.packbits(padded, axis=1, bitorder="little").view(np.int32)


@pytest.mark.parametrize("cols", [96, 95, 4096])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8])
def test_dense_words_are_read_bit_by_bit(bits, cols):
    """The layout of package 0.20.0, which is not here: only its definition is."""
    half = 1 << bits - 1
    rows = 35
    codes = RNG(bits).integers(0, 2 * half, (rows, cols), dtype=np.uint8)
    points = RNG(9).integers(0, 2 * half, (rows, 1), dtype=np.uint8)
    scales = RNG(1).standard_normal((rows, 1), dtype=np.float32)
    stored = Stored(
        {
            "x.weight_packed": dense(codes, bits),
            "x.weight_scale": scales,
            "x.weight_zero_point": np.ascontiguousarray(dense(points.T, bits).T),
            "x.weight_shape": np.array([rows, cols]),
        }
    )
    got = stored.check_threads(settings(bits, None, False), "x.weight")
    same(got, (codes.astype(np.float32) - points.astype(np.float32)) * scales)


@pytest.mark.torch
@pytest.mark.parametrize("scale", [(), (1,), (33, 1), (33, 5)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_integers_in_bytes_are_the_packages(symmetric, scale):
    forward = libraries.imported("compressed_tensors.quantization.lifecycle.forward")
    codes = RNG(0).integers(-128, 128, (33, 65), dtype=np.int8)
    scales = RNG(1).standard_normal(scale).astype(np.float32)
    arrays = {"x.weight": codes, "x.weight_scale": scales}
    point = None
    if not symmetric:
        arrays["x.weight_zero_point"] = RNG(2).integers(-128, 128, scale, dtype=np.int8)
        point = libraries.tensor(arrays["x.weight_zero_point"])
    theirs = forward.dequantize(libraries.tensor(codes), libraries.tensor(scales), point)
    for form in ("int-quantized", "naive-quantized"):
        said = settings(8, 13, symmetric, form)
        same(Stored(arrays).check_threads(said, "x.weight"), theirs.numpy())


def made(**changes):
    """A layer of 4 × 16 in groups of 8, of four bits, all zeros; ``None`` leaves a part out."""
    arrays = {
        "packed": np.zeros((4, 2), np.int32),
        "scale": np.ones((4, 2), np.float32),
        "shape": np.array([4, 16]),
        **changes,
    }
    return Stored({f"x.weight_{key}": part for key, part in arrays.items() if part is not None})


FOUR = settings(4, 8)


def test_a_number_of_all_zero_bits_is_minus_half_the_range():
    assert made().filled(FOUR, "x.weight").tolist() == [[-8.0] * 16] * 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scale": None}, r"x\.weight_scale: is missing"),
        ({"shape": None}, r"x\.weight_shape: is missing"),
        ({"scale": np.ones((4, 3), np.float32)}, "scale"),
        ({"scale": np.ones((3, 2), np.float32)}, "scale"),
        ({"shape": np.array([4, 17])}, "17 integers"),
        ({"shape": np.array([5, 16])}, "shape"),
        ({"shape": np.array([4, 0])}, "shape"),
        ({"shape": np.array([4, -16])}, "shape"),
        ({"shape": np.array([4, 2**62])}, "shape"),
        ({"shape": np.array([4, 16, 1])}, "shape"),
        ({"packed": np.zeros(8, np.int32)}, "matrix"),
        ({"packed": np.zeros((0, 2), np.int32)}, "matrix"),
        ({"zero_point": np.zeros((4, 2), np.int32)}, r"expected shape \[1, 2\], got \[4, 2\]"),
        ({"g_idx": np.zeros(15, np.int32)}, r"expected shape \[16\], got \[15\]"),
    ],
)
def test_parts_that_disagree_are_malformed(changes, said):
    with pytest.raises(Malformed, match=said):
        made(**changes).plan(FOUR)


@pytest.mark.parametrize("index", [2, 2**31 - 1, -2, -(2**31)])
def test_a_group_that_is_none_is_malformed_when_it_is_seen(index):
    stored = made(g_idx=np.array([0] * 15 + [index], np.int32))
    with pytest.raises(Malformed, match="g_idx: groups are 0 to 1"):
        stored.filled(FOUR, "x.weight")


def test_asymmetric_weights_need_zero_points():
    with pytest.raises(Malformed, match="zero_point: is missing"):
        made().plan(settings(4, 8, symmetric=False))


def test_bits_that_could_be_packed_either_way_are_refused():
    stored = made(packed=np.zeros((4, 2), np.int32), scale=np.ones((4, 1), np.float32))
    stored.arrays["x.weight_shape"] = np.array([4, 11])
    with pytest.raises(Unsupported, match="2 ways"):
        stored.plan(settings(5))


@pytest.mark.parametrize(
    ("said", "error", "match"),
    [
        (settings(9), Unsupported, "9"),
        (settings(0), Unsupported, "0"),
        (settings("4"), Malformed, "num_bits"),
        (settings(True), Malformed, "num_bits"),
        (settings(4, 0), Malformed, "group_size"),
        (settings(4, 8.0), Malformed, "group_size"),
        (settings(4, 8, form="nvfp4-pack-quantized"), Unsupported, "nvfp4-pack-quantized"),
        (settings(4, 8, form="marlin-24"), Unsupported, "marlin-24"),
        (settings(4, 8, form=["x"]), Unsupported, "list"),
        ({"quant_method": "compressed-tensors", "config_groups": []}, Malformed, "config_groups"),
        ({"config_groups": {"a": 1}}, Malformed, "config_groups"),
        ({"config_groups": {"a": {"weights": 3}}}, Malformed, "config_groups"),
        ({"config_groups": {"a": {"weights": None}}}, Unsupported, "bits"),
        (
            {**settings(4, 8), "sparsity_config": {"format": "sparse-24-bitmask"}},
            Unsupported,
            "sparse-24",
        ),
    ],
)
def test_a_config_that_does_not_fit_is_refused(said, error, match):
    with pytest.raises(error, match=match):
        made().plan(said)


def test_act_order_of_integers_in_bytes_is_refused_by_name():
    stored = Stored(
        {
            "x.weight": np.zeros((4, 16), np.int8),
            "x.weight_scale": np.ones((4, 2), np.float32),
            "x.weight_g_idx": np.zeros(16, np.int32),
        }
    )
    with pytest.raises(Unsupported, match="weight_g_idx"):
        stored.plan(FOUR)


def test_another_shape_at_filling_than_at_planning_is_malformed():
    stored = made()
    (output,) = stored.plan(FOUR)
    stored.arrays["x.weight_shape"] = np.array([4, 15])
    with pytest.raises(Malformed, match="weight_shape"):
        output.fill(
            [stored.arrays[name] for name in output.inputs], np.zeros((4, 16), np.float32), 1
        )
