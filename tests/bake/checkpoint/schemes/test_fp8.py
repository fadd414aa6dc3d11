"""Eight-bit floats are read as transformers and compressed-tensors read them."""

import numpy as np
import pytest

from bake.errors import Malformed, Unsupported
from tests.bake.checkpoint.schemes import libraries
from tests.bake.checkpoint.schemes.stored import Stored, same

RNG = np.random.default_rng
BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}
E4M3, E5M2 = "F8_E4M3", "F8_E5M2"


def bytes_of(shape, seed=0):
    """Every byte there is, NaN and infinities too."""
    return RNG(seed).integers(0, 256, shape, dtype=np.uint8)


def scales_of(shape, dtype=np.float32, seed=1):
    return (RNG(seed).standard_normal(shape) * 0.01).astype(dtype)


def stored(codes, scales, name="weight_scale_inv", kind=E4M3, scale_kind=None):
    dtypes = {"x.weight": kind}
    if scale_kind:
        dtypes[f"x.{name}"] = scale_kind
    return Stored({"x.weight": codes, f"x.{name}": scales}, dtypes)


def by_transformers(codes, scales, kind=E4M3, scale_kind=None):
    """In float32, whatever type it would be rounded to."""
    module = libraries.imported("transformers.integrations.finegrained_fp8")
    torch = libraries.patched()
    made = module.Fp8Dequantize(None)._dequantize_one(
        libraries.tensor(codes, kind), libraries.tensor(scales, scale_kind), torch.float32
    )
    return made.numpy()


@pytest.mark.torch
@pytest.mark.parametrize("kind", [E4M3, E5M2])
@pytest.mark.parametrize("shape", [(128, 128), (256, 384), (512, 1024)])
def test_blocks_are_those_of_transformers(shape, kind):
    codes, scales = bytes_of(shape), scales_of((shape[0] // 128, shape[1] // 128))
    got = stored(codes, scales, kind=kind).check_threads(BLOCKS, "x.weight")
    same(got, by_transformers(codes, scales, kind))


@pytest.mark.torch
@pytest.mark.parametrize("shape", [(200, 300), (1, 129), (127, 1), (577, 1000)])
def test_ragged_blocks_are_whole_ones_cut(shape):
    """transformers takes whole blocks only: it is asked for those around, and they are cut."""
    grid = tuple(-(-size // 128) for size in shape)
    codes, scales = bytes_of((grid[0] * 128, grid[1] * 128)), scales_of(grid)
    whole = by_transformers(codes, scales)
    cut = np.ascontiguousarray(codes[: shape[0], : shape[1]])
    got = stored(cut, scales).check_threads(BLOCKS, "x.weight")
    same(got, np.ascontiguousarray(whole[: shape[0], : shape[1]]))


@pytest.mark.torch
@pytest.mark.parametrize("dtype", [np.float32, np.float16, "BF16", "F8_E8M0", "U8"])
def test_scales_of_every_type_are_those_of_transformers(dtype):
    codes, grid = bytes_of((128, 256)), (4, 2)
    settings = {"quant_method": "fp8", "weight_block_size": [32, 128]}
    kind = None
    if dtype == "BF16":
        scales, kind = RNG(3).integers(0x3C00, 0x3E00, grid).astype(np.uint16), "BF16"
    elif dtype in ("F8_E8M0", "U8"):
        scales = RNG(3).integers(90, 150, grid).astype(np.uint8)
        kind = "F8_E8M0" if dtype == "F8_E8M0" else None
    else:
        scales = scales_of(grid, dtype)
    got = stored(codes, scales, scale_kind=kind).check_threads(settings, "x.weight")
    same(got, by_transformers(codes, scales, scale_kind=kind))


@pytest.mark.torch
@pytest.mark.parametrize("value", [0.0, np.inf, np.nan, -1e-38, 3e38])
def test_odd_scales_are_those_of_transformers(value):
    codes, scales = bytes_of((128, 256)), np.array([[value, 1]], np.float32)
    got = stored(codes, scales).check_threads(BLOCKS, "x.weight")
    same(got, by_transformers(codes, scales))


@pytest.mark.torch
def test_stacked_experts_have_scales_of_their_own():
    codes, scales = bytes_of((3, 256, 128)), scales_of((3, 2, 1))
    got = stored(codes, scales).check_threads(BLOCKS, "x.weight")
    same(got, by_transformers(codes, scales))


@pytest.mark.torch
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_scale_is_that_of_compressed_tensors(shape):
    check_compressed((33, 65), scales_of(shape), {})


@pytest.mark.torch
def test_a_scale_for_each_output_is_that_of_compressed_tensors():
    check_compressed((33, 65), scales_of((33, 1)), {})


@pytest.mark.torch
def test_ragged_blocks_are_those_of_compressed_tensors():
    weights = {"strategy": "block", "block_structure": [32, 64], "num_bits": 8, "type": "float"}
    check_compressed((100, 130), scales_of((4, 3)), weights)


def check_compressed(shape, scales, weights):
    """F32 scales, since the package multiplies in the scale's type."""
    module = libraries.imported("compressed_tensors.quantization.lifecycle.forward")
    arguments = libraries.imported("compressed_tensors.quantization").QuantizationArgs
    codes = bytes_of(shape)
    settings = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float", **weights}}},
    }
    args = arguments(**weights) if weights else None
    theirs = module.dequantize(
        libraries.tensor(codes, E4M3), libraries.tensor(scales), args=args
    ).numpy()
    got = stored(codes, scales, "weight_scale").check_threads(settings, "x.weight")
    same(got, theirs.reshape(shape))


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_the_packages_product_in_sixteen_bits_is_ours_rounded(kind):
    module = libraries.imported("compressed_tensors.quantization.lifecycle.forward")
    torch = libraries.patched()
    codes = bytes_of((64, 64)) & 0x3F
    scales = scales_of((64, 1), np.float16)
    if kind == "BF16":
        scales = RNG(3).integers(0x3C00, 0x3E00, (64, 1)).astype(np.uint16)
    source = libraries.tensor(scales, "BF16" if kind == "BF16" else None)
    theirs = module.dequantize(libraries.tensor(codes, E4M3), source)
    settings = {"quant_method": "compressed-tensors"}
    made = stored(codes, scales, "weight_scale", scale_kind=kind)
    got = torch.from_numpy(made.check_threads(settings, "x.weight"))
    assert torch.equal(got.to(theirs.dtype), theirs)


def test_a_scale_for_each_output_may_be_a_vector():
    codes, scales = bytes_of((5, 7)) & 0x3F, scales_of((5,))
    settings = {"quant_method": "fbgemm_fp8"}
    got = stored(codes, scales, "weight_scale").filled(settings, "x.weight")
    column = stored(codes, scales[:, None], "weight_scale").filled(settings, "x.weight")
    np.testing.assert_array_equal(got, column)


def test_eight_bits_without_a_scheme_are_plain_numbers():
    made = Stored({"x.weight": np.array([[0x38, 0x40]], np.uint8)}, {"x.weight": E4M3})
    assert made.filled(None, "x.weight").tolist() == [[1, 2]]


def test_scales_of_activations_and_caches_are_dropped_and_told():
    from bake.checkpoint import schemes

    made = stored(bytes_of((4, 4)), scales_of(()), "weight_scale")
    left_out = ["x.input_scale", "l.self_attn.k_scale", "l.self_attn.attn.v_scale"]
    for name in left_out:
        made.arrays[name] = np.ones((), np.float32)
    config = {"quantization_config": {"quant_method": "fp8"}}
    assert [each.name for each in schemes.plan(made.tensors, config)] == ["x.weight"]
    assert list(schemes.dropped(made.tensors, config)) == left_out
    assert schemes.dropped(made.tensors, {}) == ()


@pytest.mark.parametrize(
    ("shape", "scales", "settings", "said"),
    [
        ((256, 256), (2, 1), BLOCKS, r"expected shape \[2, 2\], got \[2, 1\]"),
        ((256, 256), (3,), BLOCKS, r"expected shape \[2, 2\], got \[3\]"),
        ((256, 256), (2, 2), {"quant_method": "fp8"}, "no weight_block_size"),
        ((256,), (), BLOCKS, "expected a matrix or a stack"),
        ((0, 256), (), BLOCKS, "expected a matrix or a stack"),
        ((2, 2, 2, 2), (), BLOCKS, "expected a matrix or a stack"),
    ],
)
def test_shapes_that_disagree_are_malformed(shape, scales, settings, said):
    with pytest.raises(Malformed, match=said):
        stored(bytes_of(shape), scales_of(scales)).plan(settings)


@pytest.mark.parametrize(
    "size", [0, -1, 128, "128", [128], [128, 0], [128, -128], [1.5, 2], [True, 1], [[1], 2], {},
             "1x", "x", "²x2", "9999999999x1", [128, 128, 128]],
)  # fmt: skip
def test_a_size_of_blocks_that_is_none_is_malformed(size):
    settings = {"quant_method": "fp8", "weight_block_size": size}
    with pytest.raises(Malformed, match="block size"):
        stored(bytes_of((4, 4)), scales_of((2, 2))).plan(settings)


def test_a_missing_scale_is_named():
    made = Stored({"x.weight": bytes_of((4, 4))}, {"x.weight": E4M3})
    with pytest.raises(Malformed, match=r"x\.weight_scale.*is missing"):
        made.plan(BLOCKS)


def test_a_scale_without_its_weight_is_named():
    made = Stored({"x.weight_scale": scales_of(())})
    with pytest.raises(Malformed, match=r"x\.weight_scale: is a part"):
        made.plan(BLOCKS)


def test_what_is_not_known_is_named():
    made = stored(bytes_of((4, 4)), scales_of(()))
    with pytest.raises(Unsupported, match="NVFP4"):
        made.plan({"quant_method": "modelopt", "quant_algo": "NVFP4"})
    made.arrays["x.weight_scale"] = scales_of(())
    with pytest.raises(Unsupported, match="both"):
        made.plan(BLOCKS)
    del made.arrays["x.weight_scale_inv"]
    made.arrays["x.weight_zero_point"] = scales_of(())
    with pytest.raises(Unsupported, match="zero point"):
        made.plan(BLOCKS)
    integers = stored(bytes_of((4, 4)), np.ones((), np.int32))
    with pytest.raises(Unsupported, match="weight_scale_inv: I32"):
        integers.plan(BLOCKS)
