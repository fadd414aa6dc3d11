import hashlib
import json
from types import SimpleNamespace

import jinja2
import pytest

from scripts import measure_thoughts
from scripts.measure_thoughts import HELD_OUT, main, parser
from scripts.measure_thoughts import ways as asked_ways
from scripts.quality.kept import Kept
from scripts.served import Failed
from scripts.thoughts.chats import Chat, chat_of, read_chats
from scripts.thoughts.counting import counted, summary
from serve.settings import REPOSITORY
from tests.scripts.sampled import record

CLOSE = 9


def raise_exception(message):
    raise AssertionError(message)


def test_every_held_out_chat_becomes_messages_that_the_template_renders_as_they_stood():
    """Tools and their answers, too, which are plain text by then."""
    template = (REPOSITORY / "weights" / "tiny" / "chat_template.jinja").read_text()
    render = jinja2.Environment().from_string(template).render
    lines = [json.loads(line) for line in HELD_OUT.read_text().split("\n") if line]
    prompts = [line["prompt"] for line in lines if line["prompt"].startswith("<|im_start|>")]
    chats = read_chats(HELD_OUT)
    assert len(chats) == len(prompts) > 100
    for chat, prompt in zip(chats, prompts, strict=True):
        told = render(
            messages=chat.messages,
            add_generation_prompt=True,
            enable_thinking=True,
            raise_exception=raise_exception,
        )
        assert told == prompt + "<think>\n"
        assert chat.answer


def test_the_answer_held_out_is_what_comes_after_the_thought():
    prompt = "<|im_start|>user\nWhat is 1 plus 1?<|im_end|>\n<|im_start|>assistant\n"
    text = prompt + "<think>\nTwo, I think.\n</think>\n\n1 + 1 = 2.<|im_end|>\n"
    chat = chat_of({"source": "chat/arithmetic", "prompt": prompt, "text": text})
    assert chat.answer == "1 + 1 = 2."
    assert chat.messages == [{"role": "user", "content": "What is 1 plus 1?"}]


@pytest.mark.parametrize(
    "line",
    [
        {"text": "Genesis 1"},
        {"prompt": "Genesis 1", "text": "Genesis 1 and 2"},
        {"prompt": "<|im_start|>assistant\n", "text": "<|im_start|>assistant\nYes."},
        {"prompt": "said\n<|im_start|>assistant\n", "text": "said\n<|im_start|>assistant\nYes."},
    ],
)
def test_what_is_no_chat_is_left_out(line):
    assert chat_of(line) is None


def test_fewer_chats_are_spread_over_all():
    some = read_chats(HELD_OUT, 10)
    assert len(some) == 10
    assert len({chat.source for chat in some}) > 4


def test_tokens_are_counted_up_to_what_closes_the_thought_and_after_it():
    made = counted([1, 2, CLOSE, 3, 4, 5], CLOSE, off=False, answered=True)
    assert made == {"thought": 2, "answer": 3, "closed": 1, "skipped": 0}
    made = counted([1, 2], CLOSE, off=False, answered=False)
    assert made == {"thought": 2, "answer": 0, "closed": 0, "skipped": 0}
    made = counted([1, 2], CLOSE, off=True, answered=True)
    assert made == {"thought": 0, "answer": 2, "closed": 1, "skipped": 0}


def reply(ids, content, **more):
    return {"token_ids": ids, "message": {"content": content, **more}, "finish_reason": "stop"}


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (reply([1, 2, 3], "<tool_call>"), (0, 3, 0, 1)),
        (reply([1, 2, 3], None, tool_calls=[{"id": "a"}]), (0, 3, 0, 1)),
        (reply([1, 2, 3], None, reasoning="Hm"), (3, 0, 0, 0)),
        (reply([1, 2, 3], " \n", tool_calls=[]), (3, 0, 0, 0)),
        (reply([1, CLOSE, 3], "yes"), (1, 1, 1, 0)),
        (reply([1, CLOSE], None), (1, 0, 1, 0)),
    ],
)
def test_an_answer_at_once_is_no_thought_and_a_reply_with_neither_is_unclosed(choice, told):
    made = measure_thoughts.sample(choice, CLOSE, "yes", off=False)
    assert tuple(made[name] for name in ("thought", "answer", "closed", "skipped")) == told
    assert made["exact"] == (choice["message"]["content"] == "yes")


def test_answers_that_a_cap_broke_into_are_told():
    at_once = sample("uncapped", 0, closed=0, skipped=1)
    rows = [at_once, sample("cap 8", 7, "b", 0), at_once, sample("cap 8", 0, closed=0, skipped=1)]
    rows += [sample("uncapped", 9, closed=0), sample("cap 8", 7)]
    told = summary(rows)
    assert told["uncapped"]["skipped"] == 2
    assert told["uncapped"]["never_closed"] == told["uncapped"]["cut"] == 1
    assert told["uncapped"]["thought_most"] == 9
    assert told["cap 8"]["skipped"] == 1
    broken = told["cap 8"]["less_uncapped"]["of_skipped"]
    assert broken == {"chats": 2, "broken_into": 1, "exact_uncapped": 2, "exact": 1}
    off = summary([at_once, sample("off", 0)])["off"]["less_uncapped"]["of_skipped"]
    assert off["broken_into"] == 0
    shown = measure_thoughts.table("seq8-shortcot", told)
    cells = {column.header: list(column.cells) for column in shown.columns}
    assert (cells["skipped"], cells["unclosed"], cells["cut"]) == (
        ["2", "1"],
        ["1", "0"],
        ["1", "0"],
    )


def sample(way, thought, answer="a", exact=1, closed=1, skipped=0):
    return {
        "way": way,
        "thought": thought,
        "answer": 4,
        "closed": closed,
        "skipped": skipped,
        "ended": "stop" if closed or skipped else "length",
        "exact": exact,
        "answer_sha256": answer,
    }


def test_a_way_is_told_beside_no_cap_chat_by_chat():
    rows = [sample("uncapped", 20), sample("cap 8", 8, "b", 0)]
    rows += [sample("uncapped", 100, closed=0), sample("cap 8", 8, "a")]
    rows += [sample("uncapped", 3), sample("cap 8", 3)]
    told = summary(rows)
    assert "less_uncapped" not in told["uncapped"]
    assert told["uncapped"]["thought_tokens"]["point"] == 41
    assert told["uncapped"]["ended"] == {"length": 1, "stop": 2}
    assert told["uncapped"]["never_closed"] == 1
    less = told["cap 8"]["less_uncapped"]
    assert less["thought_tokens"]["point"] == pytest.approx(-104 / 3, abs=1e-3)
    assert less["shorter_thoughts"] == 2
    assert less["same_answers"] == 2
    assert less["exact"]["point"] == pytest.approx(-1 / 3, abs=1e-5)


def test_no_cap_is_named_and_the_variants_own_is_not():
    ways = asked_ways((8,))
    assert ways["uncapped"] == {"thinking_token_budget": -1}
    assert ways["as served"] == {}
    assert ways["cap 8"] == {"thinking_token_budget": 8}


def test_what_was_interrupted_goes_on_where_it_stopped(tmp_path, capsys):
    chats = [Chat("a", [{"role": "user", "content": w}], w) for w in "xyz"]
    asked = []

    def ask(chat, more, off):
        asked.append(chat.answer)
        if asked.count("y") == 1 and chat.answer == "y":
            raise KeyboardInterrupt
        return {"thought": len(asked)}

    def every(*, fresh):
        kept = Kept("name", fresh=fresh, cache=tmp_path)
        ways = {"off": {}, "uncapped": {"thinking_token_budget": -1}}
        return list(measure_thoughts.every(measure_thoughts.watched(chats), ways, ask, kept))

    with pytest.raises(KeyboardInterrupt):
        every(fresh=True)
    told = every(fresh=False)
    assert asked == [*"xxy", *"yyzz"]
    assert [(one["chat"], one["way"]) for one in told[:3]] == [
        (0, "off"),
        (0, "uncapped"),
        (1, "off"),
    ]
    assert [one["thought"] for one in told] == [1, 2, 4, 5, 6, 7]
    assert "chats: 2 of 3" in capsys.readouterr().err


def test_answers_of_another_variant_or_engine_are_not_taken_up(tmp_path, monkeypatch):
    class Chosen:
        class model:  # noqa: N801
            path = tmp_path

    told = {"digest": "a", "model": {"name": "tiny"}, "engine": {"seconds": 1}}
    depends_on = measure_thoughts.depends_on
    first = depends_on(Chosen, told, 64)
    assert depends_on(Chosen, told | {"engine": {"seconds": 2}}, 64) == first
    assert depends_on(Chosen, told | {"digest": "b"}, 64) != first
    assert depends_on(Chosen, told, 65) != first
    (tmp_path / "model.safetensors").write_text("other weights")
    second = depends_on(Chosen, told, 64)
    assert second != first
    plugin = tmp_path / "plugin"
    plugin.mkdir()
    (plugin / "patch.py").write_text("1")
    monkeypatch.setattr(measure_thoughts, "PLUGIN", plugin)
    assert depends_on(Chosen, told, 64) != second


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seq9"], "no variant 'seq9'"),
        (["seq8-shortcot", "--model", "nosuch"], "no model 'nosuch'"),
        (["seq8-shortcot", "--chats", "/nosuch"], "--chats: /nosuch: No such file"),
    ],
)
def test_what_is_not_there_is_usage_before_anything_starts(monkeypatch, capsys, words, said):
    monkeypatch.setattr(measure_thoughts, "measured", None)
    assert main([*words, "--target", "cpu"]) == 2
    assert said in capsys.readouterr().err


def test_a_thought_that_has_no_one_end_is_refused():
    class Running:
        def post(self, path, body):
            return {"tokens": [1, 2, 3]}

    with pytest.raises(Failed, match="no one end"):
        measure_thoughts.token(Running(), "m", "</think>")


def test_what_is_no_cap_and_no_chat_is_a_line(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["seq8-shortcot", "--caps", "-3"])
    assert "--caps" in capsys.readouterr().err
    path = tmp_path / "chats.jsonl"
    path.write_text('{"text": "plain"}\n')
    assert main(["seq8-shortcot", "--chats", str(path)]) == 2
    assert "no line is a chat" in capsys.readouterr().err
    assert parser().parse_args(["seq8-shortcot", "--caps", "8,4,8"]).caps == [4, 8]


def test_what_was_only_shown_can_be_taken_up_into_a_record(tmp_path, monkeypatch, capsys):
    kept = Kept("name", fresh=True, cache=tmp_path / "kept")
    kept.put("a", {"thought": 1})
    rows = [sample("uncapped", 20), sample("cap 8", 8)]
    made = record("thoughts", "seq8-shortcot", summary(rows))
    path = tmp_path / "chats.jsonl"
    path.write_bytes(HELD_OUT.read_bytes())
    digests = []

    def measured(parsed, chosen, chats, digest, command):
        digests.append(digest)
        return made, kept

    monkeypatch.setattr(measure_thoughts, "measured", measured)
    thinks = SimpleNamespace(variant=SimpleNamespace(reasoning_parser="qwen3"))
    monkeypatch.setattr(measure_thoughts, "choose", lambda *_: thinks)
    monkeypatch.setattr(measure_thoughts, "folder_of", lambda name: tmp_path / name)
    words = ["seq8-shortcot", "--chats", str(path), "--json"]
    assert main([*words, "--no-record"]) == 0
    assert kept.get("a")
    assert main(words) == 0
    assert kept.get("a") is None
    assert digests == [hashlib.sha256(path.read_bytes()).hexdigest()] * 2
    capsys.readouterr()


def test_a_variant_without_thoughts_is_refused_before_an_engine_starts(monkeypatch, capsys):
    monkeypatch.setattr(measure_thoughts, "measured", lambda *_: pytest.fail("an engine starts"))
    assert main(["seq8", "--model", "tiny", "--target", "cpu"]) == 2
    assert "variant seq8 has no REASONING_PARSER" in capsys.readouterr().err
