"""What must hold of any bytes whatever, by target: for tests, for the corpus, and for the fuzzer.

A target takes a file's bytes and says whether they were accepted. Only what a person is told
(``BakeError``) may come out of a parser; whatever it accepts must lie within the file, be as large
as its shape says, be the same from every kind of source, and be what other readers see.
"""

import io
import itertools
import zipfile
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize

from bake.checkpoint import arrays, families, gguf, hops, members, npz, pickled, pth, safetensors
from bake.checkpoint.contents import Contents, Listed, Tensor
from bake.checkpoint.limits import MIB, ParseLimits
from bake.checkpoint.source import Bytes, Seekable, Source
from bake.checkpoint.state_dicts import found_in
from bake.errors import BakeError, Malformed, Unsupported
from blob.files import FORBIDDEN
from blob.header import BITS, check_names

# So that what is larger is refused at once.
SMALL = ParseLimits(
    header_bytes=64 * 1024,
    json_bytes=64 * 1024,
    tensors=256,
    items=10_000,
    depth=8,
    allocation_bytes=MIB,
)
WIDTHS = {**{name: bits / 8 for name, bits in BITS.items()}, "C128": 16.0}
# Elements that are looked up one by one.
FEW = 64

Target = Callable[[bytes], bool]


def parsed(module: ModuleType, raw: bytes, limits: ParseLimits = SMALL) -> Contents | None:
    """What a parser says of ``raw``, once it has been checked; nothing where it is refused."""
    source = Bytes(raw, "file")
    try:
        contents: Contents = module.parse(source, limits)
    except BakeError:
        return None
    again = module.parse(Seekable(io.BytesIO(raw), "file"), limits)
    # As text where they differ: what is no number equals nothing.
    assert contents == again or repr(contents) == repr(again)
    assert 0 <= contents.header_bytes <= max(len(raw), 2 * limits.header_bytes)
    assert len(contents.by_name()) == len(contents.tensors) <= limits.tensors
    if contents.format in ("safetensors", "gguf"):
        check_names(contents.by_name(), limits.name_bytes)
    assert not any(leads_out(name) for name in contents.by_name())
    for tensor in contents.tensors:
        check_tensor(source, tensor, limits)
    return contents


def leads_out(name: str) -> bool:
    """Archives and state dicts may have folders in names, and no way out of them."""
    return bool({"", ".", ".."} & set(name.split("/"))) or bool(FORBIDDEN.search(name))


def refusal(module: ModuleType, source: Source, limits: ParseLimits = SMALL) -> str | Contents:
    """Contents, or what is said instead."""
    try:
        contents: Contents = module.parse(source, limits)
    except BakeError as error:
        return f"{type(error).__name__}: {error}"
    return contents


def check_tensor(source: Source, tensor: Tensor, limits: ParseLimits = SMALL) -> None:
    stored = tensor.deflated or tensor.nbytes
    assert 0 <= tensor.offset <= tensor.offset + stored <= source.size
    assert len(tensor.shape) <= limits.rank
    assert tensor.count >= 0
    if tensor.dtype in WIDTHS and tensor.strides is None:
        assert tensor.nbytes == tensor.count * WIDTHS[tensor.dtype]
    try:
        array = arrays.array(source, tensor, limits)
    except Unsupported:
        known = arrays.NUMPY if tensor.big_endian else {**arrays.NUMPY, **arrays.BLOCKS}
        assert tensor.dtype not in known
        return
    except Malformed:
        # Whether a stream inflates shows when it does; NumPy has no shape of [0, 2^80].
        assert tensor.deflated or not tensor.count
        return
    if tensor.dtype in arrays.BLOCKS:
        assert array.nbytes == tensor.nbytes
        return
    assert array.shape == tensor.shape
    assert array.nbytes <= max(len_of(tensor), tensor.nbytes)
    if 0 < array.size <= FEW and not tensor.deflated:
        check_numbers(source, tensor, array)


def len_of(tensor: Tensor) -> int:
    return int(tensor.count * WIDTHS[tensor.dtype])


def check_numbers(source: Source, tensor: Tensor, array: Any) -> None:
    """Each number, looked up where it stands in the file."""
    width = int(WIDTHS[tensor.dtype])
    strides = tensor.strides or tuple(
        int(np.prod(tensor.shape[i + 1 :], dtype=object)) for i in range(len(tensor.shape))
    )
    places = itertools.product(*map(range, tensor.shape))
    found = array.astype(array.dtype.newbyteorder(">")) if tensor.big_endian else array
    # All at once: a truth value of 2 alone would come as 1.
    told = found.tobytes()
    for number, place in enumerate(places):
        at = tensor.offset + width * sum(i * s for i, s in zip(place, strides, strict=True))
        assert source.read(at, at + width) == told[number * width : (number + 1) * width]


def of_safetensors(raw: bytes) -> bool:
    contents = parsed(safetensors, raw)
    if contents is None:
        return False
    with suppress(SafetensorError):
        theirs = {
            name: (one["dtype"], one["shape"], bytes(one["data"])) for name, one in deserialize(raw)
        }
        assert theirs == {
            one.name: (one.dtype, list(one.shape), raw[one.offset : one.offset + one.nbytes])
            for one in contents.tensors
        }
    return True


def of_gguf(raw: bytes) -> bool:
    view = memoryview(raw)
    for big in (False, True):
        told = hops.plain(view, 0, 80, big)
        assert told == hops.compiled(view, 0, 80, big)
        assert 0 <= told.at <= len(raw)
        assert 0 <= told.done <= 80
    contents = parsed(gguf, raw)
    if contents is None:
        return False
    for listed in contents.metadata.values():
        if isinstance(listed, Listed):
            assert 0 <= listed.begin <= listed.end <= contents.header_bytes
            # Whether truths are some shows when they are read.
            with suppress(Malformed if listed.kind == "bool" else Unsupported):
                assert len(gguf.values(Bytes(raw), listed)) == listed.count
    return True


def of_zip(raw: bytes) -> bool:
    source = Bytes(raw, "file")
    try:
        listed = members.members(source, SMALL)
    except BakeError:
        return False
    assert listed == members.members(Seekable(io.BytesIO(raw), "file"), SMALL)
    assert list(listed) == members.names(source, SMALL) or set(listed) == set(
        members.names(source, SMALL)
    )
    end = 0
    for member in listed.values():
        assert end <= member.offset <= member.offset + member.stored <= len(raw)
        end = member.offset + member.stored
        with suppress(Malformed):
            assert len(members.inflated(source, member, SMALL, MIB)) == member.size
    as_zipfile(raw, source, listed)
    return True


def as_zipfile(raw: bytes, source: Source, listed: dict[str, members.Member]) -> None:
    """Python's reader sees the same members, and where the sums are right, the same bytes."""
    try:
        theirs = zipfile.ZipFile(io.BytesIO(raw))
    except Exception:  # what it raises of bad bytes is not said
        return
    assert sorted(theirs.namelist()) == sorted(listed)
    for name, member in listed.items():
        with suppress(
            zipfile.BadZipFile, NotImplementedError, zipfile.zlib.error, EOFError, Malformed
        ):
            assert theirs.read(name) == members.inflated(source, member, SMALL, MIB)  # fmt: skip


def of_pickle(raw: bytes) -> bool:
    try:
        read = pickled.read(raw, "file", SMALL)
        assert 2 < read.end <= len(raw)
        found = found_in(read.value, "file", SMALL)
    except BakeError:
        return False
    assert len(found.tensors) <= SMALL.tensors
    return True


def of_pth(raw: bytes) -> bool:
    return parsed(pth, raw) is not None


def of_npz(raw: bytes) -> bool:
    contents = parsed(npz, raw)
    if contents is None:
        return False
    try:
        theirs = np.load(io.BytesIO(raw), allow_pickle=False)
    except Exception:  # what NumPy raises of bad bytes is not said
        return True
    for tensor in contents.tensors:
        with suppress(Malformed, Unsupported):
            ours = arrays.array(Bytes(raw, "file"), tensor, SMALL)
            try:
                other = theirs[tensor.name] if hasattr(theirs, "files") else theirs
            except Exception:  # the same
                continue
            assert ours.shape == other.shape
            assert ours.tobytes() == other.astype(other.dtype.newbyteorder("<")).tobytes()
    return True


def of_tokenizer(raw: bytes) -> bool:
    """A GGUF, and the folder it would become."""
    source = Bytes(raw, "file")
    try:
        planned = families.plan(gguf.parse(source, SMALL), source)
    except BakeError:
        return False
    assert planned.files["config.json"].startswith(b"{")
    check_names([output.name for output in planned.outputs])
    return True


TARGETS: dict[str, Target] = {
    "safetensors": of_safetensors,
    "gguf": of_gguf,
    "zip": of_zip,
    "pickle": of_pickle,
    "pth": of_pth,
    "npz": of_npz,
    "gguf-tokenizer": of_tokenizer,
}
