import contextlib
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from serve.config import KEY, CommaSeparated, Config, parse, read_pairs
from serve.errors import ConfigError


class Levers(Config):
    name: str
    max_num_seqs: int | None = Field(None, ge=1)
    dtype: Literal["auto", "bfloat16"] = "auto"
    penalty: float = 1.0
    sizes: Annotated[tuple[int, ...], CommaSeparated] = ()


def read(tmp_path: Path, text: str | bytes) -> dict[str, str]:
    path = tmp_path / "config.env"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_pairs(path)


def refusal(tmp_path: Path, text: str | bytes) -> str:
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, text)
    return str(refused.value).replace(str(tmp_path), "")


def test_pairs_come_in_order_and_values_keep_what_follows_the_first_equals(tmp_path: Path) -> None:
    pairs = read(tmp_path, "\n# why\nB=1\r\n  A = x=y # z \nEMPTY=\n")
    assert list(pairs.items()) == [("B", "1"), ("A", "x=y # z"), ("EMPTY", "")]


@pytest.mark.parametrize("line", ["no pair", "lower=1", "=1", "A B=1", "export A=1", "\ufeffA=1"])
def test_a_line_that_is_no_pair_is_refused_with_its_number(tmp_path: Path, line: str) -> None:
    said = refusal(tmp_path, f"A=1\n{line}\n")
    assert said.startswith("/config.env:2: expected KEY=VALUE with an upper-case key, got ")
    assert repr(line.strip()) in said


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    said = refusal(tmp_path, "A=1\nA=1\n")
    assert said == "/config.env:2: A is set twice\nhint: keep one line of A"


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_a_line_break_begins_a_new_pair(tmp_path: Path, separator: str) -> None:
    assert read(tmp_path, f"A=1{separator}B=2") == {"A": f"1{separator}B=2"}


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path, b"A=\xff")
    with pytest.raises(ConfigError, match=r"cannot be read: .*No such file"):
        read_pairs(tmp_path / "nothing.env")
    with pytest.raises(ConfigError, match=r"cannot be read: .*Is a directory"):
        read_pairs(tmp_path)


@given(st.binary(max_size=80))
def test_any_bytes_are_pairs_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    with contextlib.suppress(ConfigError):
        pairs = read(tmp_path_factory.getbasetemp(), raw)
        assert all(KEY.fullmatch(key) and "\n" not in value for key, value in pairs.items())


KEYS = st.from_regex(KEY, fullmatch=True).filter(str.isascii)
VALUES = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=20)


@given(st.dictionaries(KEYS, VALUES, max_size=6))
def test_pairs_that_were_written_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, pairs: dict[str, str]
) -> None:
    text = "".join(f"{key}={value}\n" for key, value in pairs.items())
    stripped = {key: value.strip() for key, value in pairs.items()}
    assert read(tmp_path_factory.getbasetemp(), text) == stripped


def parsed(**pairs: str) -> Levers:
    return parse(Levers, pairs, "here", name="mine")


def test_values_take_the_types_of_the_fields() -> None:
    levers = parsed(MAX_NUM_SEQS="8", DTYPE="bfloat16", PENALTY="1.5", SIZES="1, 2,4")
    assert (levers.max_num_seqs, levers.dtype) == (8, "bfloat16")
    assert (levers.penalty, levers.sizes) == (1.5, (1, 2, 4))


def test_an_empty_value_counts_as_not_set() -> None:
    assert parsed(MAX_NUM_SEQS="", DTYPE="") == parsed()


def test_an_unknown_key_names_itself_and_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError) as refused:
        parsed(MAX_NUM_SEQ="8")
    said = str(refused.value)
    assert "here: unknown key MAX_NUM_SEQ (did you mean MAX_NUM_SEQS?)" in said
    assert "hint: known keys: DTYPE, MAX_NUM_SEQS, PENALTY, SIZES" in said


def test_a_fact_cannot_be_set_by_a_file() -> None:
    with pytest.raises(ConfigError, match="unknown key NAME"):
        parsed(NAME="other")


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("MAX_NUM_SEQS", "0", "greater than or equal to 1"),
        ("MAX_NUM_SEQS", "eight", "valid integer"),
        ("DTYPE", "BFLOAT16", "'auto' or 'bfloat16'"),
        ("PENALTY", "inf", "finite number"),
        ("PENALTY", "nan", "finite number"),
        ("SIZES", "1,,2", "valid integer"),
    ],
)
def test_a_bad_value_is_named_with_its_key_and_what_would_do(
    key: str, value: str, why: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        parsed(**{key: value})
    said = str(refused.value)
    assert said.startswith(f"here: {key}={value!r}: ")
    assert why in said


def test_what_was_parsed_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parsed().dtype = "auto"
