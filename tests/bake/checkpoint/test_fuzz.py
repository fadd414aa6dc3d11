"""No bytes do anything else to a parser than pass its checks or be refused in words."""

import io
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from bake.checkpoint import gguf, members, npz, pickled, pth, safetensors
from bake.checkpoint.source import Bytes, Seekable
from bake.errors import BakeError
from tests.bake.checkpoint import handmade
from tests.bake.checkpoint.oracles import SMALL, TARGETS, refusal
from tests.bake.checkpoint.strategies import STRATEGIES

CORPUS = Path(__file__).parent / "corpus"
FILES = sorted(CORPUS.glob("*/*"))
SOUND = {
    (name, title): raw for name, files in handmade.sound().items() for title, raw in files.items()
}
PARSERS = {"safetensors": safetensors, "gguf": gguf, "pth": pth, "npz": npz}
SMALLEST = {
    "safetensors": "plain",
    "gguf": "empty",
    "zip": "deflated",
    "pickle": "values",
    "pth": "nested",
    "npz": "deflated",
}
# Whatever a parser may hold beside what the limits name: Python's own objects of a small file.
SLACK = 4 * SMALL.allocation_bytes
few = settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])


def told(path):
    """The target of a file of the corpus: its name begins with it."""
    return next(one for one in sorted(TARGETS, key=len)[::-1] if path.name.startswith(f"{one}-"))


@pytest.mark.parametrize(("name", "title"), SOUND)
def test_files_made_by_hand_are_accepted(name, title):
    assert TARGETS[name](SOUND[name, title])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_was_found_once_is_found_no_more(path):
    TARGETS[told(path)](path.read_bytes())


@pytest.mark.parametrize("name", SMALLEST)
def test_every_bit_of_a_small_file_may_be_flipped(name):
    raw = bytearray(SOUND[name, SMALLEST[name]])
    for bit in range(8 * len(raw)):
        raw[bit // 8] ^= 1 << bit % 8
        TARGETS[name](bytes(raw))
        raw[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("name", ["gguf", "gguf-tokenizer", "pth"])
@pytest.mark.parametrize("value", [0x00, 0xFF])
def test_every_byte_of_a_larger_file_may_be_anything(name, value):
    for title, whole in handmade.sound()[name].items():
        if title == "zip":
            continue
        for at in range(len(whole)):
            TARGETS[name](whole[:at] + bytes([value]) + whole[at + 1 :])


@pytest.mark.parametrize("name", STRATEGIES)
def test_built_and_damaged_files(name):
    @few
    @given(STRATEGIES[name])
    def holds(raw):
        TARGETS[name](raw)

    holds()


@pytest.mark.parametrize("name", PARSERS)
def test_what_is_said_of_a_file_does_not_depend_on_its_source(name):
    @few
    @given(STRATEGIES[name])
    def same(raw):
        mine = refusal(PARSERS[name], Bytes(raw, "file"))
        other = refusal(PARSERS[name], Seekable(io.BytesIO(raw), "file"))
        assert mine == other or repr(mine) == repr(other)

    same()


@pytest.mark.torch
def test_what_torch_loads_is_what_is_read():
    import torch

    from bake.checkpoint import arrays

    agreed = 0

    @few
    @given(STRATEGIES["pth"])
    def same(raw):
        nonlocal agreed
        source = Bytes(raw, "file")
        contents = refusal(pth, source)
        if isinstance(contents, str):
            return
        try:
            theirs = torch.load(io.BytesIO(raw), weights_only=True)
        except Exception:  # what torch raises of bad bytes is not said
            return
        if "pth.taken_from" in contents.metadata:
            theirs = theirs[contents.metadata["pth.taken_from"]]
        for tensor in contents.tensors:
            other = theirs[tensor.name]
            assert tuple(other.shape) == tensor.shape
            if tensor.dtype in arrays.NUMPY:
                ours = arrays.array(source, tensor, SMALL).tobytes()
                # Of one element any stride is contiguous, and none but 1 can be viewed as bytes.
                flat = torch.empty(other.numel(), dtype=other.dtype).copy_(other.reshape(-1))
                bits = (flat.view(torch.uint8) if len(flat) else flat.byte()).numpy().tobytes()
                if tensor.dtype == "BOOL":
                    # Any truth but 0 is 1 once torch has copied it.
                    ours, bits = bytes(map(bool, ours)), bytes(map(bool, bits))
                assert ours == bits
                agreed += 1

    same()
    assert agreed


def instead_of(true, lie):
    """Tells all but one number as it is, and that where there is room."""
    return lambda value, bits: lie % 2**bits if value == true and bits == 64 else value


def greedy():
    """Small files that say that they are large."""
    huge = 2**43
    text = f'{{"a":{{"dtype":"U8","shape":[{huge}],"data_offsets":[0,{huge}]}}}}'.encode()
    yield "safetensors", len(text).to_bytes(8, "little") + text
    yield "safetensors", (2**63).to_bytes(8, "little") + b"{}"
    yield "safetensors", (50_000).to_bytes(8, "little") + b"[" * 50_000

    for count in (2**31, 2**32, 2**40, 2**63, 2**64 - 1):
        for kind in ("u8", "text", "list", "f64"):
            three = {"text": ["a"] * 3, "list": [("u8", [])] * 3}.get(kind, [0] * 3)
            key = ("key", "list", (kind, three))
            yield "gguf", handmade.gguf([key], [], instead_of(3, count))
        yield "gguf", handmade.gguf([], [("a", "F32", (4,))], instead_of(4, count))
        yield "pickle", handmade.PROTOCOL + b"\x8d" + count.to_bytes(8, "little") + b"a."
    view = handmade.View("Float", "0", 1, 0, (2**20, 2**20), (0, 0))
    yield "pth", handmade.pth({"a": view})
    two = view._replace(shape=(1,), strides=(1,), numel=2)
    yield "pth", handmade.legacy({"a": two}, instead_of(2, huge))
    yield "npz", handmade.npy("<f8", (), 8).replace(b"()", b"(1099511627776,)")
    many = 30 * 2**20
    head = handmade.npy("|i1", (1,), 1)[:-1].replace(b"(1, )", b"(%d,)" % many)
    zeros = handmade.archive([("a.npy", head + bytes(many))], deflate=True)
    yield "npz", zeros
    yield "zip", zeros
    yield "pth", handmade.archive([("a/data.pkl", b"\x80\x02" + bytes(2**20))], deflate=True)
    # What lies within itself, and what doubles with each instruction.
    yield "pickle", handmade.PROTOCOL + b"]q\0" + b"h\0a" * 2000 + b"."
    yield "pickle", handmade.PROTOCOL + b")" + b"q\0h\0\x86" * 2000 + b"."
    yield "pickle", handmade.PROTOCOL + b"(" * 60_000 + b"."
    yield "pickle", handmade.PROTOCOL + b"\x8a\xff" + b"\x7f" * 255 + b"\x85" * 9000 + b"."


GREEDY = list(greedy())
HUNGRY = """
import resource, sys
from bake.checkpoint import gguf, npz, pth, safetensors
from bake.checkpoint.source import Bytes
from tests.bake.checkpoint.oracles import TARGETS
from tests.bake.checkpoint.test_fuzz import GREEDY
from pathlib import Path
# What reads vocabularies is compiled code: it comes with numba, and scipy where that is, which are
# 256 MiB of addresses themselves, and no memory that a file takes.
TARGETS["gguf"](next(raw for name, raw in GREEDY if name == "gguf"))
import blob.codecs.kernel
pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (pages + 256 * 2**20, resource.RLIM_INFINITY))
for name, raw in GREEDY:
    TARGETS[name](raw)
print(len(GREEDY))
"""


def test_files_that_say_they_are_large_take_no_memory():
    done = subprocess.run(
        [sys.executable, "-c", HUNGRY],
        # numba imports scipy where it is, whose OpenBLAS spins for ever when a thread of it gets
        # no memory.
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert (done.stdout.strip(), done.stderr) == (str(len(GREEDY)), "")


def once(name, raw):
    """The parser alone: oracles take memory themselves."""
    source = Bytes(raw, "file")
    try:
        if name == "zip":
            members.members(source, SMALL)
        elif name == "pickle":
            pickled.read(raw, "file", SMALL)
        else:
            PARSERS[name].parse(source, SMALL)
    except BakeError:
        return


@pytest.mark.parametrize("name", SMALLEST)
def test_no_more_is_taken_than_the_limits_say(name):
    hostile = [raw for of, raw in GREEDY if of == name]
    once(name, hostile[0])
    tracemalloc.start()
    try:
        for raw in hostile:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            once(name, raw)
            assert tracemalloc.get_traced_memory()[1] - before < SLACK
    finally:
        tracemalloc.stop()
