"""The prompt set, and what is run in which order."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from scripts.latency.plan import Cell, arrivals, cells, chosen, count, groups, turns
from scripts.latency.prompts import (
    MIXED,
    SIZES,
    BadPrompts,
    Prompt,
    described,
    marked,
    read_prompts,
    request,
)
from scripts.tiny.corpus import is_held_out
from serve.settings import REPOSITORY

TINY = REPOSITORY / "weights" / "tiny"


def test_the_mixed_set_is_of_all_sizes_chats_and_texts_and_fits_tiny() -> None:
    prompts = read_prompts(MIXED)
    told = described(prompts, MIXED)
    assert all(told["sizes"][size] >= 5 for size in SIZES)
    assert 8 <= told["chats"] <= len(prompts) - 8
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    for one in prompts:
        said = one.prompt or "".join(message["content"] for message in one.messages)
        tokens = len(tokenizer.encode(said).ids) + 16 * (1 + len(one.messages))
        assert tokens + one.output_tokens < 4096, one.name
    # A prompt's size says nothing of its output's.
    for size in SIZES:
        assert {one.output_tokens for one in prompts if one.size == size} == {16, 48, 96}


def test_no_text_of_the_mixed_set_was_trained_on() -> None:
    for one in read_prompts(MIXED):
        if one.source != "chat":
            name = one.name.removeprefix(f"{one.source}/")
            assert is_held_out(one.source, name), one.name


def test_no_chat_of_the_mixed_set_was_trained_on() -> None:
    lines = (TINY / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    held_out = {item["name"] for item in map(json.loads, lines)}
    assert {one.name for one in read_prompts(MIXED) if one.source == "chat"} <= held_out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "no prompt in it"),
        ("[]", "expected a JSON object"),
        ('{"name": "a", "size": "short", "output_tokens": 4}', "both or neither"),
        ('{"name": "a", "size": "huge", "output_tokens": 4, "prompt": "x"}', "'huge'"),
        ('{"name": "a", "size": "short", "output_tokens": 1, "prompt": "x"}', "2 or more"),
        (
            '{"name": "a", "size": "short", "output_tokens": "n", "prompt": "x"}',
            "messages: invalid",
        ),
        ('{"size": "short", "output_tokens": 4, "prompt": "x"}', "messages: no name$"),
        ('{"name": "a", "size": "short", "output_tokens": 4, "prompt": 5}', "that is a text"),
        ('{"name": "a", "size": "short", "output_tokens": 4, "messages": "hello"}', "role and"),
        ('{"name": "a", "size": "short", "output_tokens": 4, "messages": [{}]}', "role and"),
    ],
)
def test_a_file_that_is_no_prompt_set_is_refused_by_its_line(
    tmp_path: Path, line: str, said: str
) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(line)
    with pytest.raises(BadPrompts, match=said) as error:
        read_prompts(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        BadPrompts, match=r"^\S*none\.jsonl: cannot be read: No such file or directory$"
    ):
        read_prompts(tmp_path / "none.jsonl")


def test_requests_name_everything_a_variant_could_have_a_default_for() -> None:
    body = request(Prompt("a", "", "short", 8, prompt="x"), "tiny", as_served=False)["body"]
    assert (body["temperature"], body["repetition_penalty"], body["ignore_eos"]) == (0, 1.0, True)
    assert (body["max_tokens"], body["stream_options"]) == (8, {"include_usage": True})
    left = request(Prompt("a", "", "short", 8, prompt="x"), "tiny", as_served=True)["body"]
    assert not {"temperature", "repetition_penalty", "ignore_eos"} & set(left)


def test_a_mark_stands_before_a_prompt_and_in_a_chats_system_message() -> None:
    assert marked(Prompt("a", "", "short", 8, prompt="x"), 7).prompt == "No. 7\n\nx"
    assert marked(Prompt("a", "", "short", 8, prompt="x"), None).prompt == "x"
    user = {"role": "user", "content": "hello"}
    plain = marked(Prompt("a", "", "short", 8, messages=(user,)), 7).messages
    assert plain == ({"role": "system", "content": "No. 7. You are a helpful assistant."}, user)
    own = {"role": "system", "content": "Be brief."}
    brief = marked(Prompt("a", "", "short", 8, messages=(own, user)), 7).messages
    assert brief == ({"role": "system", "content": "No. 7. Be brief."}, user)


@given(st.integers(1, 8), st.integers(0, 99), st.integers(1, 9))
def test_turns_go_there_and_back(names: int, seed: int, pair: int) -> None:
    every = [f"k{n}" for n in range(names)]
    there, back = (turns(every, round_, seed) for round_ in (2 * pair - 1, 2 * pair))
    assert there == back[::-1]
    assert sorted(there) == every


def test_each_two_rounds_have_an_order_of_their_own() -> None:
    orders = {tuple(turns("abcdefgh", round_, 7)) for round_ in range(1, 13)}
    assert len(orders) == 12


def test_candidates_are_grouped_beside_the_reference() -> None:
    assert groups(["a", "b", "c"], 3) == [["a", "b"], ["c"]]
    assert groups(["a", "b"], 1) == [["a"], ["b"]]


def test_cells_and_their_sizes() -> None:
    loads = cells([1, 32], [2.5])
    assert [one.label for one in loads] == ["c1", "c32", "r2.5"]
    assert [count(one, 32, None) for one in loads] == [16, 64, 75]
    assert [count(Cell(concurrency=c), 32, None) for c in (2, 4, 8)] == [16, 16, 32]
    assert count(loads[0], 32, 5) == 5
    assert count(Cell(concurrency=4, requests=12), 32, None) == 12
    assert count(Cell(concurrency=4, requests=12), 32, 8) == 8


@given(st.integers(1, 40), st.integers(1, 100), st.integers(0, 9))
def test_every_prompt_is_chosen_as_often_as_any_other(prompts: int, n: int, seed: int) -> None:
    found = chosen(Cell(concurrency=2), 1, prompts, n, seed)
    assert len(found) == n
    times = Counter(found)
    assert max(times.values()) - min(times.get(p, 0) for p in range(prompts)) <= 1
    assert found == chosen(Cell(concurrency=2), 1, prompts, n, seed)


@given(st.floats(0.1, 100), st.integers(0, 99))
def test_arrivals_come_in_order_at_about_their_rate(rate: float, seed: int) -> None:
    times = arrivals(rate, 400, 1, seed)
    assert times[0] == 0
    assert times == sorted(times)
    # The mean of 399 exponential gaps: its standard error is 5 %.
    assert times[-1] / 399 == pytest.approx(1 / rate, rel=0.35)
