"""Pickles and archives written by hand, as no honest writer would."""

import io
import zipfile
from pathlib import Path

from bake.checkpoint.source import Bytes

FIXTURES = Path(__file__).parent / "fixtures"


def fixture(name):
    """A file that torch wrote: see make_pth.py there."""
    return (FIXTURES / name).read_bytes()


def text(value):
    raw = value.encode()
    return b"X" + len(raw).to_bytes(4, "little") + raw


def whole(value):
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def lengths(*values):
    return b"(" + b"".join(map(whole, values)) + b"t"


def storage(key=None, numel=None, kind=b"FloatStorage"):
    key = text("0") if key is None else key
    numel = whole(24) if numel is None else numel
    return b"(" + text("storage") + b"ctorch\n" + kind + b"\n" + key + text("cpu") + numel + b"tQ"


def view(of=None, offset=None, shape=None, strides=None):
    """A tensor over the storage "0" of 24 float32, or what is given in place of its parts."""
    return b"".join(
        (
            b"ctorch._utils\n_rebuild_tensor_v2\n(",
            storage() if of is None else of,
            whole(0) if offset is None else offset,
            lengths(24) if shape is None else shape,
            lengths(1) if strides is None else strides,
            b"\x89ccollections\nOrderedDict\n)RtR",
        )
    )


def mapping(*items):
    """Text and values in turns."""
    pairs = zip(items[::2], items[1::2], strict=True)
    return b"}(" + b"".join(text(key) + value for key, value in pairs) + b"u"


def archive(pickle, storages=(("0", bytes(96)),), records=(("version", b"3\n"),)):
    """A .pth around the instructions of a pickle."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        file.writestr(zipfile.ZipInfo("a/data.pkl"), b"\x80\x02" + pickle + b".")
        for name, raw in records:
            file.writestr(zipfile.ZipInfo(f"a/{name}"), raw)
        for key, raw in storages:
            file.writestr(zipfile.ZipInfo(f"a/data/{key}"), raw)
    return Bytes(made.getvalue())
