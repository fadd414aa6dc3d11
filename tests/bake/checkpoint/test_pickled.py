"""Pickles are read, never run."""

import contextlib
import copyreg
import io
import os
import pickle
import pickletools
import re
import struct
from collections import Counter, OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bake.checkpoint import pickled
from bake.checkpoint.limits import DEFAULT, ParseLimits
from bake.checkpoint.opcodes import OPCODES
from bake.checkpoint.state_dicts import found_in
from bake.checkpoint.torch_names import NAMES, Pairs
from bake.errors import Malformed, Unsupported
from tests.bake.checkpoint.pickles import mapping, storage, text, view, whole

ALLOWED = frozenset(
    re.findall(
        r"\w+",
        "BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT "
        "NONE NEWTRUE NEWFALSE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINSTRING SHORT_BINSTRING "
        "BINBYTES SHORT_BINBYTES BINBYTES8 MARK EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT "
        "SETITEM SETITEMS EMPTY_LIST APPEND APPENDS GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID "
        "FRAME STOP",
    )
)
REFUSED = [op for op in pickletools.opcodes if op.name not in ALLOWED]
BAD = (Malformed, Unsupported)

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner)
    ),
    max_leaves=20,
)


def read(raw, limits=DEFAULT):
    return pickled.read(raw, "it", limits).value


def plain(value):
    """Mappings as Python has them."""
    if type(value) is Pairs:
        return dict(zip(value[::2], map(plain, value[1::2]), strict=True))
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return value


def test_all_instructions_have_their_names():
    assert {ord(op.code): op.name for op in pickletools.opcodes if op.proto <= 5} == {
        **OPCODES,
    }


@given(values, st.sampled_from([2, 3, 4, 5]))
def test_what_python_wrote_is_read_as_python_reads_it(value, protocol):
    if protocol == 2:
        value = plain_of_bytes(value)
    assert plain(read(pickle.dumps(value, protocol))) == value


def plain_of_bytes(value):
    """Protocol 2 has no bytes; Python writes a call, and of what is empty a call of ``bytes``."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {key: plain_of_bytes(inner) for key, inner in value.items()}
    return type(value)(map(plain_of_bytes, value)) if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_mappings_of_collections_are_mappings(protocol):
    value = {"a": OrderedDict(x=1, y=2), "b": Counter("aab")}
    assert plain(read(pickle.dumps(value, protocol))) == value


def test_bytes_of_protocol_2_are_bytes():
    assert read(pickle.dumps(b"\x00\xff", 2)) == b"\x00\xff"


def test_python_2s_own_memo_begins_with_1():
    assert read(b"\x80\x02(U\x01aq\x01U\x02bcq\x02h\x01t.") == ("a", "bc", "a")


@pytest.mark.parametrize("op", REFUSED, ids=lambda op: op.name)
def test_any_other_instruction_is_refused_by_name_and_byte(op):
    raw = b"\x80\x02N" + op.code.encode("latin-1") + bytes(32)
    with pytest.raises(Unsupported, match=rf"{op.name}: .*at byte 3\)"):
        read(raw)


def test_a_byte_that_is_no_instruction_is_refused():
    with pytest.raises(Unsupported, match=r"byte 0xff.*at byte 2"):
        read(b"\x80\x02\xff.")


@pytest.mark.parametrize("raw", [b"", b"\x80", b"\x80\x01N.", b"\x80\x06N.", b"N.", b"(lp0\n."])
def test_what_does_not_begin_as_protocol_2_to_5_is_no_pickle(raw):
    with pytest.raises(Malformed):
        read(raw)


class Call:
    """Pickled as a call of any function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Stated:
    def __init__(self, call):
        self.call = call

    def __setstate__(self, state):
        self.call = state


def gadgets(path):
    """Pickles that make a file when Python loads them, by different instructions."""
    touch = f"touch {path}"
    arg = text(touch)
    extension = copyreg._extension_registry.get(("posix", "system"))
    assert extension is None
    yield from (pickle.dumps(Call(os.system, touch), p) for p in (2, 3, 4, 5))
    yield from (pickle.dumps({"a": [Call(os.system, touch)]}, p) for p in (2, 5))
    yield pickle.dumps(Call(eval, f"__import__('os').system({touch!r})"), 2)
    yield b"\x80\x02(" + arg + b"iposix\nsystem\n."
    yield b"\x80\x02(cposix\nsystem\n" + arg + b"o."
    yield b"\x80\x02cposix\nsystem\n" + arg + b"\x85R."
    yield b"\x80\x02csubprocess\ngetoutput\n" + arg + b"\x85\x81."
    yield b"\x80\x04" + text("posix") + text("system") + b"\x93" + arg + b"\x85R."
    # Names out of the memo, and one made a second time under the index of another.
    yield (
        b"\x80\x04"
        + text("posix")
        + b"q\x00"
        + text("system")
        + b"q\x010h\x00h\x01\x93"
        + (arg + b"\x85R.")
    )
    yield b"\x80\x02" + text("torch") + b"q\x00cposix\nsystem\nq\x00h\x00" + arg + b"\x85R."
    # The name of a way to code, looked up with dots, as protocol 4 does.
    yield (
        b"\x80\x04" + text("torch") + text("serialization.os.system") + b"\x93" + (arg + b"\x85R.")
    )
    yield (
        b"\x80\x02cbuiltins\ngetattr\ncbuiltins\n__import__\n"
        + text("os")
        + b"\x85R"
        + (text("system") + b"\x86R" + arg + b"\x85R.")
    )
    # As arguments of what is allowed.
    yield b"\x80\x02ctorch._utils\n_rebuild_parameter\n(cposix\nsystem\n" + arg + b"\x85R\x89NtR."
    yield b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cposix\nsystem\nN" + arg + b"\x85NtR."
    # As the state of a mapping: its method, or that of a module.
    yield b"\x80\x02}}" + text("__setstate__") + b"cposix\nsystem\nsb" + arg + b"b."
    # As a storage's type, and as what holds it.
    yield b"\x80\x02(" + text("storage") + b"cposix\nsystem\n" + arg + b"NNtQ."
    yield b"\x80\x02(" + text("module") + b"cposix\nsystem\n" + arg + arg + b"tQ."
    yield b"\x80\x02cposix\nsystem\n" + arg + b"Q."


def test_gadgets_never_run(tmp_path):
    ran = tmp_path / "ran"
    for raw in gadgets(ran):
        with pytest.raises(BAD) as caught:
            read(raw)
        assert "at byte" in str(caught.value)
        assert not ran.exists()


def test_gadgets_would_run_in_python(tmp_path):
    ran = tmp_path / "ran"
    for raw in list(gadgets(ran))[:4]:
        pickle.loads(raw)
        assert ran.exists()
        ran.unlink()


def test_registered_extensions_are_refused(tmp_path):
    copyreg.add_extension("posix", "system", 240)
    try:
        with pytest.raises(Unsupported, match="EXT1"):
            read(pickle.dumps(Call(os.system, f"touch {tmp_path / 'ran'}"), 2))
    finally:
        copyreg.remove_extension("posix", "system", 240)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "raw",
    [
        b"cnumpy.core.multiarray\nscalar\n",
        b"ctorch._utils\n_rebuild_qtensor\n",
        b"ctorch._utils\n_rebuild_sparse_tensor\n",
        b"ctorch\nQInt8Storage\n",
        b"ctorch.nn.modules.linear\nLinear\n",
        b"ctorch\nload\n",
    ],
)
def test_names_that_are_not_listed_are_told(raw):
    module, name = raw[1:].decode().split("\n")[:2]
    with pytest.raises(Unsupported, match=rf"GLOBAL: {module}.{name} .*at byte 2"):
        read(b"\x80\x02" + raw + b".")


def test_a_marker_reached_through_another_calls_nothing():
    for function in (b"ctorch\nTensor\n", b"ctorch\nfloat32\n", b"}", b"N", text("a"), storage()):
        with pytest.raises(Unsupported, match="REDUCE: calls what is no function"):
            read(b"\x80\x02" + function + b")R.")


def test_markers_are_of_ours_alone():
    assert {type(name).__module__ for name in NAMES.values()} == {"bake.checkpoint.torch_names"}
    calls = [name.reduce for name in NAMES.values() if getattr(name, "reduce", None)]
    assert {call.__module__ for call in calls} == {"bake.checkpoint.torch_names"}


@pytest.mark.parametrize(
    "raw",
    [
        b".",  # no value
        b"NN.",  # two
        b"(N.",  # an open mark
        b"u.",
        b"}Nu.",
        b"}(Nu.",  # a key without a value
        b"h\x00.",
        b"Nq\x07.",  # remembered where nothing is before it
        b"Nr\xff\xff\xff\xff.",
        b"R.",
        b"NR.",
        b"\x8b\xff\xff\xff\x7fa.",
        b"\x8b\x00\x01\x00\x00" + bytes(256) + b".",
        b"X\x02\x00\x00\x00\xff\xfe.",
        b"\x8d" + b"\xff" * 8 + b"a.",
        b"X\xff\xff\xff\xffa.",
        b"\x95" + b"\xff" * 8 + b"N.",
        b"c" + b"a" * 600 + b"\n.",
        b"catorch",
        b"\x93.",
        b"NN\x93.",
        b"ccollections\nOrderedDict\n(NNNtR.",
        b"ccollections\nOrderedDict\nNR.",
        b"ccollections\nOrderedDict\n](NNe\x85R.",
        b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"c_codecs\nencode\n(" + text("ā") + text("latin1") + b"tR.",
    ],
)
def test_what_no_writer_says_is_malformed(raw):
    with pytest.raises(Malformed):
        read(b"\x80\x02" + raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"NNs.",
        b"]NNs.",
        b"}Na.",
        b"N(Ne.",
        b"NNb.",
        b"}Nb.",
        b"NQ.",
        b")Q.",
        b"(" + text("storage") + b"tQ.",
        b"c_codecs\nencode\n(" + text("a") + text("rot13") + b"tR.",
    ],
)
def test_what_state_dicts_do_not_need_is_refused(raw):
    with pytest.raises(BAD):
        read(b"\x80\x02" + raw)


def test_more_instructions_than_allowed_are_refused():
    raw = b"\x80\x02" + b"]" * 100 + b"."
    with pytest.raises(Malformed, match="more than 50 instructions"):
        read(raw, ParseLimits(items=50))


def found(raw):
    return found_in(read(raw), "it", DEFAULT)


def test_a_list_that_holds_itself_is_walked_to_the_limit():
    assert read(b"\x80\x02]q\x00h\x00a.")[0][0][0]
    with pytest.raises(Malformed, match="without an end"):
        found(b"\x80\x02]q\x00h\x00a.")
    with pytest.raises(Malformed, match="without an end"):
        found(b"\x80\x02}q\x00" + text("a") + b"h\x00s.")


@pytest.mark.parametrize("wide", [2, 50])
@pytest.mark.parametrize("inner", [view(), b"N"])
def test_what_doubles_many_times_is_not_walked(wide, inner):
    raw = b"\x80\x02(" + inner + b"q\x00"
    for i in range(25):
        raw += b"](" + b"h" + bytes([i]) + (b"h" + bytes([i])) * (wide - 1) + b"eq" + bytes([i + 1])
    with pytest.raises(Malformed, match=r"without an end|more than 100000 tensors"):
        found(raw + b"t.")


def test_a_long_list_told_many_times_is_not_looked_through_each_time():
    long = b"](" + b"N" * 200_000 + b"eq\x00"
    raw = b"\x80\x02](" + long + b"h\x00" * 200_000 + b"e."
    with pytest.raises(Malformed, match="without an end"):
        found(raw)


def test_a_long_mapping_told_many_times_is_not_looked_through_each_time():
    long = b"}(" + (b"K\x01N") * 100_000 + b"uq\x00"
    raw = b"\x80\x02}(K\x00" + long + b"K\x01h\x00" * 100_000 + b"u."
    with pytest.raises(BAD):
        found(raw)


@pytest.mark.parametrize(
    "call",
    [
        b"ccollections\nOrderedDict\n](" + b"NN\x86" * 50_000 + b"e\x85",
        b"ccollections\nOrderedDict\n}(" + b"K\x01N" * 50_000 + b"u\x85",
        b"ctorch\ndevice\n(" + b"N" * 50_000 + b"t",
        b"ctorch._utils\n_rebuild_parameter\n(" + b"N" * 50_000 + b"t",
        b"c_codecs\nencode\n" + text("a" * 300_000) + text("latin1") + b"\x86",
    ],
)
def test_calls_that_copy_are_not_made_again_and_again(call):
    function = b"\n".join(call.split(b"\n", 2)[:2]) + b"\n"
    args = call.removeprefix(function)
    raw = b"\x80\x02(" + function + b"q\x00" + args + b"q\x01" + b"h\x00h\x01R" * 100_000
    with pytest.raises(Malformed, match=r"copies more|no tuple of a few"):
        read(raw + b"t.")


DEEP = b")" + b"\x85" * 200_000


@pytest.mark.parametrize(
    "raw",
    [
        DEEP,
        mapping("a", DEEP),
        b"}" + DEEP + b"Ns",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(" + DEEP + b"N)NtR",
        b"ccollections\nOrderedDict\n" + DEEP + b"R",
        b"ctorch\ndevice\n" + DEEP + b"R",
        b"(" + DEEP + b"NNNNtQ",
        DEEP + b"N\x93",
    ],
)
def test_depth_is_no_recursion(raw):
    with pytest.raises(BAD):
        found(b"\x80\x02" + raw + b".")


def test_names_do_not_grow_with_depth():
    deep = b"".join(b"}" + text("k" * 500) for _ in range(20))
    with pytest.raises(Malformed, match="a name longer"):
        found(b"\x80\x02" + deep + b"N" + b"s" * 20 + b".")


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_cut_anywhere_says_so(protocol):
    raw = pickle.dumps(
        {"a": [1, 2.5, 300, 70000, 2**70, "b", None, True], "b": ((), (1,))}, protocol
    )
    for end in range(len(raw)):
        with pytest.raises(pickled.CutShort):
            read(raw[:end])


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_else_than_fail(raw):
    with contextlib.suppress(*BAD):
        found(b"\x80\x02" + raw + b".")


PIECES = [
    *(bytes([op]) for op in OPCODES if OPCODES[op] in ALLOWED),
    *(b"h" + bytes([i]) for i in range(4)),
    *(b"q" + bytes([i]) for i in range(4)),
    text("a"), text("storage"), whole(2**70), whole(-1), view(), storage(), mapping("a", view()),
    *(f"c{module}\n{name}\n".encode() for module, name in NAMES),
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_no_instructions_do_anything_else_than_fail(pieces):
    with contextlib.suppress(*BAD):
        found(b"\x80\x02" + b"".join(pieces) + b".")


def test_frames_and_long_indexes_are_read():
    many = [str(i) for i in range(300)]
    assert read(pickle.dumps([many, many], 4)) == [many, many]
    assert read(pickle.dumps([many, many], 2)) == [many, many]
    out = io.BytesIO()
    pickle.Pickler(out, 2).dump(many)
    assert struct.pack("<I", 299) in out.getvalue()
