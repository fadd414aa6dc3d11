"""The reader of safetensors headers: its fast way and its careful one say the same."""

import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from blob import header
from blob.dtypes import BITS
from blob.header import Bounds, HeaderError, check_names, parse_header
from blob.spelling import strict


def entry(begin, end, dtype="U8", shape=None):
    shape = [end - begin] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def spelled(tree):
    return json.dumps(tree, separators=(",", ":"), ensure_ascii=False).encode()


def read(text, data=0):
    return parse_header(text, 8 + len(text) + data, Bounds())


def test_headers_of_the_library_take_the_fast_way(monkeypatch):
    monkeypatch.setattr(header, "_slow", None)
    arrays = {"a.b": np.zeros((2, 3), "int8")}
    for metadata in (None, {"format": "pt"}, {"a": "{}"}, {"é": '"\n}{\\', "": "\x7f"}):
        raw = safetensors.numpy.save(arrays, metadata)
        found = parse_header(raw[8 : 8 + raw[0]], len(raw), Bounds())
        assert found.metadata == (metadata or {})
        assert found.entries["a.b"].shape == (2, 3)


JSON = st.recursive(
    st.integers(-1, 9) | st.sampled_from(["U8", "F4", "x", "é\x7f", '"', None, True, 1.0]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["a", "b.c", "__metadata__", "dtype", "shape", "data_offsets"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
ENTRY = st.builds(
    entry, st.integers(-1, 3), st.integers(0, 3), st.sampled_from(["U8", "F4"]), st.none()
)
HEADERS = st.dictionaries(
    st.sampled_from(["a", "b", "c", "__metadata__"]),
    ENTRY | JSON | st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
    max_size=3,
)


@given(HEADERS, st.sampled_from([b"", b" ", b"\n", b",", b"}"]))
def test_what_the_fast_way_takes_is_what_json_says(tree, tail):
    text = spelled(tree) + tail
    if (found := header._fast(text)) is not None:
        entries, metadata = found
        told = strict(text)
        assert told.pop("__metadata__", {}) == metadata
        assert told == {
            name: {"dtype": e.dtype, "shape": [*e.shape], "data_offsets": [*e.data_offsets]}
            for name, e in entries.items()
        }


WHOLE = spelled({"__metadata__": {"a": "}"}, "b": entry(0, 1), "c": entry(1, 2)})
CUTS = st.lists(
    st.tuples(
        st.integers(0, len(WHOLE)),
        st.integers(0, 3),
        st.sampled_from([b"", b",", b"}", b"{", b'"', b" ", b'"b":', b'{"a":"b"}']),
    ),
    min_size=1,
    max_size=3,
)


@given(CUTS)
def test_what_is_no_json_is_not_taken_by_the_fast_way(cuts):
    text = WHOLE
    for at, size, other in cuts:
        text = text[:at] + other + text[at + size :]
    try:
        strict(text)
    except ValueError:
        assert header._fast(text) is None


@given(HEADERS, st.integers(0, 4))
def test_both_ways_end_in_the_same(tree, data):
    outcomes = []
    for text in (spelled(tree), json.dumps(tree).encode()):
        try:
            found = read(text, data)
            outcomes.append((dict(found.entries), dict(found.metadata)))
        except HeaderError:
            outcomes.append(None)
    assert outcomes[0] == outcomes[1]


def test_a_long_header_is_read_as_the_library_spells_it_or_not_at_all(monkeypatch):
    monkeypatch.setattr(header, "MAX_SLOW_BYTES", 40)
    tree = {"a": entry(0, 1)}
    assert read(spelled(tree), 1).entries
    with pytest.raises(HeaderError, match="not as safetensors spells"):
        read(json.dumps(tree).encode(), 1)


NAMES = st.text(st.sampled_from("ab./|\\\n\x7fé\ud800 "), max_size=5)


@given(st.lists(NAMES, max_size=4))
def test_names_are_looked_at_together_as_they_are_one_by_one(names):
    def sound(looks):
        try:
            looks()
        except ValueError:
            return False
        return True

    assert sound(lambda: check_names(names)) == all(
        sound(lambda one=name: header.check_name(one)) for name in names
    )


def test_a_long_name_among_short_ones_is_refused():
    with pytest.raises(ValueError, match="longer than 512"):
        check_names(["a", "b" * 513])


def test_every_type_of_the_library_has_its_size():
    told = {
        "F4": 0.5, "F6_E2M3": 0.75, "F6_E3M2": 0.75, "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1,
        "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "I16": 2, "U16": 2,
        "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "C64": 8, "F64": 8, "I64": 8, "U64": 8,
    }  # fmt: skip
    assert {name: bits / 8 for name, bits in BITS.items()} == told
    for name, size in told.items():
        text = spelled({"a": entry(0, int(8 * size), name, [8])})
        assert safetensors.deserialize(
            len(text).to_bytes(8, "little") + text + bytes(int(8 * size))
        )
        assert read(text, int(8 * size)).entries["a"].dtype == name


def test_neither_numpy_nor_pydantic_is_imported_for_it():
    said = "import blob.header, sys; print('numpy' in sys.modules, 'pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
