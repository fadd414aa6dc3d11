"""GGUF by its header: what gguf-py wrote is read as it reads it, anything else refused."""

import io
import random
import struct
import sys
from math import prod

import gguf as peer
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

from bake.checkpoint import gguf_metadata, hops
from bake.checkpoint.contents import Contents, Listed
from bake.checkpoint.ggml_types import BY_NAME, TYPES
from bake.checkpoint.gguf import parse, values
from bake.checkpoint.limits import ParseLimits
from bake.checkpoint.source import Bytes, Seekable
from bake.errors import Malformed, Unsupported

U32, I32, BOOL, TEXT, LIST, U64 = 4, 5, 7, 8, 9, 10


def text(raw):
    return struct.pack("<Q", len(raw)) + raw


def key(name, kind, value):
    return text(name.encode()) + struct.pack("<I", kind) + value


def u32(name, value):
    return key(name, U32, struct.pack("<I", value))


def listed(name, kind, count, raw):
    return key(name, LIST, struct.pack("<IQ", kind, count) + raw)


def info(name, shape, kind=0, offset=0):
    shape = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name.encode()) + shape + struct.pack("<IQ", kind, offset)


def file_of(keys=(), infos=(), data=b"", version=3, alignment=32):
    raw = struct.pack("<4sIQQ", b"GGUF", version, len(infos), len(keys))
    raw += b"".join(keys) + b"".join(infos)
    return raw + bytes(-len(raw) % alignment) + data


def sample(data=bytes(16)):
    keys = [
        key("general.architecture", TEXT, text(b"llama")),
        listed("tokenizer.ggml.tokens", TEXT, 3, text(b"a") + text(b"") + text("é".encode())),
        u32("llama.block_count", 1),
    ]
    last = len(data) // 4
    infos = [info("token_embd.weight", [32, 2], 8), info("output_norm.weight", [last], 0, 96)]
    return file_of(keys, infos, bytes(68) + bytes(28) + data)


def vocabulary(count):
    tokens = [b"%d " % number * (1 + number % 7) for number in range(count)]
    keys = [
        listed("tokenizer.ggml.tokens", TEXT, count, b"".join(map(text, tokens))),
        listed("tokenizer.ggml.scores", 6, count, np.arange(count, dtype="<f4").tobytes()),
        u32("last", 7),
    ]
    return file_of(keys), tokens


def refusal(raw, error=Malformed):
    with pytest.raises(error) as caught:
        parse(Bytes(raw))
    assert type(caught.value) is error
    return str(caught.value)


def test_a_file_is_read_with_its_tensors_and_keys():
    contents = parse(Bytes(sample()))
    first, second = contents.tensors
    start = first.offset
    assert start % 32 == 0
    assert (first.name, first.dtype, first.shape, first.nbytes) == (
        "token_embd.weight",
        "Q8_0",
        (2, 32),
        68,
    )
    assert (second.shape, second.offset, second.nbytes) == ((4,), start + 96, 16)
    assert contents.metadata == {
        "general.architecture": "llama",
        "tokenizer.ggml.tokens": ["a", "", "é"],
        "llama.block_count": 1,
    }
    assert start - 32 < contents.header_bytes <= start


SCALARS = {
    "u8": (peer.GGUFValueType.UINT8, st.integers(0, 2**8 - 1)),
    "i8": (peer.GGUFValueType.INT8, st.integers(-(2**7), 2**7 - 1)),
    "u16": (peer.GGUFValueType.UINT16, st.integers(0, 2**16 - 1)),
    "i16": (peer.GGUFValueType.INT16, st.integers(-(2**15), 2**15 - 1)),
    "u32": (peer.GGUFValueType.UINT32, st.integers(0, 2**32 - 1)),
    "i32": (peer.GGUFValueType.INT32, st.integers(-(2**31), 2**31 - 1)),
    "f32": (peer.GGUFValueType.FLOAT32, st.floats(width=32, allow_nan=False)),
    "bool": (peer.GGUFValueType.BOOL, st.booleans()),
    "text": (peer.GGUFValueType.STRING, st.text(max_size=20)),
    "u64": (peer.GGUFValueType.UINT64, st.integers(0, 2**64 - 1)),
    "i64": (peer.GGUFValueType.INT64, st.integers(-(2**63), 2**63 - 1)),
    "f64": (peer.GGUFValueType.FLOAT64, st.floats(allow_nan=False)),
}


@st.composite
def valued(draw):
    kind, numbers = SCALARS[draw(st.sampled_from(sorted(SCALARS)))]
    if draw(st.booleans()):
        return kind, None, draw(numbers)
    # Of nothing, gguf-py makes no list.
    return peer.GGUFValueType.ARRAY, kind, draw(st.lists(numbers, min_size=1, max_size=80))


@st.composite
def arrays(draw):
    dtype = draw(st.sampled_from([np.float32, np.float16, np.int8, np.int32, np.float64]))
    return np.zeros(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)), dtype)


@settings(max_examples=60)
@given(
    st.dictionaries(st.text(min_size=1, max_size=9), valued(), max_size=5),
    st.lists(arrays(), max_size=4),
    st.sampled_from(["<", ">"]),
    st.sampled_from([None, 8, 64]),
)
def test_it_agrees_with_gguf_py_on_all_that_gguf_py_writes(
    tmp_path_factory, keys, tensors, order, alignment
):
    path = tmp_path_factory.getbasetemp() / "written.gguf"
    endian = peer.GGUFEndian.BIG if order == ">" else peer.GGUFEndian.LITTLE
    writer = peer.GGUFWriter(path, "llama", endianess=endian)
    if alignment:
        writer.add_custom_alignment(alignment)
    for name, (kind, inner, value) in keys.items():
        writer.add_key_value(f"x.{name}", value, kind, inner)
    for number, array in enumerate(tensors):
        writer.add_tensor(f"t{number}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = Bytes(path.read_bytes())
    contents = parse(source)
    assert [
        (one.name, one.dtype, one.shape, one.offset, one.nbytes) for one in contents.tensors
    ] == told_by_peer(path)
    assert all(one.big_endian is (order == ">") for one in contents.tensors)
    for name, (kind, _, value) in keys.items():
        found = contents.metadata[f"x.{name}"]
        if isinstance(found, Listed):
            assert found.count == len(value)
            found = [
                one.decode() if isinstance(one, bytes) else one.item()
                for one in values(source, found)
            ]
        if kind in (peer.GGUFValueType.FLOAT32, peer.GGUFValueType.FLOAT64):
            assert type(found) is float
        assert found == value


def told_by_peer(path):
    return [
        (
            one.name,
            one.tensor_type.name,
            tuple(reversed(one.shape.tolist())),
            int(one.data_offset),
            int(one.n_bytes),
        )
        for one in peer.GGUFReader(path).tensors
    ]


def test_types_have_the_sizes_of_gguf_py():
    told = {kind.name: GGML_QUANT_SIZES[kind] for kind in GGMLQuantizationType}
    # ggml-common.h has two float16 in a block; gguf-py two float32, which is what they once were.
    assert told.pop("Q8_1") == (32, 40)
    assert BY_NAME["Q8_1"][1:] == (32, 36)
    ours = {one.name: (one.values, one.size) for one in TYPES.values()}
    assert told.items() <= ours.items()
    numbers = {kind.name: kind.value for kind in GGMLQuantizationType}
    assert all(TYPES[number].name == name for name, number in numbers.items())


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_every_type_is_read_with_the_bytes_of_its_blocks(name):
    number = next(number for number, one in TYPES.items() if one.name == name)
    kind = BY_NAME[name]
    raw = file_of((), [info("a", [2 * kind.values, 3], number)], bytes(6 * kind.size))
    (one,) = parse(Bytes(raw)).tensors
    assert (one.dtype, one.shape, one.nbytes) == (name, (3, 2 * kind.values), 6 * kind.size)
    if kind.values > 1:
        raw = file_of((), [info("a", [kind.values - 1, 2], number)], bytes(6 * kind.size))
        assert f"in blocks of {kind.values}" in refusal(raw)


def test_long_lists_are_told_and_read_when_asked_for():
    raw, tokens = vocabulary(200)
    for source in (Bytes(raw), Seekable(io.BytesIO(raw))):
        contents = parse(source)
        told = contents.metadata["tokenizer.ggml.tokens"]
        assert (told.kind, told.count) == ("text", 200)
        assert values(source, told) == tokens
        numbers = values(source, contents.metadata["tokenizer.ggml.scores"])
        assert numbers.dtype == np.float32
        assert numbers.tolist() == list(range(200))
        assert contents.metadata["last"] == 7


def test_lists_are_kept_up_to_sixty_four_and_until_enough_are_kept(monkeypatch):
    def metadata(*counts):
        keys = [listed(f"k{i}", 0, count, bytes(count)) for i, count in enumerate(counts)]
        return [type(one) for one in parse(Bytes(file_of(keys))).metadata.values()]

    assert metadata(0, 1, 64, 65) == [list, list, list, Listed]
    monkeypatch.setattr(gguf_metadata, "KEPT", 100)
    assert metadata(60, 40, 1, 0) == [list, list, Listed, list]


def test_text_that_is_not_utf8_has_escapes_and_a_list_of_it_keeps_its_bytes():
    keys = [key("a", TEXT, text(b"x\xffy")), listed("b", TEXT, 2, text(b"\xff") + text(b"z"))]
    source = Bytes(file_of(keys))
    metadata = parse(source).metadata
    assert metadata["a"] == "x\\xffy"
    assert values(source, metadata["b"]) == [b"\xff", b"z"]


def test_long_text_that_is_not_utf8_is_refused_as_it_would_take_minutes(monkeypatch):
    half = key("a", TEXT, text(b"\xff" * 40_000))
    assert len(parse(Bytes(file_of([half]))).metadata["a"]) == 4 * 40_000
    assert "not UTF-8" in refusal(file_of([half, key("b", TEXT, text(b"\xff" * 40_000))]))
    monkeypatch.setattr(gguf_metadata, "MAX_TEXT_BYTES", 9)
    assert "a text of 10 bytes" in refusal(file_of([key("a", TEXT, text(bytes(10)))]))


def test_lists_of_lists_are_passed_and_told():
    inner = struct.pack("<IQ", TEXT, 2) + text(b"a") + text(b"bc")
    deep = struct.pack("<IQ", LIST, 1) + struct.pack("<IQ", U32, 2) + bytes(8)
    source = Bytes(file_of([listed("a", LIST, 3, inner + deep + inner), u32("last", 7)]))
    metadata = parse(source).metadata
    assert metadata["last"] == 7
    assert (metadata["a"].kind, metadata["a"].count) == ("list", 3)
    with pytest.raises(Unsupported, match="lists of list"):
        values(source, metadata["a"])


def nested(depth):
    return struct.pack("<IQ", LIST, 1) * depth + struct.pack("<IQ", U32, 0)


GOOD = [info("a", [4]), info("b", [4], offset=32)]
ODD = "general.alignment"
MANY = 2**63
HOSTILE = {
    "nothing": (b"", "ends at 0"),
    "another magic": (b"GGML" + sample()[4:], "no GGUF file"),
    "a list without end": (file_of([listed("a", U32, MANY, b"")]), "lists of more than"),
    "texts without end": (file_of([listed("a", TEXT, 2**64 - 1, b"")]), "lists of more than"),
    "lists without end": (file_of([listed("a", LIST, MANY, b"")]), "lists of more than"),
    "a million texts of nothing": (file_of([listed("a", TEXT, 10**6, b"")]), "in a file of"),
    "a million numbers of nothing": (file_of([listed("a", U64, 10**6, b"")]), "in a file of"),
    "a text without end": (file_of([key("a", TEXT, struct.pack("<Q", MANY))]), "ends at"),
    "a text of a list without end": (
        file_of([listed("a", TEXT, 1, struct.pack("<Q", 2**64 - 1))]),
        "ends at",
    ),
    "a text that wraps to itself": (
        file_of([listed("a", TEXT, 2, struct.pack("<QQ", 2**64 - 8, 0))]),
        "ends at",
    ),
    "a key without end": (file_of([struct.pack("<Q", MANY)]), f"a key of {MANY} bytes"),
    "a key of nothing": (file_of([u32("", 1)]), "a key of 0 bytes"),
    "a key that is no text": (
        file_of([text(b"\xff") + struct.pack("<II", U32, 1)]),
        "a key is not UTF-8",
    ),
    "a key twice": (file_of([u32("a", 1), u32("a", 2)]), "key 'a' stands twice"),
    "an unknown kind": (file_of([key("a", 13, bytes(8))]), "a value of kind 13"),
    "an unknown kind of a list": (file_of([listed("a", 13, 1, bytes(8))]), "a value of kind 13"),
    "a truth of two": (file_of([key("a", BOOL, b"\2")]), "a truth value of 2"),
    "a list of a truth of two": (file_of([listed("a", BOOL, 2, b"\1\2")]), "a truth value of 2"),
    "deep lists": (file_of([listed("a", LIST, 1, nested(40))]), "deeper than 32"),
    "very deep lists": (file_of([listed("a", LIST, 1, nested(10**5))]), "deeper than 32"),
    "many lists": (
        file_of([listed("a", LIST, 200_000, struct.pack("<IQ", U32, 0) * 200_000)]),
        "lists of more than",
    ),
    "tensors without end": (struct.pack("<4sIQQ", b"GGUF", 3, MANY, 0), f"{MANY} tensors"),
    "a million empty tensors": (
        struct.pack("<4sIQQ", b"GGUF", 3, 10**6, 0) + bytes(10**6),
        "1000000 tensors",
    ),
    "keys without end": (struct.pack("<4sIQQ", b"GGUF", 3, 0, MANY), f"{MANY} keys"),
    "a tensor twice": (file_of((), [info("a", [4])] * 2, bytes(32)), "tensor a stands twice"),
    "a tensor like a path": (file_of((), [info("../a", [4])], bytes(32)), "like a path"),
    "a tensor of two lines": (file_of((), [info("a\nb", [4])], bytes(32)), "like a path"),
    "five dimensions": (file_of((), [info("a", [1] * 5)], bytes(32)), "5 dimensions"),
    "dimensions without end": (file_of((), [text(b"a") + b"\xff" * 4]), "dimensions"),
    "a dimension without end": (file_of((), [info("a", [0, 2**62])]), "beyond what is read"),
    "a shape that wraps": (
        file_of((), [info("a", [2**32] * 2)], bytes(32)),
        f"{4 * 2**64} bytes at 0",
    ),
    "a shape that wraps to its size": (
        file_of((), [info("a", [2**32, 2**32, 2**32, 4])], bytes(32)),
        "bytes at 0",
    ),
    "a size that wraps when it is padded": (
        file_of((), [info("a", [2**40, 2**22], 24)], bytes(32)),
        f"{2**62} bytes at 0",
    ),
    "a number in blocks": (file_of((), [info("a", [], 8)], bytes(32)), "a number in blocks of 32"),
    "an offset between": (
        file_of((), [info("a", [4]), info("b", [4], offset=16)], bytes(32)),
        "b: 16 bytes at 16",
    ),
    "an offset that wraps": (
        file_of((), [info("a", [4], offset=2**64 - 32)], bytes(32)),
        f"a: 16 bytes at {2**64 - 32}",
    ),
    "an overlap": (file_of((), [info("a", [9]), info("b", [4], offset=32)], bytes(64)), "overlaps"),
    "the same place": (file_of((), [info("a", [4]), info("b", [4])], bytes(32)), "b overlaps"),
    "a hole": (file_of((), [info("a", [4]), info("b", [4], offset=64)], bytes(96)), "a hole"),
    "a hole in front": (file_of((), [info("a", [4], offset=32)], bytes(64)), "after a hole"),
    "bytes after it": (file_of((), GOOD, bytes(65)), "expected 48 bytes of tensors"),
    "tensors cut off": (file_of((), GOOD, bytes(47)), "expected 48 bytes of tensors"),
    "bytes without tensors": (file_of((), (), bytes(40)), "expected 0 bytes"),
    "an alignment of 64 bits": (
        file_of([key(ODD, U64, struct.pack("<Q", 32))], GOOD, bytes(64)),
        "general.alignment is u64",
    ),
    "an alignment of text": (
        file_of([key(ODD, TEXT, text(b"32"))], GOOD, bytes(64)),
        "general.alignment is text",
    ),
    "a list of alignments": (
        file_of([listed(ODD, U32, 1, struct.pack("<I", 32))], GOOD, bytes(64)),
        "general.alignment is list",
    ),
    "no alignment": (file_of([u32(ODD, 0)], GOOD, bytes(64)), "general.alignment of 0"),
    "an odd alignment": (file_of([u32(ODD, 24)], GOOD, bytes(64)), "general.alignment of 24"),
    "a huge alignment": (file_of([u32(ODD, 2**31)], GOOD, bytes(64)), "general.alignment of"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_gguf_or_asks_for_too_much_is_refused_in_words(name):
    raw, said = HOSTILE[name]
    assert said in refusal(raw)


def test_gaps_of_the_alignment_and_an_end_without_padding_are_allowed():
    for size in (48, 64):
        assert len(parse(Bytes(file_of((), GOOD, bytes(size)))).tensors) == 2
    raw = file_of([u32(ODD, 1)], [info("a", [3], 24), info("b", [1], 0, 3)], bytes(7), alignment=1)
    assert [one.nbytes for one in parse(Bytes(raw)).tensors] == [3, 4]
    swapped = [info("b", [4], offset=32), info("a", [4])]
    assert [one.name for one in parse(Bytes(file_of((), swapped, bytes(64)))).tensors] == ["b", "a"]
    empty = [info("a", [0, 4]), info("b", [4]), info("c", [0])]
    assert len(parse(Bytes(file_of((), empty, bytes(32)))).tensors) == 3


@pytest.mark.parametrize(("version", "order"), [(1, "<"), (4, "<"), (0, "<"), (2, ">"), (1, ">")])
def test_other_versions_are_unsupported_by_name(version, order):
    raw = struct.pack(f"{order}4sIQQ", b"GGUF", version, 0, 0)
    assert f"GGUF version {version}" in refusal(raw, Unsupported)


def test_version_two_is_read():
    assert len(parse(Bytes(file_of((), GOOD, bytes(64), version=2))).tensors) == 2


@pytest.mark.parametrize("number", [4, 5, 31, 33, 36, 38, 43, 2**32 - 1])
def test_a_type_that_ggml_does_not_know_is_unsupported_by_name(number):
    said = refusal(file_of((), [info("a", [4], number)], bytes(32)), Unsupported)
    assert f"a: ggml type {number} is not known" in said


def test_limits_are_kept():
    raw, _ = vocabulary(200)
    for limits, said in (
        (ParseLimits(items=399), "more than 399 elements"),
        (ParseLimits(header_bytes=500), "header of more than 500"),
        (ParseLimits(tensors=2), "3 keys, more than 2"),
        (ParseLimits(name_bytes=9), "a key of 21 bytes"),
    ):
        with pytest.raises(Malformed, match=said):
            parse(Bytes(raw), limits)


def test_what_is_not_in_memory_is_read_no_further_than_its_header():
    class Counting(Seekable):
        most = 0

        def read(self, begin, end):
            self.most = max(self.most, end)
            return super().read(begin, end)

    raw = sample(bytes(8 * 1024**2))
    source = Counting(io.BytesIO(raw))
    assert parse(source) == parse(Bytes(raw))
    assert source.most == 256 * 1024


def test_nothing_comes_of_a_file_that_was_cut_at_any_byte():
    raw = sample()
    for size in range(len(raw)):
        with pytest.raises(Malformed):
            parse(Bytes(raw[:size]))


def test_a_flipped_bit_of_the_header_is_refused_or_another_sound_file():
    raw = bytearray(sample())
    for bit in range(8 * parse(Bytes(bytes(raw))).header_bytes):
        raw[bit // 8] ^= 1 << bit % 8
        sound(raw)
        raw[bit // 8] ^= 1 << bit % 8


def sound(raw):
    """Either words, or tensors that lie apart within the file; the same from a file that seeks."""
    outcomes = []
    for source in (Bytes(bytes(raw)), Seekable(io.BytesIO(raw), "bytes")):
        try:
            contents = parse(source)
        except (Malformed, Unsupported) as error:
            str(error).encode()
            outcomes.append((type(error), str(error)))
            continue
        outcomes.append(repr(contents))
        assert isinstance(contents, Contents)
        end = 0
        for one in sorted(contents.tensors, key=lambda one: (one.offset, one.nbytes)):
            kind = BY_NAME[one.dtype]
            assert end <= one.offset <= one.offset + one.nbytes <= len(raw)
            assert one.nbytes == prod(one.shape) // kind.values * kind.size
            end = one.offset + one.nbytes
    assert outcomes[0] == outcomes[1]


@given(st.data())
def test_whatever_bytes_come_only_words_come_out(data):
    raw = bytearray(sample())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw)))
        cut = data.draw(st.integers(0, 12))
        raw[at : at + cut] = data.draw(
            st.binary(max_size=12)
            | st.integers(0, 2**64 - 1).map(lambda one: struct.pack("<Q", one))
            | st.integers(0, 16).map(lambda one: struct.pack("<Q", one))
        )
    sound(raw)


LENGTHS = (
    st.integers(0, 3)
    | st.integers(250, 260)
    | st.integers(2**63 - 2, 2**63 + 2)
    | st.integers(2**64 - 40, 2**64 - 1)
)


@settings(max_examples=150)
@given(
    st.lists(st.tuples(LENGTHS, st.binary(max_size=4)), max_size=8),
    st.integers(0, 9),
    st.integers(0, 12),
    st.booleans(),
    st.binary(max_size=9),
)
def test_both_walks_over_texts_give_the_same_answer(parts, count, at, big, tail):
    order = ">Q" if big else "<Q"
    raw = b"".join(
        struct.pack(order, length) + (data * 300)[: min(length, 300)] for length, data in parts
    )
    raw = memoryview(bytes(at) + raw + tail)
    assert hops.plain(raw, at, count, big) == hops.compiled(raw, at, count, big)


def test_both_walks_over_a_vocabulary_give_the_same_answer():
    numbers = random.Random(1)
    lengths = [numbers.choice([0, 3, 7, 20, 255, 256, 70_000]) for _ in range(2000)]
    raw = memoryview(b"".join(text(bytes(length)) for length in lengths))
    assert hops.plain(raw, 0, 2000, False) == (len(raw), 2000)
    assert hops.compiled(raw, 0, 2000, False) == (len(raw), 2000)
    assert hops.plain(raw[:-1], 0, 2000, False) == hops.compiled(raw[:-1], 0, 2000, False)


def test_numba_is_waited_for_only_where_the_walk_is_long(monkeypatch):
    taken = []
    monkeypatch.setattr(hops, "plain", lambda *_: taken.append("plain"))
    monkeypatch.setattr(hops, "compiled", lambda *_: taken.append("compiled"))
    monkeypatch.delitem(sys.modules, "numba", raising=False)
    for count in (10, 10**5, hops.HUGE):
        hops.walk(memoryview(b""), 0, count, False)
    monkeypatch.setitem(sys.modules, "numba", None)
    for count in (10, 10**5):
        hops.walk(memoryview(b""), 0, count, False)
    hops.walk(memoryview(b""), 0, 1, False, hops.HUGE)
    assert taken == ["plain", "plain", "compiled", "plain", "compiled", "compiled"]
