"""ZipNN: nothing is lost, the bytes are the library's, and lies among them are refused."""

import hashlib
import os
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blob.codecs import bfloat16, zipnn
from blob.codecs.zipnn import BLOCK, CHUNK, ZipNN
from blob.errors import BlobError

pytest.importorskip("zipnn_core")

SIZES = [1, 2, 3, 4, 5, 6, 7, 255, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 2, CHUNK, CHUNK + 3]


def weights(count, seed=0):
    random = np.random.default_rng(seed)
    return bfloat16.from_float32((random.standard_normal(count) * 0.02).astype(np.float32))


def read(parts, size):
    out = bytearray(size)
    for index in range(-(-size // CHUNK)):
        ZipNN().decode(parts, index, memoryview(out)[index * CHUNK : (index + 1) * CHUNK])
    return bytes(out)


def encoded(raw):
    return ZipNN().encode(memoryview(raw))


@pytest.mark.parametrize("size", [*SIZES, 3 * CHUNK + 77])
@pytest.mark.parametrize("kind", ["weights", "noise", "zeros", "text"])
def test_nothing_is_lost(kind, size):
    raw = {
        "weights": lambda: weights(size // 2 + 1).tobytes()[:size],
        "noise": lambda: np.random.default_rng(size).bytes(size),
        "zeros": lambda: bytes(size),
        "text": lambda: (b"what is stored must come back. " * (size // 31 + 1))[:size],
    }[kind]()
    parts = encoded(raw)
    assert parts["offsets"][0] == 0
    assert parts["offsets"][-1] == parts["zipnn"].size
    assert read(parts, size) == raw


@given(st.binary(max_size=2000))
def test_nothing_is_lost_of_any_bytes(raw):
    assert read(encoded(raw), len(raw)) == raw


def test_an_empty_tensor_has_no_chunks():
    parts = encoded(b"")
    assert parts["zipnn"].size == 0
    assert parts["offsets"].tolist() == [0]


def test_a_matrix_is_read_as_its_bytes_and_is_not_changed():
    matrix = weights(6000).reshape(60, 100)
    before = matrix.tobytes()
    parts = ZipNN().encode(matrix.data.cast("B"))
    assert matrix.tobytes() == before
    assert read(parts, matrix.nbytes) == before


@pytest.mark.torch
@pytest.mark.parametrize("size", [1, 7, 4096, BLOCK + 6, CHUNK])
@pytest.mark.parametrize("make", [lambda n: weights(n).tobytes()[:n], bytes, os.urandom])
def test_what_is_stored_is_what_the_library_makes_and_it_reads_the_same(size, make):
    library, raw = the_library(), make(size)
    parts = encoded(raw)
    theirs = library(input_format="byte", bytearray_dtype="bfloat16", threads=1)
    assert parts["zipnn"].tobytes() == bytes(theirs.compress(bytearray(raw)))
    theirs = library(input_format="byte", bytearray_dtype="bfloat16", threads=1)
    assert theirs.decompress(parts["zipnn"].tobytes()) == raw == read(parts, len(raw))


def the_library():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports torch's older parts
        return pytest.importorskip("zipnn").ZipNN


def test_weights_take_two_thirds():
    raw = weights(2 * CHUNK).tobytes()
    assert encoded(raw)["zipnn"].size < 0.67 * len(raw)


AGAIN = """
import hashlib, numpy
from blob.codecs.zipnn import ZipNN
raw = numpy.random.default_rng(3).integers(0, 2**14, 800_000).astype(numpy.uint16).tobytes()
parts = ZipNN().encode(memoryview(raw))
print(hashlib.sha256(parts["zipnn"].tobytes() + parts["offsets"].tobytes()).hexdigest())
"""


def test_the_same_bytes_are_stored_again_and_by_another_process():
    raw = np.random.default_rng(3).integers(0, 2**14, 800_000).astype(np.uint16).tobytes()
    digests = set()
    for parts in (encoded(raw), encoded(raw)):
        digests.add(
            hashlib.sha256(parts["zipnn"].tobytes() + parts["offsets"].tobytes()).hexdigest()
        )
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", AGAIN], capture_output=True, text=True, check=True
        )
        digests.add(done.stdout.strip())
    assert len(digests) == 1


def test_chunks_are_read_by_threads_side_by_side():
    raw = weights(4 * CHUNK).tobytes()
    parts, out = encoded(raw), np.empty(len(raw), np.uint8)

    def work(first, step):
        for _ in range(3):
            for index in range(first, 8, step):
                ZipNN().decode(parts, index, out[index * CHUNK : (index + 1) * CHUNK].data)

    workers = [threading.Thread(target=work, args=(first, 3)) for first in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert out.tobytes() == raw


def changed(parts, at, value):
    stored = parts["zipnn"].copy()
    stored[at] = value
    return parts | {"zipnn": stored}


ENDS = 32 + 2 * 2  # of a chunk of two blocks


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (0, 0, "its header is"),
        (3, 6, "its header is"),
        (5, 8, "its header is"),
        (6, 0, "its header is"),
        (14, 30, "its header is"),
        (17, 9, "its header is"),
        (25, 9, "its header is"),
        (32, 2, "kind of block that is unknown: 2"),
        (35, 255, "kind of block that is unknown: 255"),
        (ENDS + 7, 128, "do not ascend"),
        (ENDS + 2, 0, "a block has 0 bytes"),
        (ENDS + 8 + 7, 1, "do not ascend"),
        (ENDS + 24, 7, "its blocks end at"),
        (32, 1, "cannot take|not Huffman code"),
    ],
)
def test_a_lie_is_refused_before_the_library_sees_it(at, value, said):
    raw = weights(BLOCK).tobytes()
    parts = encoded(raw)
    with pytest.raises(ValueError, match=said):
        read(changed(parts, at, value), len(raw))


def test_arrays_that_cannot_be_chunks_are_refused():
    raw = weights(100).tobytes()
    good = encoded(raw)
    ends = good["offsets"]
    for parts, said in (
        (good | {"offsets": np.array([0])}, "there is no chunk 0"),
        (good | {"offsets": np.array([], np.int64)}, "there is no chunk 0; there are 0"),
        (good | {"offsets": np.array([5, 1])}, "it stands from 5 to 1"),
        (good | {"offsets": np.array([-9, ends[1]])}, "it stands from -9"),
        (good | {"offsets": np.array([0, ends[1] + 1])}, "it stands from 0"),
        (good | {"offsets": np.array([0, 2**62])}, "it stands from 0"),
        (good | {"offsets": np.array([0, 20])}, "20 bytes are too few"),
        (good | {"offsets": ends.astype(np.int32)}, "offsets are int32"),
        (good | {"zipnn": good["zipnn"].astype(np.int8)}, "stored bytes are int8"),
        (good | {"zipnn": good["zipnn"].repeat(2)[::2]}, "stored bytes are"),
    ):
        with pytest.raises(ValueError, match=said):
            read(parts, len(raw))
    for size in (199, 201, CHUNK + 1):
        with pytest.raises(ValueError, match=r"its header is|a chunk has 1 to"):
            ZipNN().decode(good, 0, memoryview(bytearray(size)))
    with pytest.raises(ValueError, match="there is no chunk -1"):
        ZipNN().decode(good, -1, memoryview(bytearray(200)))


# In a process of its own: the test is that it does not crash.
HOSTILE = """
import sys, time, numpy as np
from blob.codecs.zipnn import ZipNN, BLOCK
from tests.blob.codecs.test_zipnn import encoded, weights
random, refused, read = np.random.default_rng(int(sys.argv[1])), 0, 0
good = [encoded(weights(count).tobytes()) for count in (40, 3_000, 70_000, BLOCK // 2 + 999)]
sizes = [80, 6_000, 140_000, BLOCK + 1_998]
for turn in range(3_000):
    which = turn % len(good)
    stored = good[which]["zipnn"].copy()
    for _ in range(random.integers(1, 6)):
        # Half of the time in the table or in the description of a Huffman tree.
        among = min(stored.size, 250) if random.random() < 0.5 else stored.size
        stored[random.integers(24, among)] = random.integers(256)
    try:
        out = memoryview(bytearray(sizes[which]))
        ZipNN().decode({"zipnn": stored, "offsets": good[which]["offsets"]}, 0, out)
        read += 1
    except ValueError:
        refused += 1
print(refused, read)
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2])
def test_bytes_that_nobody_wrote_end_no_process(seed):
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE, str(seed)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    refused, read_anyway = map(int, done.stdout.split())
    assert refused > 100
    assert refused + read_anyway == 3_000


def test_other_threads_run_while_a_chunk_is_read():
    raw = weights(CHUNK // 2).tobytes()
    parts, ticks, stop = encoded(raw), [], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.monotonic())
            time.sleep(0)

    before = sys.getswitchinterval()
    # The GIL is then given away on purpose only, never because its time is up.
    sys.setswitchinterval(1000)
    try:
        worker = threading.Thread(target=tick)
        worker.start()
        seen = len(ticks)
        for _ in range(20):
            read(parts, len(raw))
        seen = len(ticks) - seen
    finally:
        stop.set()
        sys.setswitchinterval(before)
        worker.join()
    assert seen > 0


def test_without_the_library_it_is_said_what_to_install(monkeypatch):
    # As if it were not there: Python refuses to import what is None here.
    monkeypatch.setitem(sys.modules, "zipnn_core", None)
    zipnn._huffman.cache_clear()
    for use in (zipnn._huffman, lambda: encoded(b"weights")):
        with pytest.raises(BlobError, match=r"zipnn 0\.5\.4 cannot be used") as raised:
            use()
        assert "preheat[zipnn]" in raised.value.hint
