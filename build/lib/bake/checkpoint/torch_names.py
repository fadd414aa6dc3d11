"""The names that pickles of tensors use, and what stands for each: nothing of torch, and no code of
the file's. A name that is not in ``NAMES`` does not exist.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from bake.errors import BakeError

# Characters of a module's name, and of a name in it.
NAME = 256
# Of any call that is known.
ARGUMENTS = 16


class Pairs(list[Any]):
    """A mapping: key, value, key, value, … as they were set."""


class Kind(msgspec.Struct, frozen=True):
    """A type of elements: safetensors' word and bytes each. ``untyped`` counts bytes."""

    dtype: str
    size: int
    untyped: bool = False


class Storage(msgspec.Struct, frozen=True, eq=False):
    """Elements that lie elsewhere, under ``key``; how many, as the pickle says."""

    kind: Kind
    key: Any
    numel: Any
    view: Any = None


class View(msgspec.Struct, frozen=True, eq=False):
    """A tensor: elements of a storage. Nothing of it is checked yet."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any
    kind: Any = None


class Name(msgspec.Struct, frozen=True):
    """What stands for an importable name. ``reduce`` is what calling it comes to; None: nothing."""

    text: str
    reduce: Callable[..., Any] | None = None
    kind: Kind | None = None


class Wrong(BakeError):
    """No pickle would say this; becomes Malformed, which knows where."""


class Unknown(BakeError):
    """Becomes Unsupported, which knows where."""


def reduced(callee: Any, args: Any) -> Any:
    if type(callee) is not Name or callee.reduce is None:
        raise Unknown("calls what is no function here")
    # Never many: passing them on takes time for each.
    if type(args) is not tuple or len(args) > ARGUMENTS:
        raise Wrong("arguments that are no tuple of a few")
    try:
        return callee.reduce(*args)
    except TypeError:
        raise Wrong(f"{callee.text} takes other arguments than {len(args)}") from None


def _mapping(items: Any = ()) -> Pairs:
    """An OrderedDict; Python 2 gives it a list of pairs."""
    if type(items) is Pairs:
        return Pairs(items)
    if type(items) not in (list, tuple):
        raise Wrong("a mapping of what are no pairs")
    made = Pairs()
    for pair in items:
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise Wrong("a mapping of what are no pairs")
        made += pair
    return made


def _bare(storage: Any, offset: Any, shape: Any, strides: Any) -> View:
    """``_rebuild_tensor``: torch before 0.4."""
    return View(storage, offset, shape, strides)


def _tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    _gradient: Any = None,
    _hooks: Any = None,
    metadata: Any = None,
) -> View:
    """``_rebuild_tensor_v2``: whether it wants a gradient, and hooks, are ignored."""
    _check_metadata(metadata)
    return View(storage, offset, shape, strides)


def _check_metadata(metadata: Any) -> None:
    """``{"neg": True}`` or ``{"conj": True}``: the elements stored are not those of the tensor."""
    if metadata is not None and not (type(metadata) is Pairs and not metadata):
        keys = metadata[::2] if type(metadata) is Pairs else []
        told = ", ".join(ascii(key[:NAME])[1:-1] for key in keys[:ARGUMENTS] if type(key) is str)
        raise Unknown(f"a view that is not as it is stored ({told or 'metadata'})")


def _typed(  # noqa: PLR0913 - as torch calls it
    storage: Any, offset: Any, shape: Any, strides: Any, _gradient: Any, _hooks: Any, kind: Any,
    metadata: Any = None,
) -> View:  # fmt: skip
    """``_rebuild_tensor_v3``: the storage is bytes, and the type stands beside."""
    if type(kind) is not Kind:
        raise Unknown("a tensor of an unknown type")
    _check_metadata(metadata)
    return View(storage, offset, shape, strides, kind)


def _parameter(data: Any, _gradient: Any = None, _hooks: Any = None, _state: Any = None) -> Any:
    """Its state holds attributes that somebody set, and no numbers of the tensor."""
    return data


def _subclass(function: Any, _kind: Any, args: Any, _state: Any = None) -> Any:
    """A tensor with attributes, which are ignored."""
    if function not in REBUILDERS:
        raise Unknown("rebuilds a tensor in an unknown way")
    return reduced(function, args)


def _encoded(text: Any, encoding: Any = "") -> bytes:
    """``_codecs.encode``: how bytes are written in protocol 2."""
    if type(text) is not str or encoding != "latin1":
        raise Unknown("an encoding other than of bytes")
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        raise Wrong("bytes above 255") from None


def _same(value: Any = ()) -> Any:
    return value


KINDS = {
    name: Kind(dtype, size)
    for name, dtype, size in (
        ("float64", "F64", 8),
        ("float32", "F32", 4),
        ("float16", "F16", 2),
        ("bfloat16", "BF16", 2),
        ("int64", "I64", 8),
        ("int32", "I32", 4),
        ("int16", "I16", 2),
        ("int8", "I8", 1),
        ("uint8", "U8", 1),
        ("uint16", "U16", 2),
        ("uint32", "U32", 4),
        ("uint64", "U64", 8),
        ("bool", "BOOL", 1),
        ("complex64", "C64", 8),
        ("complex128", "C128", 16),
        ("float8_e4m3fn", "F8_E4M3", 1),
        ("float8_e4m3fnuz", "F8_E4M3FNUZ", 1),
        ("float8_e5m2", "F8_E5M2", 1),
        ("float8_e5m2fnuz", "F8_E5M2FNUZ", 1),
        ("float8_e8m0fnu", "F8_E8M0", 1),
    )
}
STORAGES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}
BYTES = Kind("U8", 1, untyped=True)


def _table() -> dict[tuple[str, str], Name | Kind]:
    reduced: dict[tuple[str, str], Callable[..., Any] | None] = {
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_tensor"): _bare,
        ("torch._utils", "_rebuild_tensor_v3"): _typed,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
        ("torch._tensor", "_rebuild_from_type_v2"): _subclass,
        ("torch.nn.parameter", "Parameter"): None,
        ("torch", "Tensor"): None,
        ("torch", "Size"): _same,
        ("torch", "device"): _device,
        ("torch.serialization", "_get_layout"): _same,
        ("collections", "OrderedDict"): _mapping,
        ("collections", "Counter"): _mapping,
        ("_codecs", "encode"): _encoded,
    }
    made: dict[tuple[str, str], Name | Kind] = {
        key: Name(f"{key[0]}.{key[1]}", function) for key, function in reduced.items()
    }
    made |= {("torch", name): kind for name, kind in KINDS.items()}
    made |= {("torch", f"{name}Storage"): KINDS[of] for name, of in STORAGES.items()}
    made |= {
        ("torch.storage", name): BYTES
        for name in ("UntypedStorage", "_UntypedStorage", "TypedStorage", "_TypedStorage")
    }
    return made


def _device(*parts: Any) -> str:
    return ":".join(str(part)[:NAME] for part in parts if type(part) in (str, int))


NAMES = _table()
REBUILDERS = tuple(NAMES["torch._utils", f"_rebuild_tensor{v}"] for v in ("", "_v2", "_v3"))

QUANTIZED = "is of torch's own quantized tensors, which are not read"
REFUSED = {
    "_rebuild_qtensor": QUANTIZED,
    "_rebuild_sparse_tensor": "is a sparse tensor, which is not read",
    "_rebuild_nested_tensor": "is a nested tensor, which is not read",
    "_rebuild_meta_tensor_no_storage": "is a tensor without numbers",
    "_rebuild_wrapper_subclass": "is a tensor of another library",
    "float4_e2m1fn_x2": "is of 4-bit numbers, which are not read from .pth",
    **dict.fromkeys(
        ("QInt8Storage", "QInt32Storage", "QUInt8Storage", "QUInt4x2Storage", "QUInt2x4Storage"),
        QUANTIZED,
    ),
}
