"""What ``torch.save`` writes: the ZIP form, and the form before it (torch 1.5 and earlier).

Both are a pickle that says which tensors there are, as views of storages, and the storages' bytes.
The pickle is read by ``bake.checkpoint.pickled``, which runs nothing. Nothing of the storages is
read here but, in the older form, the eight bytes before each that count its elements.

``Tensor.nbytes`` of a view that is not contiguous is what it spans of its storage, from its first
element to its last: the bytes that must be read. A view may have more elements than that (strides
of 0, or overlapping): as many as ``ParseLimits.allocation_bytes`` holds, since whoever wants them
one after another must make room.

``header_bytes`` of the ZIP form, whose directory is at its end, is how many bytes are looked at.
"""

from collections.abc import Callable, Mapping
from typing import Any

from bake.checkpoint import pickled
from bake.checkpoint.contents import Contents, Tensor
from bake.checkpoint.limits import DEFAULT, ParseLimits
from bake.checkpoint.members import LOCAL, STORED, Member, inflated, members
from bake.checkpoint.naming import check_tensors
from bake.checkpoint.source import Source
from bake.checkpoint.state_dicts import Found, found_in
from bake.checkpoint.torch_names import Kind, Storage, View
from bake.errors import Malformed, Unsupported

# torch/serialization.py: MAGIC_NUMBER and PROTOCOL_VERSION.
MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
LEGACY = b"\x80\x02\x8a\x0a" + MAGIC.to_bytes(10, "little") + b"."
ZIP = b"PK"
# A tar says so here; torch wrote one before 0.1.10.
USTAR = slice(257, 262)
COUNT = 8
# How much of a file is read for a pickle whose end is not known; more, where that was too little.
WINDOW, GROWTH = 64 * 1024, 8
# Records such as "byteorder".
WORD = 64

# A storage's first byte, its size, and whether its numbers are big-endian.
Place = tuple[int, int, bool]


def parse(source: Source, limits: ParseLimits = DEFAULT) -> Contents:
    """The tensors of a state dict, and what else it says.

    ``metadata`` has the scalars, texts and short lists that lie beside tensors, by their names
    joined with dots, and ours: ``pth.form`` (``zip``, ``legacy``), ``pth.taken_from`` (the key of
    the one mapping that was taken as the state dict), ``pth.other_tensors`` (those in what was not
    taken), ``pth.left_out`` (values that are neither), ``pth.shared`` (lists of names over one
    storage), and of the ZIP form ``pth.version`` and ``pth.byteorder``.

    :raises Malformed: it is damaged, passes the limits, or a tensor is not within its storage.
    :raises Unsupported: it is no state dict, or the state dict has more than tensors need.
    """
    head = bytes(source.read(0, min(512, source.size)))
    if head.startswith(ZIP):
        return _zip(source, limits)
    if head.startswith(LEGACY):
        return _legacy(source, limits)
    if head[USTAR] == b"ustar":
        raise Unsupported(
            f"{source.name}: the tar form that torch wrote before 0.1.10",
            "load and save it with any later torch",
        )
    if head.startswith(b"\x80"):
        raise Unsupported(f"{source.name}: a pickle, and none that torch.save wrote")
    raise Malformed(source.name, "neither of torch's forms", 0)


def _zip(source: Source, limits: ParseLimits) -> Contents:
    listed = members(source, limits)
    prefix = _prefix(source, listed)
    records = {
        key: _record(source, listed.get(prefix + key), limits) for key in ("version", "byteorder")
    }
    order = records["byteorder"] or "little"
    if order not in ("little", "big"):
        raise Malformed(source.name, f"byteorder is {order!r}")
    member = listed[prefix + "data.pkl"]
    raw = inflated(source, member, limits, limits.header_bytes)
    read = pickled.read(raw, source.name, limits, member.offset)
    if read.end != member.offset + member.size:
        raise Malformed(source.name, "data.pkl goes on after its pickle", read.end)
    found = found_in(read.value, source.name, limits)

    def place(storage: Storage, size: int) -> Place:
        if storage.view is not None:
            raise Unsupported(f"{source.name}: a storage that is a view of another")
        held = listed.get(f"{prefix}data/{storage.key}")
        if held is None:
            raise Malformed(source.name, f"there is no storage {str(storage.key)[:80]!r}")
        if held.method != STORED:
            raise Unsupported(f"{source.name}: compressed storages ({held.name})")
        if held.size != size:
            detail = f"storage {held.name} has {held.size} bytes, not {size}"
            raise Malformed(source.name, detail, held.offset)
        return held.offset, held.size, order == "big"

    tensors = _tensors(source, found, place, limits)
    said = {"pth.form": "zip", "pth.version": records["version"], "pth.byteorder": order}
    heads = sum(LOCAL.size + len(name) for name in listed)
    looked = member.size + heads + source.size - _after(listed.values())
    return _contents(tensors, found, said, looked)


def _after(listed: Any) -> int:
    """Where the last member's bytes end."""
    return max((member.offset + member.stored for member in listed), default=0)


def _prefix(source: Source, listed: Mapping[str, Member]) -> str:
    """All records lie in one folder, named as the file was when it was written."""
    found = [name for name in listed if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(found) != 1:
        raise Malformed(source.name, f"a ZIP with {len(found)} folders that have a data.pkl")
    prefix = found[0].removesuffix("data.pkl")
    if prefix + "constants.pkl" in listed:
        raise Unsupported(f"{source.name}: a TorchScript program, no state dict")
    return prefix


def _record(source: Source, member: Member | None, limits: ParseLimits) -> str:
    """A short text; nothing where there is none, as in older files."""
    if member is None:
        return ""
    return inflated(source, member, limits, WORD).decode("ascii", "replace").strip()


def _legacy(source: Source, limits: ParseLimits) -> Contents:
    """Five pickles (a number, a version, the machine, the state dict, storages' keys), storages.

    Numbers are little-endian whatever the machine was: torch writes them so.
    """
    protocol, at, _ = _pickle(source, limits, len(LEGACY))
    if protocol != PROTOCOL:
        raise Malformed(source.name, "another protocol than torch's", len(LEGACY))
    _machine, at, _ = _pickle(source, limits, at)
    value, end, storages = _pickle(source, limits, at)
    found = found_in(value, source.name, limits)
    keys, end, _ = _pickle(source, limits, end)
    sizes: dict[Any, tuple[int, int]] = {}
    for storage in storages:
        _same(source, sizes, storage, limits)
    places = _places(source, keys, sizes, end)

    def place(storage: Storage, size: int) -> Place:
        if storage.view is not None:
            raise Unsupported(f"{source.name}: a storage that is a view of another")
        return places[storage.key]

    tensors = _tensors(source, found, place, limits)
    return _contents(tensors, found, {"pth.form": "legacy"}, min(end + COUNT, source.size))


def _pickle(source: Source, limits: ParseLimits, begin: int) -> pickled.Read:
    """The pickle at a byte, of unknown length: more of the file while it is cut short."""
    window = WINDOW
    while True:
        end = min(source.size, begin + window)
        whole = end == source.size or window >= limits.header_bytes
        try:
            return pickled.read(bytes(source.read(begin, end)), source.name, limits, begin)
        except pickled.CutShort:
            if whole:
                raise
        window = min(window * GROWTH, limits.header_bytes)


def _same(
    source: Source, sizes: dict[Any, tuple[int, int]], storage: Storage, limits: ParseLimits
) -> None:
    """Note a storage's elements and their size; it is told more than once."""
    told = (_elements(source, storage, limits), storage.kind.size)
    if sizes.setdefault(_key(source, storage), told) != told:
        raise Malformed(source.name, f"storage {storage.key[:80]!r} has two sizes")


def _places(
    source: Source, keys: Any, sizes: Mapping[Any, tuple[int, int]], at: int
) -> dict[Any, Place]:
    """Where each storage's bytes are: one after another, in the order of the keys."""
    if type(keys) is not list or {str, *map(type, keys)} != {str} or len(set(keys)) != len(keys):
        raise Malformed(source.name, "the list of storages is none", at)
    if set(keys) != set(sizes):
        raise Malformed(source.name, "storages listed are not those used", at)
    places: dict[Any, Place] = {}
    for key in keys:
        numel, size = sizes[key]
        if int.from_bytes(source.read(at, at + COUNT), "little", signed=True) != numel:
            raise Malformed(source.name, f"storage {key[:80]!r} has not {numel} elements", at)
        places[key] = (at + COUNT, numel * size, False)
        at += COUNT + numel * size
    if at != source.size:
        raise Malformed(source.name, f"the last storage ends at {at} of {source.size} bytes")
    return places


def _key(source: Source, storage: Storage) -> str:
    if type(storage.key) is not str:
        raise Malformed(source.name, "a storage's key is no text")
    return storage.key


def _elements(source: Source, storage: Storage, limits: ParseLimits) -> int:
    """How many elements a storage is said to have.

    :raises Malformed: that is no number, or passes the limits.
    """
    numel = storage.numel
    if type(numel) is not int or not 0 <= numel * storage.kind.size <= limits.tensor_bytes:
        # Not said: whatever it is, telling it may take as long as its writer likes.
        raise Malformed(source.name, "a storage of no proper number of elements")
    return numel


def _tensors(
    source: Source,
    found: Found,
    place: Callable[[Storage, int], Place],
    limits: ParseLimits,
) -> tuple[Tensor, ...]:
    """Every tensor, where its bytes are; each storage is looked for once."""
    places: dict[str, tuple[int, Place]] = {}
    made = []
    for name, view in found.tensors.items():
        storage = view.storage
        if type(storage) is not Storage:
            raise Malformed(source.name, f"{name} has no storage")
        size = _elements(source, storage, limits) * storage.kind.size
        told, at = places.get(_key(source, storage), (-1, (0, 0, False)))
        if told != size:
            at = place(storage, size)
            places[storage.key] = (size, at)
        made.append(_tensor(source, name, view, at, limits))
    check_tensors(found.tensors, source.name)
    return tuple(made)


def _tensor(source: Source, name: str, view: View, at: Place, limits: ParseLimits) -> Tensor:
    """A view whose every element is within its storage.

    :raises Malformed: it is not, or its numbers are none.
    """
    kind: Kind = view.kind or view.storage.kind
    offset, shape, strides = view.offset, view.shape, view.strides
    whole = type(shape) is tuple and type(strides) is tuple and type(offset) is int
    if not whole or len(shape) != len(strides) or len(shape) > limits.rank or offset < 0:
        raise Malformed(source.name, f"{name} has no proper shape")
    count, last, contiguous = 1, 0, True
    # From the last dimension, which is the fastest where numbers lie in a row.
    for length, stride in zip(shape[::-1], strides[::-1], strict=True):
        if type(length) is not int or type(stride) is not int or length < 0 or stride < 0:
            raise Malformed(source.name, f"{name} has no proper shape")
        if length > limits.dimension:
            raise Malformed(source.name, f"{name} has a dimension above {limits.dimension}")
        if length != 1:
            contiguous &= stride == count
            last += (length - 1) * stride
        count *= length
    size = kind.size
    first, room, big = at
    begin = offset * size
    spans = count * size if contiguous or not count else (last + 1) * size
    if begin + spans > room or count * size > limits.tensor_bytes:
        raise Malformed(source.name, f"{name} is not within its storage of {room} bytes", first)
    if count * size > spans and count * size > limits.allocation_bytes:
        raise Malformed(
            source.name, f"{name} makes {count * size} bytes of {spans}: more than is allowed"
        )
    kept = None if contiguous or not count else strides
    return Tensor(name, kind.dtype, shape, first + begin, spans, kept, big and size > 1)


def _contents(
    tensors: tuple[Tensor, ...], found: Found, said: Mapping[str, Any], header_bytes: int
) -> Contents:
    told = {
        **said,
        "pth.taken_from": found.taken_from,
        "pth.other_tensors": found.others,
        "pth.left_out": found.left_out,
        "pth.shared": _shared(found),
    }
    metadata = {**found.values, **{key: value for key, value in told.items() if value}}
    return Contents("pth", tensors, metadata, header_bytes)


def _shared(found: Found) -> list[list[str]]:
    """Names over one storage, of each that has several."""
    views = found.tensors
    if len({view.storage.key for view in views.values()}) == len(views):
        return []
    names: dict[str, list[str]] = {}
    for name, view in views.items():
        names.setdefault(view.storage.key, []).append(name)
    return [several for several in names.values() if len(several) > 1]
