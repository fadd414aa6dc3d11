"""Tensors come back as they were written, proven; a bit that is another stops before its tensor."""

import gc
import threading

import numpy as np
import pytest

from blob.blob import Blob
from blob.errors import BlobError
from blob.header import PREFIX
from blob.reconstruct import Buffers, cores, stream
from blob.registry import codec_of
from blob.restore import scratch_for
from blob.rows import decode
from tests.blob import blobs


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "blob"
    blobs.packed(folder)
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Twenty tensors of a megabyte each, of one size."""
    folder = tmp_path_factory.mktemp("large") / "blob"
    plains = [
        blobs.plain(f"layers.{n}.x.weight", blobs.bfloats(256, 2048, seed=n), codec="int5")
        for n in range(20)
    ]
    blobs.packed(folder, plains=plains)
    return folder


def given_back(folder, threads=2, **options):
    """Copies, as buffers are used again."""
    return {one.name: one.array.copy() for one in stream(Blob.open(folder), threads, **options)}


def same(one, other):
    assert one.keys() == other.keys()
    return all(
        one[name].tobytes() == other[name].tobytes() and one[name].shape == other[name].shape
        for name in one
    )


@pytest.mark.parametrize("threads", [1, 2, 3, 8, None])
def test_any_number_of_threads_gives_the_same_in_the_order_of_names(sound, large, threads):
    for folder in (sound, large):
        assert same(given_back(folder, 1), given_back(folder, threads))
        assert list(given_back(folder, threads)) == [
            tensor.name for tensor in Blob.open(folder).manifest.tensors
        ]


def test_what_comes_back_is_what_the_references_decode(sound):
    blob, back = Blob.open(sound), given_back(sound)
    for tensor in blob.manifest.tensors:
        if tensor.codec in ("raw", "zipnn"):
            continue
        codec = codec_of(tensor.codec, tensor.params, tensor.name)
        out = np.empty(tensor.shape, np.uint16)
        decode(codec, blob.parts(tensor), out)
        assert out.tobytes() == back[tensor.name].tobytes()


def test_tensors_come_in_the_order_asked_for_and_no_others(sound):
    names = ["scale", "model.layers.1.int5.weight", "model.layers.0.int4.weight"]
    assert list(given_back(sound, names=names)) == names
    assert given_back(sound, names=[]) == {}
    with pytest.raises(BlobError, match="no tensor x in this blob"):
        stream(Blob.open(sound), names=["x"])


def test_packed_gives_int4_as_it_is_stored_and_all_else_as_ever(sound):
    plain, packed = given_back(sound), given_back(sound, packed=True)
    (tensor,) = [t for t in Blob.open(sound).manifest.tensors if t.codec == "int4"]
    parts = {f"{tensor.name}_{key}": part for key, part in Blob.open(sound).parts(tensor).items()}
    del plain[tensor.name]
    assert same(packed, plain | parts)


def test_what_it_took_is_told(sound):
    blob = Blob.open(sound)
    streamed = stream(blob, 2)
    for one in streamed:
        assert one.name
    assert streamed.bytes_out == blob.manifest.size
    assert streamed.bytes_stored == blob.manifest.stored_size
    assert streamed.seconds.keys() == {"decode", "verify"}
    assert all(seconds > 0 for seconds in streamed.seconds.values())
    assert cores() >= 1


def test_who_stops_early_leaves_no_thread_at_work(large):
    before = threading.active_count()
    for _one in stream(Blob.open(large), 3):
        break
    gc.collect()
    assert threading.active_count() == before


def flips(raw, step, seed=0):
    """``raw`` with one bit flipped, at each ``step``-th byte."""
    for position in range(seed % step, len(raw), step):
        flipped = bytearray(raw)
        flipped[position] ^= 1 << (position * 5 + seed) % 8
        yield position, bytes(flipped)


def told(folder, **options):
    """What was given before it ended, and what was said then."""
    given = {}
    try:
        for one in stream(Blob.open(folder), 1, **options):
            given[one.name] = one.array.copy()
    except BlobError as error:
        return given, error.what
    return given, ""


def check_flips(folder, tmp_path, step):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).hardlink_to(path)
    blob = Blob.open(folder)
    sound, stored = given_back(folder), given_back(folder, packed=True)
    of_shard = {shard.sha256: shard for shard in blob.manifest.shards}
    seen = 0
    for digest, shard in of_shard.items():
        inside = [tensor for tensor in blob.manifest.tensors if tensor.shard == digest]
        raw = (folder / shard.path).read_bytes()
        start = PREFIX.size + PREFIX.unpack(raw[: PREFIX.size])[0]
        for position, flipped in flips(raw, step):
            blobs.place(copy, flipped, shard.path)
            given, what = told(copy, packed=position % 2 == 0)
            # What comes before it is sound; it itself never comes.
            assert same(given, {name: (sound | stored)[name] for name in given})
            owners = [
                tensor.name
                for tensor in inside
                for part in tensor.parts.values()
                if start + part.begin <= position < start + part.end
            ]
            if position >= start:
                (owner,) = owners
                assert what.startswith(f"{owner}: ")
                assert not [name for name in given if name.startswith(owner)]
            else:
                # Of the header: the file, and a tensor that is in it, before anything is given.
                assert what.startswith(shard.path)
                assert any(tensor.name in what for tensor in inside)
                assert given == {}
            seen += 1
        blobs.place(copy, raw, shard.path)
    assert same(given_back(copy), sound)
    return seen


def test_a_bit_flipped_in_any_shard_is_named_by_tensor_and_never_given(sound, tmp_path):
    assert check_flips(sound, tmp_path, 11) > 400


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_bit_flipped_at_every_byte_is_named_by_tensor_and_never_given(sound, tmp_path):
    assert check_flips(sound, tmp_path, 1) > 5000


def test_damage_that_decodes_to_the_same_weights_is_refused_too(tmp_path):
    """A block whose scale is 0 gives zeros, whatever its numbers are."""
    zeros = np.zeros((2, 256), np.uint16)
    blobs.packed(tmp_path / "b", plains=[blobs.plain("x.weight", zeros, codec="q6_k")])
    blob = Blob.open(tmp_path / "b")
    (tensor,) = blob.manifest.tensors
    (shard,) = blob.manifest.shards
    raw = bytearray((tmp_path / "b" / shard.path).read_bytes())
    raw[len(raw) - tensor.parts["blocks"].size + 5] ^= 1
    blobs.place(tmp_path / "b", bytes(raw), shard.path)
    with pytest.raises(BlobError, match=r"x\.weight: stored bytes: blake3 differs"):
        given_back(tmp_path / "b")


@pytest.mark.parametrize(
    "keep",
    [
        lambda array: array,
        lambda array: array[3:5],
        lambda array: array.view(np.uint8)[::7, 1:][1:],
        lambda array: array.T,
        lambda array: array.reshape(-1)[-1:],
        memoryview,
        lambda array: [array, None],
    ],
    ids=["array", "rows", "bytes", "transposed", "one number", "memoryview", "in a list"],
)
def test_what_a_consumer_keeps_is_never_written_over(large, keep):
    sound = given_back(large, 1)
    kept = {one.name: keep(one.array) for one in stream(Blob.open(large), 3)}
    for name, held in kept.items():
        expected = keep(sound[name])
        arrays = [x[0] if isinstance(x, list) else x for x in (held, expected)]
        assert np.array_equal(*map(np.asarray, arrays)), name


@pytest.mark.torch
def test_what_a_consumer_keeps_as_views_of_torch_is_never_written_over(large):
    torch = pytest.importorskip("torch")
    sound = given_back(large, 1)
    kept = {}
    for one in stream(Blob.open(large), 3):
        tensor = torch.from_numpy(one.array.view(np.int16)).view(torch.bfloat16)
        kept[one.name] = tensor[1:].t()[:100].detach()
        del tensor, one
    gc.collect()
    for name, held in kept.items():
        expected = torch.from_numpy(sound[name].view(np.int16)).view(torch.bfloat16)
        assert torch.equal(held, expected[1:].t()[:100])


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_memory_is_bounded_for_who_keeps_nothing_and_is_all_for_who_keeps_all(large, threads):
    size = Blob.open(large).manifest.tensors[0].size
    streamed = stream(Blob.open(large), threads)
    total = 0
    for one in streamed:
        total += int(one.array[0, 0])
        del one
        # One at work and one done for each thread, one that waits, and the one just given.
        assert streamed.buffers.nbytes <= (2 * threads + 2) * size
    kept = stream(Blob.open(large), threads)
    arrays = [one.array for one in kept]
    assert kept.buffers.nbytes >= len(arrays) * size
    assert total


def test_buffers_grow_to_the_largest_and_are_not_added_to():
    buffers = Buffers()
    for size in (10, 1000, 10, 500, 2000, 2000):
        assert buffers.take(size).nbytes == size
    assert buffers.nbytes == 2000
    held = buffers.take(100)
    other = buffers.take(100)
    assert not np.shares_memory(held, other)
    del held, other
    assert buffers.take(0).nbytes == 0


def test_a_tensor_without_rows_can_claim_any_number_of_columns_and_takes_no_memory(tmp_path):
    plains = [
        blobs.plain("a.weight", np.empty((0, 2**20 * 256), np.uint16), codec="int5"),
        blobs.plain("b", np.empty((0, 2**30), np.uint16), codec="zipnn"),
    ]
    blobs.packed(tmp_path / "b", plains=plains)
    assert scratch_for(Blob.open(tmp_path / "b").manifest.tensors).nbytes < 2**20
    assert [a.shape for a in given_back(tmp_path / "b").values()] == [(0, 2**28), (0, 2**30)]


def test_memory_that_there_is_not_is_told(tmp_path, monkeypatch):
    blobs.packed(
        tmp_path / "b", plains=[blobs.plain("x.weight", blobs.bfloats(1, 256), codec="q6_k")]
    )

    def none_left(_buffers, _size):
        raise MemoryError

    monkeypatch.setattr(Buffers, "take", none_left)
    with pytest.raises(BlobError, match=r"x\.weight: no memory for its 512 bytes"):
        given_back(tmp_path / "b")


def test_what_is_decoded_ahead_is_bounded_by_bytes_on_any_number_of_threads(large, monkeypatch):
    size = Blob.open(large).manifest.tensors[0].size
    monkeypatch.setattr("blob.reconstruct.HELD_BYTES", 2 * size)
    streamed = stream(Blob.open(large), 16)
    for one in streamed:
        del one
        # Two on their way, and the one just given.
        assert streamed.buffers.nbytes <= 3 * size
    assert streamed.bytes_out == Blob.open(large).manifest.size
