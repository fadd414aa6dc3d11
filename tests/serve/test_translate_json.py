"""Parts of a JSON text are replaced, and no other character of it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.translate_json import (
    Each,
    Edits,
    Keys,
    Unreadable,
    Whole,
    decoded,
    encoded,
    first_member,
)

# Texts that a parser and a printer would not give back as they were.
SPELLINGS = [
    "1e5",
    "1E+5",
    "0.10",
    "-0",
    "1.0",
    "123456789012345678901234567890",
    "1e-400",
    "NaN",
    "Infinity",
    "null",
    "true",
    '"\\u0041\\/\\ud800"',
    '"é"',
    "[]",
    "{}",
]
BLANKS = st.text(" \t\r\n", max_size=2)
VALUES = st.recursive(
    st.sampled_from(SPELLINGS),
    lambda inner: (
        st.builds(
            lambda parts, blank: f"[{blank}{(blank + ',' + blank).join(parts)}{blank}]",
            st.lists(inner, max_size=3),
            BLANKS,
        )
        | st.builds(
            lambda parts, blank: (
                "{"
                + ",".join(f'{blank}"k{n}"{blank}:{blank}{v}' for n, v in enumerate(parts))
                + "}"
            ),
            st.lists(inner, max_size=3),
            BLANKS,
        )
    ),
    max_leaves=8,
)
MINE = st.sampled_from(['"mine"', r'"m\u0069ne"'])


def edited(text: str, shape: Any, *, strict: bool = True) -> str:
    edits = Edits(text, strict)
    edits.walk(shape)
    return edits.made()


@given(VALUES, VALUES, BLANKS, MINE)
def test_only_the_place_is_replaced(before, after, blank, name):
    text = '{{"a":{},{b}{n}{b}:{b}{v}{b},{b}"z":{}}}{b}'
    given_text = text.format(before, after, b=blank, n=name, v="[1,2]")
    expected = text.format(before, after, b=blank, n=name, v="HERE")
    assert edited(given_text, {"mine": lambda value: "HERE" if value == [1, 2] else None}) == (
        expected
    )


@given(VALUES)
def test_a_text_without_the_place_stays(text):
    assert edited(text, {"mine": lambda _: "X"}) == text
    assert edited(text, Each({"mine": lambda _: "X"})) == text


def test_elements_keys_and_whole_objects_are_found():
    assert edited('{"a":[{"b": 1}, null,{"c":1,"b":2}]}', {"a": Each({"b": str_of})}) == (
        '{"a":[{"b": <1>}, null,{"c":1,"b":<2>}]}'
    )
    assert edited('{"a" : {"1" :{"x":1.0}, "2": 3} }', {"a": Keys(lambda key: f'"{key}0"')}) == (
        '{"a" : {"10" :{"x":1.0}, "20": 3} }'
    )
    shape = {"a": Whole(repr)}
    assert edited('{"a":{"1": 1.00,"1":[ ]}}', shape) == (
        """{"a":[('1', 1.0, '1.00'), ('1', [], '[ ]')]}"""
    )


def str_of(value: object) -> str:
    return f"<{value}>"


def test_values_of_another_kind_than_the_shape_stay():
    shape = {"a": Each(str_of), "b": {"c": str_of}, "d": Keys(str_of), "e": Whole(str_of)}
    text = '{"a":1,"b":[{"c":1}],"d":"x","e":null}'
    assert edited(text, shape) == text


NO_JSON = ["", " ", "{", '{"a"', '{"a":', '{"a":1', '{"a":1,', '{"a":1,}', '{"a" 1}', "{1:1}"]
NO_JSON += ['{"a":1}x', '{"a":[1', '{"a":[1,]}', '{"a":[1 2]}', '{"a":01}', '{"a":"\n"}']


@pytest.mark.parametrize("text", NO_JSON)
def test_what_is_no_json_is_unreadable(text):
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)
    with pytest.raises(Unreadable):
        edited(text, {"a": Each(str_of)})


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' + "[" * 100_000, "[" + "9" * 5000 + "]"])
def test_what_is_too_much_for_the_parser_is_unreadable(text):
    with pytest.raises(Unreadable):
        edited(text, {"a": Each(str_of)})


def test_a_field_that_is_there_twice_is_refused_unless_both_may_be_changed():
    with pytest.raises(Unreadable, match="'a' is there twice"):
        edited(r'{"a":1,"\u0061":2}', {"a": str_of})
    assert edited('{"a":1,"a":2}', {"a": str_of}, strict=False) == '{"a":<1>,"a":<2>}'
    # Of what is not changed, each reader may think as it does.
    assert edited('{"b":1,"b":2}', {"a": str_of}) == '{"b":1,"b":2}'


def test_an_object_of_very_many_members_is_not_read():
    text = json.dumps(dict.fromkeys("abcd"))
    for shape in ({"a": {}}, {"x": str_of}):
        assert Edits(text, most=4).walk(shape) is None
        with pytest.raises(Unreadable, match="more than 3 members"):
            Edits(text, most=3).walk(shape)
    with pytest.raises(Unreadable, match="more than 3 members"):
        edited(text, Whole(repr, 3))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", '{"b": 5}'),
        (" { } ", ' {"b": 5 } '),
        ('{"a":1}', '{"b": 5, "a":1}'),
        ('\n{ "a":1}', '\n{"b": 5,  "a":1}'),
    ],
)
def test_a_first_member_is_added(text, expected):
    edits = Edits(text)
    edits.walk({})
    edits.places.append(first_member(text, "b", "5"))
    assert edits.made() == expected
    assert json.loads(expected)["b"] == 5


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
def test_an_encoding_that_the_standard_library_takes_is_kept(encoding):
    body = '{"é": "\U0001f600"}'.encode(encoding)
    text, found = decoded(body)
    assert json.loads(body) == json.loads(text)
    assert encoded(text, found) == body


def test_bytes_of_no_encoding_are_unreadable():
    with pytest.raises(Unreadable):
        decoded(b'{"a":"\xff"}')
