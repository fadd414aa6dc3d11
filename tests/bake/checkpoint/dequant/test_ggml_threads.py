"""A tensor of blocks is the same bytes on any number of threads; what does not fit is refused."""

import threading

import numpy as np
import pytest

from bake.checkpoint.dequant import ggml
from bake.checkpoint.dequant.blocks import Blocks
from bake.checkpoint.dequant.ggml import BLOCKS, dequantize
from tests.bake.checkpoint.dequant import peers
from tests.bake.checkpoint.dequant.peers import bits, random_blocks

KINDS = ["Q8_0", "Q4_K", "NVFP4", "TQ1_0"]


@pytest.fixture
def small_pieces(monkeypatch):
    """A small matrix has many pieces, and the last is not full."""
    monkeypatch.setattr(ggml, "PIECE", 1000)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
@pytest.mark.parametrize(("rows", "per_row"), [(1, 500), (2, 333), (101, 3), (257, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_the_same_on_any_number_of_threads(kind, rows, per_row, dtype):
    blocks = random_blocks(kind, rows, per_row)
    whole = peers.empty(kind, blocks, dtype)
    BLOCKS[kind].rows(blocks.reshape(-1), blocks.shape[1], rows, whole.reshape(-1))
    for threads in (1, 2, 3, 7):
        out = np.full_like(whole, 7)
        dequantize(kind, blocks, out, threads)
        assert out.tobytes() == whole.tobytes()
    if dtype == np.float32:
        assert np.array_equal(bits(whole), bits(peers.read_by_c(kind, blocks)))


@pytest.mark.usefixtures("small_pieces")
def test_one_long_row_is_split_over_threads(monkeypatch):
    seen = []
    together = threading.Barrier(2)

    def rows(blocks, stride, count, out):
        seen.append((threading.get_ident(), out.size))
        if len(seen) <= 2:
            together.wait(10)

    monkeypatch.setattr(ggml, "BLOCKS", {"Q8_0": Blocks("Q8_0", 32, 34, rows)})
    blocks = random_blocks("Q8_0", 1, 100)
    dequantize("Q8_0", blocks, np.empty((1, 3200), np.float32), 2)
    assert len({thread for thread, _ in seen}) == 2
    assert sorted(size for _, size in seen) == [224, 992, 992, 992]


def test_a_small_matrix_starts_no_thread(monkeypatch):
    def none(*_):
        raise AssertionError("a thread was started")

    blocks = random_blocks("Q8_0", 4, 100)
    out = np.empty((4, 3200), np.float32)
    monkeypatch.setattr(threading.Thread, "start", none)
    dequantize("Q8_0", blocks, out, 8)
    assert np.array_equal(bits(out), bits(peers.read_by_c("Q8_0", blocks)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_no_rows_and_no_columns_are_nothing(kind, threads):
    form = BLOCKS[kind]
    dequantize(kind, np.empty((0, form.size), np.uint8), np.empty((0, form.values), "f4"), threads)
    dequantize(kind, np.empty((3, 0), np.uint8), np.empty((3, 0), np.uint16), threads)


def test_mapped_bytes_are_read_at_any_address(tmp_path):
    blocks = random_blocks("Q6_K", 8, 3)
    path = tmp_path / "blocks"
    path.write_bytes(b"odd" + blocks.tobytes())
    mapped = np.memmap(path, np.uint8, "r", 3).reshape(blocks.shape)
    out = np.empty((8, 768), np.float32)
    dequantize("Q6_K", mapped, out)
    assert np.array_equal(bits(out), bits(peers.read_by_c("Q6_K", blocks)))
    assert blocks.flags.writeable
    dequantize("Q6_K", blocks, out)
    assert blocks.flags.writeable


def test_an_unknown_type_is_told_with_those_there_are():
    with pytest.raises(ValueError, match=r"Q4_0.*got Q9_Z"):
        dequantize("Q9_Z", np.empty((1, 34), np.uint8), np.empty((1, 32), np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_is_refused_with_what_would(kind):
    size, values = BLOCKS[kind].size, BLOCKS[kind].values
    blocks, out = np.zeros((2, size), np.uint8), np.zeros((2, values), np.float32)
    wide = np.zeros((2, 2 * size), np.uint8)
    for wrong in (blocks[:, :-1], blocks[:1], blocks.view(np.int8), wide):
        with pytest.raises(ValueError, match=rf"blocks must be uint8 \(2, {size}\), got"):
            dequantize(kind, wrong, out)
    with pytest.raises(ValueError, match=f"rows of {size} bytes must be contiguous"):
        dequantize(kind, wide[:, :size], out)
    with pytest.raises(ValueError, match=f"multiple of {values}, got {values - 1}"):
        dequantize(kind, blocks, out[:, :-1])
    with pytest.raises(ValueError, match=r"float32 or uint16 .*, got float64"):
        dequantize(kind, blocks, out.astype(np.float64))
    with pytest.raises(ValueError, match=r"2 × .* numbers must be contiguous"):
        dequantize(kind, blocks, np.zeros((2, 2 * values), np.float32)[:, ::2])
    with pytest.raises(ValueError, match="two dimensions wanted, got 1 and 2"):
        dequantize(kind, blocks.reshape(-1), out)
    with pytest.raises(ValueError, match="aligned and writable"):
        dequantize(kind, blocks, np.zeros(8 * values + 1, np.uint8)[1:].view("f4").reshape(2, -1))
    out.flags.writeable = False
    with pytest.raises(ValueError, match="aligned and writable"):
        dequantize(kind, blocks, out)
    out.flags.writeable = True
    assert not out.any()
