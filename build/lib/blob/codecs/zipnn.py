"""Lossless: exponents apart from mantissas, Huffman-coded by the ZipNN library (arXiv 2411.05239).

What is stored is what ``zipnn`` 0.5.4 makes of each chunk of 1 MiB, with one thread, one after the
other, and ``offsets`` says where each begins and ends. The library reads it back, too, but not
here: its reader believes every size that it finds, holds the GIL all the time and starts a thread
for each call. So the sizes are read and checked here, and of the library only the Huffman decoder
is called, which is bounded by the sizes of both sides and gives the GIL away. Whoever loads a blob
has compared the stored bytes with their digest before; this stands behind that, not in its place.

A stored chunk (all numbers little-endian): 32 bytes of header; for low bytes, then high bytes, of
each block of 256 KiB, a kind (0 as it is, 1 Huffman); for the same, the end of its bytes (uint64),
counted from the first of low or of high bytes; the low bytes; the high bytes. Before the two are
taken apart, the bits of a number are turned from ``sign, exponent, mantissa`` into
``exponent, sign, mantissa``, in whole pairs of numbers.
"""

import ctypes
import threading
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from blob.codecs import Parts
from blob.codecs.kernel import kernel
from blob.errors import BlobError

VERSION = (0, 5, 4)
CHUNK = 2**20
# The library's: as much as its Huffman coder takes at once is half of it.
BLOCK = 2**18
HEADER = 32
HALVES = 2
AS_IT_IS, HUFFMAN = 0, 1
BYTE_ORDER = 0b1010  # low bytes, then high bytes
BIT_ORDER = 1  # the exponent first
# The library's own: what stays larger than this is kept as it is; the other has no effect in 0.5.4.
THRESHOLD, CHECKED_AFTER = 0.95, 10
STORED_MOST = HEADER + HALVES * (CHUNK // BLOCK) * 9 + CHUNK
# What the decoder may read or write beyond an end without harm.
MARGIN = 64

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class ZipNN:
    """The library's ``bfloat16`` mode for any bytes; made for BF16."""

    @property
    def name(self) -> str:
        """As the manifest says it."""
        return "zipnn"

    @property
    def chunk(self) -> int:
        """Bytes of a chunk before it is stored; the last may be shorter."""
        return CHUNK

    def encode(self, raw: memoryview) -> dict[str, NDArray[Any]]:
        """The chunks of ``raw``, one after the other, and where each begins and ends.

        :raises BlobError: the library is not installed.
        """
        flat = raw.cast("B") if raw.nbytes else memoryview(b"")
        # The library turns bits in place: each chunk is a copy, or it would change the weights.
        chunks = [
            np.frombuffer(_compressed(bytearray(flat[at : at + CHUNK])), np.uint8)
            for at in range(0, len(flat), CHUNK)
        ]
        ends = np.cumsum([0, *(chunk.size for chunk in chunks)], dtype=np.int64)
        joined = np.concatenate(chunks) if chunks else np.empty(0, np.uint8)
        return {"zipnn": joined, "offsets": ends}

    def decode(self, parts: Parts, index: int, out: memoryview) -> None:
        """Chunk ``index`` into ``out``, which has exactly its size; the GIL is off while it works.

        :raises ValueError: what is stored is no such chunk.
        :raises BlobError: the library is not installed.
        """
        stored, offsets = parts["zipnn"], parts["offsets"]
        target = np.frombuffer(out, np.uint8)
        if stored.dtype != np.uint8 or stored.ndim != 1 or not stored.flags.c_contiguous:
            raise ValueError(f"stored bytes are {stored.dtype} {stored.shape}")
        if offsets.dtype != np.int64 or offsets.ndim != 1:
            raise ValueError(f"offsets are {offsets.dtype} {offsets.shape}")
        if not 0 <= index < offsets.size - 1:
            raise ValueError(f"there is no chunk {index}; there are {max(0, offsets.size - 1)}")
        begin, end = int(offsets[index]), int(offsets[index + 1])
        if not 0 <= begin < end <= stored.size:
            raise ValueError(f"it stands from {begin} to {end} in {stored.size} bytes")
        if not 0 < target.size <= CHUNK:
            raise ValueError(f"a chunk has 1 to {CHUNK} bytes, not {target.size}")
        _decode(stored[begin:end], target)


def _decode(stored: Bytes, out: Bytes) -> None:
    """One whole chunk, in one go without the GIL: to hand it over costs as much as a block.

    :raises ValueError: it is not that of ``out.size`` bytes.
    """
    kinds, ends, at = _table(stored, out.size, -(-out.size // BLOCK))
    pieces = _pieces(kinds, ends, at, out.size)
    copy, halves = _scratch()
    # Copied, so that the kernel sees one type of array (a mapped one is read-only), and because
    # Huffman tables are read a word at a time: what lies behind the last must be memory.
    copy[: stored.size] = stored
    copy[stored.size : stored.size + MARGIN] = 0
    if not read_blocks(_huffman(), copy, pieces, halves, out):
        raise ValueError("a block is not Huffman code of its size")


def _pieces(kinds: Bytes, ends: NDArray[np.uint64], at: int, size: int) -> NDArray[np.int64]:
    """For each block, for low and high bytes: kind, where they are stored, how many, of how many.

    :raises ValueError: a block does not store as many as it has.
    """
    blocks = kinds.shape[1]
    pieces = np.empty((blocks, HALVES, 4), np.int64)
    first = [at, at + int(ends[0, -1])]
    for block in range(blocks):
        own = min(BLOCK, size - block * BLOCK)
        for half, whole in enumerate((own - own // 2, own // 2)):
            begin = int(ends[half, block - 1]) if block else 0
            count, kind = int(ends[half, block]) - begin, int(kinds[half, block])
            if kind == AS_IT_IS and count != whole:
                raise ValueError(f"a block has {count} bytes, expected {whole}")
            if kind == HUFFMAN and not 0 < count < whole:
                raise ValueError(f"a block of {whole} bytes cannot take {count}")
            pieces[block, half] = kind, first[half] + begin, count, whole
    return pieces


def _table(stored: Bytes, size: int, blocks: int) -> tuple[Bytes, NDArray[np.uint64], int]:
    """Kinds and ends (both halves × blocks) of what a chunk stores, and where its bytes begin.

    :raises ValueError: header, kinds or ends are not those of a chunk of ``size`` bytes.
    """
    if stored.size < HEADER + HALVES * blocks * 9:
        raise ValueError(f"{stored.size} bytes are too few for a chunk of {size}")
    if (header := stored[:HEADER].tobytes()) != header_of(size, stored.size):
        raise ValueError(f"its header is {header.hex()}, not {VERSION}'s of {size} bytes")
    at = HEADER + HALVES * blocks
    kinds = stored[HEADER:at].reshape(HALVES, blocks)
    ends = np.frombuffer(stored[at : at + 8 * HALVES * blocks].tobytes(), "<u8")
    ends = ends.reshape(HALVES, blocks)
    at += 8 * HALVES * blocks
    if (kinds > HUFFMAN).any():
        raise ValueError(f"it has a kind of block that is unknown: {int(kinds.max())}")
    # No sum below can wrap: each end is small.
    if (ends > CHUNK).any() or (ends[:, 1:] < ends[:, :-1]).any():
        raise ValueError("the ends of its blocks do not ascend")
    if at + int(ends[:, -1].sum()) != stored.size:
        raise ValueError(f"its blocks end at {at + int(ends[:, -1].sum())} of {stored.size}")
    return kinds, ends, at


def header_of(size: int, stored: int) -> bytes:
    """What the library puts before a chunk of ``size`` bytes that takes ``stored`` bytes."""
    header = bytearray(HEADER)
    header[:2] = b"ZN"
    header[2:5] = bytes(VERSION)
    header[5] = BYTE_ORDER
    header[6] = BIT_ORDER
    header[8] = 1  # format: bytes
    header[14] = BLOCK.bit_length() - 1
    header[15] = 6  # ZipNNDtypeEnum.BFLOAT16
    header[16:24] = size.to_bytes(8, "little")
    header[24:32] = stored.to_bytes(8, "little")
    return bytes(header)


@kernel
def read_blocks(
    huffman: int, stored: Bytes, pieces: NDArray[np.int64], halves: Bytes, out: Bytes
) -> bool:
    """All blocks of a chunk; False if one is no Huffman code. ``huffman`` is an address."""
    for block in range(len(pieces)):
        for half in range(HALVES):
            kind, begin, count, whole = pieces[block, half]
            if kind == AS_IT_IS:
                halves[half, :whole] = stored[begin : begin + count]
                continue
            to = np.int64(halves[half].ctypes.data)
            source = np.int64(stored.ctypes.data) + begin
            if decompress(np.int64(huffman), to, whole, source, count) != whole:
                return False
        numbers = pieces[block, 1, 3]
        own = out[block * BLOCK : block * BLOCK + 2 * numbers].view(np.uint16)
        # The library turns pairs of numbers; what is left over at the end stays as it is.
        turn_back(halves[0], halves[1], own, numbers // 2 * 2)
    if out.size % 2:
        out[out.size - 1] = halves[0, pieces[-1, 0, 3] - 1]
    return True


@intrinsic
def decompress(_: Any, function: Any, target: Any, size: Any, source: Any, stored: Any) -> Any:
    """The C function at an address, ``size_t (void *, size_t, const void *, size_t)``."""

    def code(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(word, [word] * 4).as_pointer()
        return builder.call(builder.inttoptr(arguments[0], kind), arguments[1:])

    return types.int64(*[types.int64] * 5), code


@kernel
def turn_back(low: Bytes, high: Bytes, out: NDArray[np.uint16], turned: int) -> None:
    """Numbers of their bytes; of the first ``turned``, the exponent stood before the sign."""
    for i in range(turned):
        exponent, rest = np.uint16(high[i]), np.uint16(low[i])
        sign = np.uint16(rest & np.uint16(0x80)) << np.uint16(8)
        out[i] = np.uint16(sign | (exponent << np.uint16(7)) | (rest & np.uint16(0x7F)))
    for i in range(turned, out.size):
        out[i] = np.uint16(low[i]) | (np.uint16(high[i]) << np.uint16(8))


_held = threading.local()


def _scratch() -> tuple[Bytes, Bytes]:
    """Buffers of this thread: for a chunk as it is stored, and for both halves of a block read."""
    if not hasattr(_held, "scratch"):
        copy = np.empty(STORED_MOST + MARGIN, np.uint8)
        _held.scratch = copy, np.empty((HALVES, BLOCK // 2 + MARGIN), np.uint8)
    scratch: tuple[Bytes, Bytes] = _held.scratch
    return scratch


def _compressed(chunk: bytearray) -> Any:
    """What ``zipnn.ZipNN(bytearray_dtype="bfloat16", threads=1).compress`` makes, and calls itself.

    Its package in Python imports torch; this is the C below it. ``chunk`` is changed.

    :raises BlobError: it is not installed.
    """
    try:
        core = import_module("zipnn_core")
    except ImportError as error:
        raise _missing(error) from error
    # It fills in the stored size.
    header = header_of(len(chunk), 0)
    return core.zipnn_core(
        header, chunk, HALVES, BIT_ORDER, BYTE_ORDER, 0, BLOCK, THRESHOLD, CHECKED_AFTER, 1
    )


@cache
def _huffman() -> Any:
    """The address of ``HUF_decompress(target, size, source, size)``, which returns ``size``.

    What it returns else is a number beyond any size.

    :raises BlobError: it is not installed.
    """
    try:
        file = import_module("zipnn_core").__file__
        function = ctypes.CDLL(file).HUF_decompress
    except (ImportError, OSError, AttributeError) as error:
        raise _missing(error) from error
    return ctypes.cast(function, ctypes.c_void_p).value


def _missing(error: Exception) -> BlobError:
    return BlobError(
        f"codec zipnn: the library zipnn 0.5.4 cannot be used: {error}",
        "pip install 'preheat[zipnn]' (it is built from source: a C compiler is needed)",
    )
