"""Writing: the same tensors make the same bytes, and what cannot be written leaves no blob."""

import hashlib

import numpy as np
import pytest

from blob import writer
from blob.blob import Blob
from blob.codecs.bfloat16 import from_float32
from blob.errors import BlobError
from blob.manifest import Rank, dump, is_blob
from blob.reconstruct import stream
from blob.store import Store
from blob.verify import verify
from blob.writer import About, write
from tests.blob import blobs

ABOUT = About({"codec": "int5"})


def given_back(folder, **options):
    """All tensors as bytes; copied, as their buffers are used again."""
    return {one.name: one.array.tobytes() for one in stream(Blob.open(folder), 2, **options)}


def sound(folder):
    assert verify(folder, lambda *_: None) == []
    return True


def refused(tmp_path, *plains):
    with pytest.raises(BlobError) as caught:
        blobs.packed(tmp_path / "blob", plains=list(plains))
    assert not is_blob(tmp_path / "blob")
    return caught.value.what


def test_the_same_tensors_make_the_same_bytes_wherever_and_on_any_number_of_threads(tmp_path):
    first = blobs.packed(tmp_path / "a", threads=1)
    again = blobs.packed(tmp_path / "b" / "deep", tmp_path / "other", threads=3)
    plains = list(reversed(blobs.tensors()))
    shuffled = blobs.packed(tmp_path / "c", plains=plains, threads=2)
    assert dump(first) == dump(again) == dump(shuffled)
    whole = blobs.content(tmp_path / "a")
    assert whole == blobs.content(tmp_path / "b" / "deep") == blobs.content(tmp_path / "c")


def test_a_blob_holds_what_was_written_and_nothing_else(tmp_path):
    made = blobs.packed(tmp_path / "blob")
    assert sound(tmp_path / "blob")
    assert blobs.names(tmp_path / "blob") == sorted(
        ["config.json", "manifest.json", *(shard.path for shard in made.shards)]
    )
    assert all(path.stat().st_mode & 0o777 == 0o444 for path in (tmp_path / "blob").iterdir())


def test_what_is_kept_as_it_is_comes_back_as_it_was(tmp_path):
    random = np.random.default_rng(0)
    kinds = {
        "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16,
        "F16": np.float16, "F32": np.float32, "I32": np.int32, "U32": np.uint32,
        "I64": np.int64, "U64": np.uint64, "F64": np.float64, "F8_E4M3": np.uint8,
        "F8_E5M2": np.uint8, "F8_E8M0": np.uint8, "BF16": np.uint16,
    }  # fmt: skip
    plains, expected = [], {}
    for number, (dtype, kind) in enumerate(kinds.items()):
        for shape in ((), (0,), (0, 7), (3, 0, 2), (1,), (3, 5), (2, 3, 4)):
            for codec in ("raw", "zipnn") if dtype in ("F16", "F32", "BF16") else ("raw",):
                name = f"layers.{number}.{codec}.{'x'.join(map(str, shape))}"
                size = int(np.prod(shape)) * np.dtype(kind).itemsize
                raw = random.integers(0, 2, size).astype(np.uint8).tobytes()
                array = np.frombuffer(raw, kind).reshape(shape)
                plains.append(blobs.plain(name, array, dtype, codec))
                expected[name] = raw
    made = blobs.packed(tmp_path / "blob", plains=plains)
    assert given_back(tmp_path / "blob") == expected
    shapes = {tensor.name: tuple(tensor.shape) for tensor in made.tensors}
    assert shapes == {plain.name: plain.array.shape for plain in plains}
    assert sound(tmp_path / "blob")


@pytest.mark.parametrize("codec", [c for c in blobs.CODECS if c not in ("raw", "zipnn")])
@pytest.mark.parametrize("shape", [(0, 256), (1, 256), (3, 1, 256), (2, 0, 256)])
def test_matrices_of_few_rows_or_none_are_quantized_too(tmp_path, codec, shape):
    made = blobs.packed(
        tmp_path / "blob", plains=[blobs.plain("x.weight", blobs.bfloats(*shape), codec=codec)]
    )
    assert [tuple(tensor.shape) for tensor in made.tensors] == [shape]
    assert len(given_back(tmp_path / "blob")["x.weight"]) == 2 * int(np.prod(shape))
    assert sound(tmp_path / "blob")


def test_a_matrix_without_columns_is_for_no_codec_of_rows(tmp_path):
    weights = blobs.plain("x.weight", blobs.bfloats(4, 0), codec="q8_0")
    assert "q8_0 takes matrices with columns" in refused(tmp_path, weights)


def test_the_smallest_matrix_whose_constants_are_larger_is_read_again(tmp_path):
    """Four numbers a word: 16 bytes of them, 2 of scale, and 16 that say the shape."""
    blobs.packed(
        tmp_path / "blob", plains=[blobs.plain("x.weight", blobs.bfloats(1, 32), codec="int4")]
    )
    assert sound(tmp_path / "blob")
    assert len(given_back(tmp_path / "blob")["x.weight"]) == 64
    assert given_back(tmp_path / "blob", packed=True).keys() == {
        "x.weight_packed", "x.weight_scale", "x.weight_shape"
    }  # fmt: skip


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_halves_and_floats_are_quantized_and_come_back_as_bfloat16(tmp_path, dtype):
    values = (
        np.random.default_rng(0)
        .standard_normal((4, 256))
        .astype({"F16": np.float16, "F32": np.float32}[dtype])
    )
    plain = blobs.plain("x.weight", values, dtype, "q8_0")
    (tensor,) = blobs.packed(tmp_path / "blob", plains=[plain]).tensors
    assert tensor.dtype == "BF16"
    bits = np.frombuffer(given_back(tmp_path / "blob")["x.weight"], np.uint16).astype(np.uint32)
    back = (bits << 16).view(np.float32).reshape(4, 256)
    assert np.abs(back - values.astype(np.float32)).max() < 0.03
    assert tensor.sha256 == hashlib.sha256(bits.astype(np.uint16).tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("bits", "said"), [(0x7FC0, "nan"), (0x7F80, "inf"), (0xFF80, "-inf"), (0xFFFF, "nan")]
)
@pytest.mark.parametrize("codec", [c for c in blobs.CODECS if c not in ("raw", "zipnn")])
def test_what_is_no_number_is_refused_by_name_and_place(tmp_path, bits, said, codec):
    array = blobs.bfloats(640, 256)
    array[517, 99] = bits
    what = refused(tmp_path, blobs.plain("a.weight", array, codec=codec))
    assert what == f"a.weight: {said} at [517, 99]: cannot be quantized"


def test_what_is_no_number_is_kept_by_codecs_that_keep_all(tmp_path):
    array = np.full((4, 4), 0x7FC0, np.uint16)
    plains = [blobs.plain("a", array), blobs.plain("b", array, codec="zipnn")]
    blobs.packed(tmp_path / "blob", plains=plains)
    assert set(given_back(tmp_path / "blob").values()) == {array.tobytes()}


@pytest.mark.parametrize("size", [1e10, 1e13, 1e20, -1e30, 3e38])
@pytest.mark.parametrize("codec", ["q8_0", "q4_k", "q5_k", "q6_k"])
def test_numbers_whose_scale_no_half_can_hold_are_refused(tmp_path, codec, size):
    array = blobs.bfloats(640, 256)
    array[600, 3] = from_float32(np.array([size], np.float32))[0]
    what = refused(tmp_path, blobs.plain("a.weight", array, codec=codec))
    assert what.startswith("a.weight: ")
    assert what.endswith(f" at [600, 3]: too large for the scales of {codec}")


@pytest.mark.parametrize("codec", ["int4", "int5", "q8_0", "q4_k", "q5_k", "q6_k"])
@pytest.mark.parametrize("size", [1e-40, 1e-20, 0, 60000, 1e5, 1e6])
def test_numbers_of_any_size_that_can_be_held_are_taken(tmp_path, codec, size):
    plain = blobs.plain("a.weight", blobs.bfloats(3, 256, size=size), codec=codec)
    blobs.packed(tmp_path / "blob", plains=[plain])
    assert sound(tmp_path / "blob")


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".x", "a\n", "a\ud800"])
def test_names_that_no_blob_may_hold_are_refused(tmp_path, name):
    assert "is no name of a tensor" in refused(tmp_path, blobs.plain(name, blobs.bfloats(2)))


def test_a_name_twice_and_names_of_others_parts_are_refused(tmp_path):
    x = blobs.plain("x", blobs.bfloats(2))
    assert refused(tmp_path, x, x) == "x: stands twice"
    packed = blobs.plain("x", blobs.bfloats(2), codec="zipnn")
    what = refused(tmp_path, packed, blobs.plain("x_offsets", blobs.bfloats(2)))
    assert what == "x: its parts have the names of other tensors"


@pytest.mark.parametrize("shape", [(256,), (), (2, 255)])
def test_what_its_codec_cannot_hold_is_refused_by_name(tmp_path, shape):
    what = refused(tmp_path, blobs.plain("x", blobs.bfloats(*shape), codec="q6_k"))
    assert what.startswith("x: q6_k takes matrices with columns in multiples of 256")


def test_a_type_that_cannot_be_quantized_is_refused(tmp_path):
    array = np.ones((2, 256), np.int32)
    assert "I32 is no type" in refused(tmp_path, blobs.plain("x", array, "I32", "q6_k"))


def test_a_folder_that_holds_a_blob_is_left_alone(tmp_path):
    blobs.packed(tmp_path / "blob")
    before = blobs.content(tmp_path / "blob")
    with pytest.raises(BlobError, match="there is a blob already"):
        blobs.packed(tmp_path / "blob", seed=9)
    assert blobs.content(tmp_path / "blob") == before


@pytest.mark.parametrize("path", ["../x", "/x", "a//b", "a\n", "manifest.json", "x.safetensors"])
def test_files_that_could_be_taken_for_others_are_refused(tmp_path, path):
    with pytest.raises(BlobError):
        blobs.packed(tmp_path / "blob", files={path: b""})
    assert not is_blob(tmp_path / "blob")
    assert not (tmp_path / "x").exists()


def test_a_failure_of_any_tensor_leaves_no_blob_and_the_next_one_works(tmp_path):
    bad = blobs.plain("model.layers.9.x.weight", np.full((2, 256), 0x7FC0, np.uint16), codec="q6_k")
    with pytest.raises(BlobError, match=r"layers\.9"):
        blobs.packed(tmp_path / "blob", plains=[*blobs.tensors(), bad], threads=2)
    assert not is_blob(tmp_path / "blob")
    blobs.packed(tmp_path / "blob")
    assert sound(tmp_path / "blob")


def test_what_two_blobs_have_in_common_takes_its_bytes_once(tmp_path):
    plains = blobs.tensors()
    a = blobs.packed(tmp_path / "a", plains=plains)
    others = [p for p in plains if p.choice.codec.name in ("raw", "zipnn")]
    more = [
        blobs.plain(p.name, blobs.bfloats(2, 256), codec="q8_0")
        for p in plains
        if p.choice.codec.name not in ("raw", "zipnn")
    ]
    b = blobs.packed(tmp_path / "b", plains=[*others, *more])
    shared = {s.path for s in a.shards} & {s.path for s in b.shards}
    assert len(shared) == 3
    for path in (*shared, "config.json"):
        assert (tmp_path / "a" / path).stat().st_ino == (tmp_path / "b" / path).stat().st_ino


def test_a_rank_and_what_it_was_made_of_are_told(tmp_path):
    rank = Rank(rank=1, world=2, topology="tp2 pp1", model="a" * 64)
    folder = tmp_path / "blob"
    folder.mkdir()
    write(folder, [blobs.plain("x", blobs.bfloats(2))], Store(tmp_path / "s"), About({}, rank=rank))
    read = Blob.open(folder).manifest
    assert read.rank == rank
    assert {"numpy", "numba", "safetensors", "zipnn"} <= read.encoder.keys()


def test_a_blob_of_no_tensors_is_one(tmp_path):
    blobs.packed(tmp_path / "blob", plains=[])
    assert sound(tmp_path / "blob")
    assert given_back(tmp_path / "blob") == {}


def test_progress_ends_at_all_of_it(tmp_path):
    told = []
    (tmp_path / "blob").mkdir()
    write(
        tmp_path / "blob", blobs.tensors(), Store(tmp_path / "s"), ABOUT, lambda *b: told.append(b)
    )
    assert told[-1][0] == told[-1][1] == sum(plain.array.nbytes for plain in blobs.tensors())
    assert told == sorted(told)
    assert writer.silent(1, 2) is None


@pytest.mark.parametrize("codec", ["q4_k", "q5_k"])
def test_a_minimum_that_no_half_can_hold_is_refused_where_it_shows(tmp_path, codec):
    row = np.zeros((1, 512), np.float32)
    row[0, :256] = np.linspace(0, 1e7, 256)
    row[0, 256:] = np.linspace(-5e6, 0, 256)
    weights = blobs.plain("m.weight", row, "F32", codec)
    with pytest.raises(BlobError, match=rf"m\.weight: .* at \[0, \d+\]: too large for .*{codec}"):
        blobs.packed(tmp_path / "blob", plains=[weights])
