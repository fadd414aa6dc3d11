"""Files for hypothesis: built as their formats say, with lies in their numbers, then damaged.

A third is sound, so that what comes after the first check is reached too.
"""

from typing import Any

from hypothesis import strategies as st

from bake.checkpoint.ggml_types import TYPES
from bake.checkpoint.gguf_metadata import KINDS
from bake.checkpoint.torch_names import NAMES as TORCH_NAMES
from bake.checkpoint.torch_names import STORAGES
from blob.dtypes import BITS
from tests.bake.checkpoint import handmade

# Where widths end, signs turn and products wrap.
EDGES = (
    *(0, 1, 2, 3, 8, 31, 64, 127, 128, 255, 256, 4095, 0xFFFF, 0x10000, 2**30, 2**31 - 1, 2**31),
    *(2**32 - 1, 2**32, 2**40, 2**40 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1),
)
BY_BITS = {
    bits: st.sampled_from([edge for edge in EDGES if edge < 2**bits]) for bits in (16, 32, 64)
}
SELDOM = st.integers(0, 7).map(lambda number: number == 7)
LIES = st.sampled_from((0, 0, 0, 1, 1, 2, 4))
FLAG = st.booleans()
NAMES = st.sampled_from(
    ["a", "b.weight", "blk.0.attn_q.weight", "model.embed", "é", "\U0001f600", "x" * 40]
)
BAD_NAMES = st.sampled_from(
    ["", "..", "../../etc/x", "/abs", "a\\b", "\0", "a\0b", "y" * 600, "__metadata__", ".hidden"]
)
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


class Teller:
    """Tells what is true, but for as many lies as were drawn."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw, self.left = draw, draw(LIES)

    def __call__(self, value: int, bits: int = 64) -> int:
        if self.lies():
            near = st.sampled_from([value + 1, max(value - 1, 0)]).map(lambda one: one % 2**bits)
            return self.draw(BY_BITS[bits] | near)
        return value

    def lies(self) -> bool:
        if self.left and self.draw(SELDOM):
            self.left -= 1
            return True
        return False

    def names(self, most: int) -> list[str]:
        """Different, as a rule."""
        found = self.draw(st.lists(NAMES, max_size=most, unique=True))
        if self.lies():
            found.append(self.draw(BAD_NAMES | NAMES))
        return found


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """``whole``, and up to four places of it overwritten, taken out, doubled or cut off."""
    raw = bytearray(draw(whole))
    for _ in range(draw(LIES)):
        at = draw(st.integers(0, len(raw)))
        some = draw(st.binary(min_size=1, max_size=8))
        match draw(st.integers(0, 4)):
            case 0:
                raw[at : at + len(some)] = some
            case 1:
                raw[at:at] = some
            case 2:
                del raw[at : at + len(some)]
            case 3:
                raw[at:at] = raw[at : at + draw(st.integers(1, 64))]
            case 4:
                del raw[at:]
    return bytes(raw)


JSON = st.recursive(
    st.none() | FLAG | st.integers(-(2**70), 2**70) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=4,
)


@st.composite
def safetensors(draw: st.DrawFn) -> bytes:
    tell = Teller(draw)
    types = st.sampled_from([*BITS, "Q4_K"] if tell.lies() else list(BITS))
    tensors = [(name, draw(types), draw(SHAPES)) for name in tell.names(3)]
    texts: Any = draw(
        st.none() | st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2)
    )
    told = draw(JSON) if tell.lies() else texts
    space = draw(st.sampled_from(["", "", " ", "\n\t"]))
    raw = handmade.safetensors(tensors, told, tell, ascii_only=draw(FLAG), space=space)
    if tell.lies():
        return raw.replace(b'"dtype"', b'"dtyp\\u0065"', 1)
    return raw


def _gguf_values(kind: str, depth: int) -> st.SearchStrategy[Any]:
    if kind == "text":
        return st.text(max_size=6) | st.binary(max_size=4)
    if kind == "list":
        inner = [one.name for one in KINDS.values() if depth or one.name != "list"]
        return st.sampled_from(inner).flatmap(
            lambda name: st.tuples(
                st.just(name), st.lists(_gguf_values(name, depth - 1), max_size=3)
            )
        )
    if kind == "bool":
        return st.sampled_from([0, 1, 1, 2])
    if kind in ("f32", "f64"):
        return st.floats(width=32)
    bits, signed = int(kind[1:]), kind[0] == "i"
    least = -(2 ** (bits - 1)) if signed else 0
    return st.integers(least, least + 2**bits - 1)


GGUF_VALUES = {kind.name: _gguf_values(kind.name, 2) for kind in KINDS.values()}
MANY_TEXTS = st.integers(60, 70).map(
    lambda count: ("text", [b"abc"[i % 4 :] for i in range(count)])
)


@st.composite
def gguf(draw: st.DrawFn) -> bytes:
    tell = Teller(draw)
    kinds = st.sampled_from(list(GGUF_VALUES))
    keys = []
    for name in tell.names(3):
        kind = draw(kinds)
        keys.append((name, kind, draw(GGUF_VALUES[kind])))
    if draw(FLAG):
        keys.append(("tokens", "list", draw(MANY_TEXTS)))
    alignment = draw(st.sampled_from([1, 8, 32, 64]))
    keys.append(("general.alignment", "u32", tell(alignment, 32)))
    tensors = []
    for name in tell.names(3):
        kind = TYPES[draw(st.sampled_from(list(TYPES)))]
        first, *rest = draw(st.lists(st.integers(0, 2), min_size=1, max_size=4))
        tensors.append((name, kind.name, (first * kind.values, *rest)))
    order, version = draw(st.sampled_from([("<", 3), ("<", 2), (">", 3)]))
    return handmade.gguf(keys, tensors, tell, order=order, version=version, alignment=alignment)


@st.composite
def views(draw: st.DrawFn, tell: Teller) -> handmade.View:
    """A tensor that is within its storage, in any order of its dimensions."""
    shape = draw(SHAPES)
    order = draw(st.permutations(range(len(shape))))
    strides, step = [0] * len(shape), 1
    for i in order:
        strides[i], step = step, step * max(shape[i], 1)
    if shape and draw(SELDOM):
        strides[0] = 0
    offset = draw(st.integers(0, 2))
    storage, key = draw(st.sampled_from(list(STORAGES))), draw(st.sampled_from("01"))
    return handmade.View(storage, key, step + offset, offset, shape, tuple(strides))


SCALARS = st.none() | FLAG | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=3)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=2) | st.tuples(inner) | st.dictionaries(NAMES, inner, max_size=2)
    ),
    max_leaves=4,
)


@st.composite
def named(draw: st.DrawFn, tell: Teller) -> dict[Any, Any]:
    found: dict[Any, Any] = {name: draw(views(tell)) for name in tell.names(3)}
    # Views of one storage agree on it.
    firsts: dict[str, handmade.View] = {}
    for name, view in found.items():
        first = firsts.setdefault(view.key, view)
        if first is not view:
            found[name] = first._replace(shape=(), strides=(), offset=0)
    if draw(FLAG):
        found["epoch"] = draw(VALUES)
    return {"state_dict": {"w": 1}, **found} if tell.lies() else found


GLOBALS = [f"c{module}\n{name}\n".encode() for module, name in TORCH_NAMES]
HOSTILE = [b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch\nload\n", b"c__builtin__\ngetattr\n"]
BARE = b"()]}tsaueNRbQ.0210dl\x85\x86\x87\x88\x89\x93\x94\x81\x8f\x90\x91\x92"
OPCODES = [
    *(bytes([code]) for code in BARE),
    *(b"K\0", b"K\1", b"M\xff\xff", b"J\xff\xff\xff\xff", b"G" + bytes(8)),
    *(b"\x8a\1\x80", b"\x8a\0", b"X\1\0\0\0a", b"U\1a", b"\x8c\7storage", b"C\1a"),
    *(b"X\xff\xff\xff\xff", b"B\xff\xff\xff\x7f", b"\x8d" + b"\xff" * 8),
    *(b"q\0", b"q\1", b"q\xff", b"r\0\0\0\x80", b"h\0", b"h\1", b"j\xff\xff\xff\xff"),
    *(b"p0\n", b"g0\n", b"\x95" + bytes(8), b"I01\n", b"Vx\n", b"S'x'\n", b"\x82\1"),
    *GLOBALS,
    *HOSTILE,
]


@st.composite
def pickles(draw: st.DrawFn) -> bytes:
    """A state dict, or instructions in any order."""
    if draw(FLAG):
        tell = Teller(draw)
        return handmade.state_dict(draw(named(tell)), tell, legacy=draw(FLAG))
    return (
        handmade.PROTOCOL + b"".join(draw(st.lists(st.sampled_from(OPCODES), max_size=24))) + b"."
    )


def _options(draw: st.DrawFn) -> dict[str, Any]:
    align = draw(st.sampled_from([1, 1, 64]))
    return {"described": draw(FLAG), "wide": draw(FLAG), "align": align}


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    tell = Teller(draw)
    contents = st.binary(max_size=8) | st.just(b"a" * 300)
    listed = [(name, draw(contents)) for name in tell.names(3)]
    return handmade.archive(listed, tell, deflate=draw(FLAG), **_options(draw))


@st.composite
def pths(draw: st.DrawFn) -> bytes:
    tell = Teller(draw)
    held = draw(named(tell))
    if draw(FLAG):
        return handmade.legacy(held, tell)
    byteorder = draw(st.sampled_from(["little", "big", ""]))
    return handmade.pth(held, tell, byteorder=byteorder, **_options(draw))


DESCRS = {
    "|b1": 1, "|i1": 1, "<i2": 2, ">i2": 2, "<f4": 4, ">f8": 8, "<c8": 8, ">c16": 16, "|V2": 2,
    "<u8": 8, "=f2": 2,
}  # fmt: skip
BAD_DESCRS = {"|O": 8, "<U3": 12, "|S2": 2, "|V1": 1, "<M8[ns]": 8, "<f16": 16, "": 1}


@st.composite
def npys(draw: st.DrawFn, tell: Teller) -> bytes:
    known = {**DESCRS, **BAD_DESCRS} if tell.lies() else DESCRS
    descr = draw(st.sampled_from(list(known)))
    more = {"fortran": draw(FLAG), "version": draw(st.sampled_from([1, 2, 3]))}
    return handmade.npy(descr, draw(SHAPES), known[descr], tell, **more)


@st.composite
def npzs(draw: st.DrawFn) -> bytes:
    tell = Teller(draw)
    if draw(SELDOM):
        return draw(npys(tell))
    listed = [(f"{name}.npy", draw(npys(tell))) for name in tell.names(3)]
    return handmade.archive(listed, tell, deflate=draw(FLAG), **_options(draw))


STRATEGIES = {
    "safetensors": damaged(safetensors()),
    "gguf": damaged(gguf()),
    "zip": damaged(archives()),
    "pickle": damaged(pickles()),
    "pth": damaged(pths()),
    "npz": damaged(npzs()),
}
