"""Checkpoints written by hand, byte by byte: small, sound, and wrong in any number that is wanted.

Every number of a file passes ``tell(value, bits)`` before it is written: ``honest`` writes what is
true; what a fuzzer or ``strategies`` gives instead is a lie of at most so many bits. No library
that reads or writes these formats has a part in it.
"""

import json
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

from bake.checkpoint.ggml_types import TYPES
from bake.checkpoint.gguf_metadata import KINDS
from bake.checkpoint.torch_names import KINDS as TORCH_KINDS
from bake.checkpoint.torch_names import STORAGES
from blob.dtypes import BITS

Tell = Callable[[int, int], int]
NUMBER_OF_KIND = {kind.name: number for number, kind in KINDS.items()}
NUMBER_OF_TYPE = {kind.name: number for number, kind in TYPES.items()}


def honest(value: int, _bits: int = 64) -> int:
    return value


def numbers(count: int) -> bytes:
    """Bytes that differ from each other, and are no NaN in any type."""
    return bytes(i % 61 + 1 for i in range(count))


# safetensors


def safetensors(
    tensors: Sequence[tuple[str, str, Sequence[int]]],
    metadata: Mapping[str, Any] | None = None,
    tell: Tell = honest,
    *,
    ascii_only: bool = True,
    space: str = "",
) -> bytes:
    items, at = [], 0
    if metadata is not None:
        items.append(f'"__metadata__":{json.dumps(metadata, separators=(",", ":"))}')
    for name, dtype, shape in tensors:
        begin, at = at, at + prod(shape) * BITS.get(dtype, 8) // 8
        said = json.dumps([tell(one, 64) for one in shape], separators=(",", ":"))
        offsets = f"[{tell(begin, 64)},{tell(at, 64)}]"
        key = json.dumps(name, ensure_ascii=ascii_only)
        items.append(f'{key}:{space}{{"dtype":"{dtype}","shape":{said},"data_offsets":{offsets}}}')
    text = ("{" + f",{space}".join(items) + "}").encode(errors="replace")
    return struct.pack("<Q", tell(len(text), 64)) + text + numbers(at)


# GGUF


def _text(text: str | bytes, order: str, tell: Tell) -> bytes:
    raw = text.encode(errors="replace") if isinstance(text, str) else text
    return struct.pack(order + "Q", tell(len(raw), 64)) + raw


def gguf_value(kind: str, value: Any, order: str = "<", tell: Tell = honest) -> bytes:
    """``kind`` of a list is ``list`` with ``value`` a pair of its elements' kind and them."""
    if kind == "text":
        return _text(value, order, tell)
    if kind == "list":
        inner, items = value
        head = struct.pack(order + "IQ", tell(NUMBER_OF_KIND[inner], 32), tell(len(items), 64))
        return head + b"".join(gguf_value(inner, item, order, tell) for item in items)
    return struct.pack(order + KINDS[NUMBER_OF_KIND[kind]].form, value)


def gguf(
    keys: Sequence[tuple[str, str, Any]],
    tensors: Sequence[tuple[str, str, Sequence[int]]],
    tell: Tell = honest,
    *,
    order: str = "<",
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """``tensors`` are name, type and shape with the fastest dimension first."""
    made = b"GGUF" + struct.pack(
        order + "IQQ", tell(version, 32), tell(len(tensors), 64), tell(len(keys), 64)
    )
    for key, kind, value in keys:
        made += _text(key, order, tell) + struct.pack(order + "I", tell(NUMBER_OF_KIND[kind], 32))
        made += gguf_value(kind, value, order, tell)
    at = 0
    for name, dtype, shape in tensors:
        kind = TYPES[NUMBER_OF_TYPE[dtype]]
        made += _text(name, order, tell) + struct.pack(order + "I", tell(len(shape), 32))
        made += b"".join(struct.pack(order + "Q", tell(one, 64)) for one in shape)
        made += struct.pack(order + "IQ", tell(NUMBER_OF_TYPE[dtype], 32), tell(at, 64))
        at += -(-prod(shape) // kind.values * kind.size // alignment) * alignment
    return made + bytes(-len(made) % alignment) + numbers(at)


# Pickles and what torch.save makes of them

PROTOCOL = b"\x80\x02"


def pickled_text(text: str) -> bytes:
    raw = text.encode(errors="replace")
    return b"X" + struct.pack("<I", len(raw)) + raw


def pickled_number(number: int) -> bytes:
    if 0 <= number < 256:
        return b"K" + bytes([number])
    if -(2**31) <= number < 2**31:
        return b"J" + struct.pack("<i", number)
    size = number.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + number.to_bytes(size, "little", signed=True)


def pickled(value: Any) -> bytes:
    """Opcodes of a value; bytes are opcodes already."""
    if isinstance(value, bytes):
        return value
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return pickled_number(value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return pickled_text(value)
    if isinstance(value, tuple):
        return b"(" + b"".join(map(pickled, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(pickled, value)) + b"e"
    items = b"".join(pickled(key) + pickled(item) for key, item in value.items())
    return b"}(" + items + b"u"


def called(module: str, name: str, *args: Any) -> bytes:
    """A GLOBAL and its REDUCE."""
    return f"c{module}\n{name}\n".encode() + pickled(args) + b"R"


class View(NamedTuple):
    """A tensor of a state dict: of which storage, and how it lies in it (in elements)."""

    storage: str
    key: str
    numel: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


def pickled_view(view: View, tell: Tell = honest, *, legacy: bool = False) -> bytes:
    told = [tell(one, 64) for one in (view.numel, view.offset, *view.shape, *view.strides)]
    numel, offset, sizes, rank = told[0], told[1], told[2:], len(view.shape)
    kind = f"ctorch\n{view.storage}Storage\n".encode()
    pid = ("storage", kind, view.key, "cpu", numel, *((None,) if legacy else ()))
    shape, strides = tuple(sizes[:rank]), tuple(sizes[rank:])
    hooks = called("collections", "OrderedDict")
    return called(
        "torch._utils", "_rebuild_tensor_v2",
        pickled(pid) + b"Q", offset, shape, strides, False, hooks,
    )  # fmt: skip


def storages(views: Sequence[View]) -> dict[str, bytes]:
    """The bytes of all storages by key."""
    sizes = {view.key: view.numel * TORCH_KINDS[STORAGES[view.storage]].size for view in views}
    return {key: numbers(size) for key, size in sizes.items()}


def state_dict(named: Mapping[str, Any], tell: Tell = honest, *, legacy: bool = False) -> bytes:
    """The pickle of a mapping of views and other values."""
    made = {
        name: pickled_view(value, tell, legacy=legacy) if isinstance(value, View) else value
        for name, value in named.items()
    }
    return PROTOCOL + pickled(made) + b"."


def pth(
    named: Mapping[str, Any], tell: Tell = honest, *, byteorder: str = "little", **options: Any
) -> bytes:
    views = [value for value in named.values() if isinstance(value, View)]
    members = [("archive/data.pkl", state_dict(named, tell))]
    members += [("archive/byteorder", byteorder.encode())] if byteorder else []
    members += [(f"archive/data/{key}", raw) for key, raw in storages(views).items()]
    return archive([*members, ("archive/version", b"3\n")], tell, **options)


def legacy(named: Mapping[str, Any], tell: Tell = honest) -> bytes:
    views = [value for value in named.values() if isinstance(value, View)]
    held = storages(views)
    magic = b"\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    made = b"".join(PROTOCOL + one + b"." for one in (magic, pickled(1001), pickled(machine)))
    made += state_dict(named, tell, legacy=True) + PROTOCOL + pickled(list(held)) + b"."
    counts = {view.key: view.numel for view in views}
    for key, raw in held.items():
        made += struct.pack("<Q", tell(counts[key], 64)) + raw
    return made


# ZIP and NPZ


def archive(
    members: Sequence[tuple[str, bytes]],
    tell: Tell = honest,
    *,
    deflate: bool = False,
    described: bool = False,
    wide: bool = False,
    align: int = 1,
) -> bytes:
    """A ZIP. ``described`` has sizes after each member, ``wide`` in 64-bit fields; the bytes of a
    stored member begin at a multiple of ``align``."""
    body, directory = b"", b""
    for name, raw in members:
        header, named = len(body), name.encode(errors="replace")
        data = zlib.compress(raw, wbits=-15) if deflate else raw
        method, flags = 8 * deflate, 8 * described | 0x800 * (not name.isascii())
        sizes = [tell(len(data), 32), tell(len(raw), 32)]
        extra = struct.pack("<2H2Q", 1, 16, *reversed(sizes)) if wide and not described else b""
        pad = -(header + 30 + len(named) + len(extra)) % align
        extra += (
            struct.pack("<2H", 0x4246, pad + align - 4) + bytes(pad + align - 4) if pad else b""
        )
        said = [0, 0] if described else [2**32 - 1] * 2 if wide else sizes
        crc = zlib.crc32(raw)
        body += struct.pack(
            "<4s5H3I2H", b"PK\3\4", 20, flags, tell(method, 16), 0, 0, 0 if described else crc,
            *said, tell(len(named), 16), tell(len(extra), 16),
        ) + named + extra + data  # fmt: skip
        if described:
            body += b"PK\7\x08" + struct.pack("<3I", crc, len(data), len(raw))
        central = struct.pack("<2H3Q", 1, 24, len(raw), len(data), header) if wide else b""
        said = [2**32 - 1] * 3 if wide else [tell(len(data), 32), tell(len(raw), 32), header]
        directory += struct.pack(
            "<4s6H3I5H2I", b"PK\1\2", 20, 20, flags, method, 0, 0, tell(crc, 32),
            *said[:2], len(named), len(central), 0, 0, 0, 0, tell(said[2], 32),
        ) + named + central  # fmt: skip
    begin, end = len(body), len(body) + len(directory)
    count = tell(len(members), 16)
    ends = b""
    if wide:
        ends = struct.pack(
            "<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count,
            tell(len(directory), 64), tell(begin, 64),
        ) + struct.pack("<4sIQI", b"PK\6\7", 0, tell(end, 64), 1)  # fmt: skip
    ends += struct.pack(
        "<4s4H2IH", b"PK\5\6", 0, 0, count, count, tell(len(directory), 32), tell(begin, 32),
        tell(0, 16),
    )  # fmt: skip
    return body + directory + ends


def npy(
    descr: str,
    shape: Sequence[int],
    size: int,
    tell: Tell = honest,
    *,
    fortran: bool = False,
    version: int = 1,
) -> bytes:
    """``size`` is that of a number."""
    told = "".join(f"{tell(one, 64)}, " for one in shape)
    text = f"{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': ({told}), }}"
    form = "<H" if version == 1 else "<I"
    before = 8 + struct.calcsize(form)
    text += " " * (-(before + len(text) + 1) % 64) + "\n"
    head = b"\x93NUMPY" + bytes([version, 0]) + struct.pack(form, tell(len(text), 16))
    return head + text.encode() + numbers(prod(shape) * size)


# One of each, for seeds and for bits to flip

VIEWS = {
    "a.weight": View("Float", "0", 6, 0, (2, 3), (3, 1)),
    "a.turned": View("Float", "0", 6, 0, (3, 2), (1, 3)),
    "b": View("BFloat16", "1", 4, 1, (3,), (1,)),
    "step": 7,
}
LISTS = [
    ("general.architecture", "text", "llama"),
    ("general.alignment", "u32", 32),
    ("llama.rope.freq_base", "f32", 10000.0),
    ("is", "bool", True),
    ("few", "list", ("i16", [1, -2, 3])),
    ("tokens", "list", ("text", [f"t{i}" for i in range(70)])),
    ("nested", "list", ("list", [("u8", [1, 2]), ("text", ["a"])])),
]


def sound() -> dict[str, dict[str, bytes]]:
    """Small sound files by format."""
    plain = [("a.weight", "F32", (2, 3)), ("b", "BF16", (3,)), ("c", "U8", (0,))]
    blocks = [("t", "F32", (3, 2)), ("q", "Q8_0", (32, 2)), ("k", "Q4_K", (256,))]
    arrays = [
        ("a.npy", npy("<f4", (2, 3), 4)),
        ("b.npy", npy(">i2", (3, 2), 2, fortran=True)),
        ("c.npy", npy("|V2", (), 2, version=2)),
    ]
    return {
        "safetensors": {
            "plain": safetensors(plain, {"format": "pt"}),
            "spelled": safetensors(plain, None, space=" ", ascii_only=False),
            "empty": safetensors([]),
        },
        "gguf": {
            "v3": gguf(LISTS, blocks),
            "v2": gguf(LISTS[:3], blocks, version=2),
            "big": gguf(LISTS, blocks[:1], order=">"),
            "empty": gguf([], []),
        },
        "zip": {
            "stored": archive([("a", b"abc"), ("b/c", b"")]),
            "deflated": archive([("a", b"a" * 99)], deflate=True),
            "described": archive([("a", b"abc")], described=True),
            "wide": archive([("a", b"abc"), ("é", b"x")], wide=True),
            "aligned": archive([("a", b"abc"), ("b", b"x")], align=64),
        },
        "pickle": {
            "state": state_dict(VIEWS),
            "legacy": state_dict(VIEWS, legacy=True),
            "values": PROTOCOL + pickled({"a": [1, 2**40, -1], "b": (1.5, None, True, "x")}) + b".",
            "memo": PROTOCOL + b"}q\0(X\1\0\0\0aq\1K\1X\1\0\0\0bh\1u.",
        },
        "pth": {
            "zip": pth(VIEWS, align=64),
            "big": pth(VIEWS, byteorder="big"),
            "nested": pth({"w": VIEWS["a.weight"], "more": {"x": 1}}, described=True),
            "legacy": legacy(VIEWS),
        },
        "npz": {
            "stored": archive(arrays),
            "deflated": archive(arrays, deflate=True),
            "alone": npy("<f8", (2, 2), 8),
        },
        "gguf-tokenizer": {"bytes": llama("gpt2"), "characters": llama("llama")},
    }  # fmt: skip


def llama(kind: str) -> bytes:
    """A whole model of one layer whose vectors have two numbers, for either kind of tokenizer."""
    tokens = ["<s>", "</s>", "<unk>", "a", "b", "ab"]
    keys: list[tuple[str, str, Any]] = [
        ("general.architecture", "text", "llama"),
        ("llama.block_count", "u32", 1),
        ("llama.context_length", "u32", 8),
        ("llama.embedding_length", "u32", 2),
        ("llama.feed_forward_length", "u32", 2),
        ("llama.attention.head_count", "u32", 1),
        ("llama.attention.layer_norm_rms_epsilon", "f32", 1e-5),
        ("tokenizer.ggml.model", "text", kind),
        ("tokenizer.ggml.tokens", "list", ("text", tokens)),
        ("tokenizer.ggml.token_type", "list", ("i32", [3, 3, 2, 1, 1, 1])),
        ("tokenizer.ggml.bos_token_id", "u32", 0),
        ("tokenizer.ggml.eos_token_id", "u32", 1),
        ("tokenizer.chat_template", "text", "{{ messages }}"),
    ]
    if kind == "llama":
        keys += [("tokenizer.ggml.scores", "list", ("f32", [0.0, 0.0, 0.0, -1.0, -2.0, -3.0]))]
    else:
        keys += [("tokenizer.ggml.merges", "list", ("text", ["a b"]))]
        keys += [("tokenizer.ggml.pre", "text", "llama-bpe")]
    matrices = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    tensors = [("token_embd.weight", "F32", (2, 6)), ("output_norm.weight", "F32", (2,))]
    tensors += [(f"blk.0.{name}.weight", "F16", (2, 2)) for name in matrices]
    tensors += [(f"blk.0.{name}.weight", "F32", (2,)) for name in ("attn_norm", "ffn_norm")]
    return gguf(keys, tensors)
