"""The model that ships: its files, its tokenizer, its chat template, and its record.

The numbers of the record are computed again here, by transformers instead of our own network.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import random
import struct
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "weights" / "tiny"
REFERENCE = Path(__file__).with_name("reference.py")
RECORD = json.loads((FOLDER / "training.json").read_text("utf-8"))
CONFIG = json.loads((FOLDER / "config.json").read_text("utf-8"))
HELD_OUT = [json.loads(line) for line in (FOLDER / "heldout.jsonl").read_text("utf-8").splitlines()]
FRANCE = (
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)


def tensors() -> dict[str, Any]:
    """The safetensors header, read without the library."""
    with (FOLDER / "model.safetensors").open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return header


# --- files ------------------------------------------------------------------------------------


def test_all_files_together_fit_the_repository() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert sum(sizes.values()) <= 16_000_000, sizes
    assert set(sizes) == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "heldout.jsonl",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    }
    assert sizes["heldout.jsonl"] <= 200_000


def test_the_record_belongs_to_these_files() -> None:
    for name, expected in RECORD["sha256"].items():
        found = hashlib.sha256((FOLDER / name).read_bytes()).hexdigest()
        assert found == expected, name


def test_every_matrix_can_be_quantized_in_groups_of_256() -> None:
    narrow = {
        name: entry["shape"]
        for name, entry in tensors().items()
        if len(entry["shape"]) == 2 and entry["shape"][1] % 256
    }
    assert not narrow


def test_everything_is_bf16_and_the_drafter_is_complete() -> None:
    found = tensors()
    assert {entry["dtype"] for entry in found.values()} == {"BF16"}
    drafter = {name.removeprefix("mtp.") for name in found if name.startswith("mtp.")}
    norms = {"norm.weight", "pre_fc_norm_hidden.weight", "pre_fc_norm_embedding.weight"}
    assert norms | {"fc.weight", "layers.0.self_attn.q_proj.weight"} <= drafter
    assert found["mtp.fc.weight"]["shape"] == [256, 512]
    count = sum(math.prod(entry["shape"]) for entry in found.values())
    assert count == RECORD["parameters"]


def test_the_config_is_what_vllm_expects_of_a_text_model() -> None:
    assert CONFIG["architectures"] == ["Qwen3_5ForCausalLM"]
    assert CONFIG["model_type"] == "qwen3_5_text"
    assert CONFIG["layer_types"] == ["linear_attention"] * 3 + ["full_attention"]
    assert CONFIG["mtp_num_hidden_layers"] == 1
    assert CONFIG["tie_word_embeddings"] is True
    assert "mrope_section" not in CONFIG["rope_parameters"]


# --- tokenizer --------------------------------------------------------------------------------


@functools.cache
def tokenizer() -> Any:
    return pytest.importorskip("tokenizers").Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_the_tokenizer_but_for_normalisation(text: str) -> None:
    ids = tokenizer().encode(text).ids
    back = tokenizer().decode(ids, skip_special_tokens=False)
    assert back == unicodedata.normalize("NFC", text)


def test_the_vocabulary_has_the_stated_size_and_markers() -> None:
    assert tokenizer().get_vocab_size() == CONFIG["vocab_size"] == 16384
    config = json.loads((FOLDER / "tokenizer_config.json").read_text("utf-8"))
    special = {e["content"] for e in config["added_tokens_decoder"].values() if e["special"]}
    plain = {e["content"] for e in config["added_tokens_decoder"].values() if not e["special"]}
    assert special == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    assert plain == {
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<tool_response>",
        "</tool_response>",
    }
    for text in special | plain:
        assert len(tokenizer().encode(text).ids) == 1
    assert CONFIG["eos_token_id"] == tokenizer().token_to_id("<|im_end|>")


# --- chat template ----------------------------------------------------------------------------


@functools.cache
def template() -> Any:
    """Compiled as transformers compiles it."""
    sandbox = pytest.importorskip("jinja2.sandbox")

    def refuse(message: str) -> None:
        raise ValueError(message)

    env = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    env.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
    env.globals["raise_exception"] = refuse
    return env.from_string((FOLDER / "chat_template.jinja").read_text("utf-8"))


def render(messages: list[dict[str, Any]], **options: Any) -> str:
    text: str = template().render(messages=messages, **options)
    return text


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}},
}


def test_a_question_opens_with_the_empty_thought_by_default() -> None:
    asked = [user("What is the capital of France?")]
    assert render(asked, add_generation_prompt=True) == FRANCE
    assert render(asked, add_generation_prompt=True, enable_thinking=False) == FRANCE
    assert render(asked) == FRANCE.split("<|im_start|>assistant", maxsplit=1)[0]


def test_thinking_leaves_the_thought_open() -> None:
    text = render([user("Hi")], add_generation_prompt=True, enable_thinking=True)
    assert text.endswith("<|im_start|>assistant\n<think>\n")


def test_a_system_message_comes_first_or_not_at_all() -> None:
    text = render([{"role": "system", "content": " Be brief. "}, user("Hi")])
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi")
    with pytest.raises(ValueError, match="must come first"):
        render([user("Hi"), {"role": "system", "content": "late"}])


def test_earlier_thoughts_are_stripped() -> None:
    history = [user("1?"), assistant("<think>\nhm\n</think>\n\nOne."), user("2?")]
    text = render(history, add_generation_prompt=True)
    assert "hm" not in text
    assert "<|im_start|>assistant\nOne.<|im_end|>\n" in text


def test_tools_are_listed_after_the_system_text() -> None:
    text = render([{"role": "system", "content": "S"}, user("Hi")], tools=[WEATHER])
    assert text.startswith("<|im_start|>system\nS\n\n# Tools\n\n")
    assert "<tools>\n" + json.dumps(WEATHER) + "\n</tools>" in text


@pytest.mark.parametrize("arguments", [{"city": "Zürich"}, '{"city": "Zürich"}'])
def test_tool_calls_and_results_are_marked(arguments: Any) -> None:
    call = {"function": {"name": "get_weather", "arguments": arguments}}
    history = [
        user("Weather?"),
        assistant(None, tool_calls=[call, call]),
        {"role": "tool", "content": "sunny"},
        {"role": "tool", "content": "rain"},
    ]
    text = render(history, tools=[WEATHER], add_generation_prompt=True)
    block = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
    assert f"<|im_start|>assistant\n{block}\n{block}<|im_end|>\n" in text
    responses = "".join(
        f"\n<tool_response>\n{answer}\n</tool_response>" for answer in ("sunny", "rain")
    )
    assert f"<|im_start|>user{responses}<|im_end|>\n<|im_start|>assistant" in text


def test_text_parts_are_joined_and_images_refused() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert "user\nab<|im_end|>" in render([user(parts)])
    with pytest.raises(ValueError, match="only text"):
        render([user([{"type": "image_url", "image_url": {"url": "x"}}])])


def test_nonsense_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="no messages"):
        render([])
    with pytest.raises(ValueError, match="unknown role: poet"):
        render([{"role": "poet", "content": "x"}])


def test_training_saw_what_the_template_renders() -> None:
    pytest.importorskip("tokenizers")
    from scripts.tiny import chat, markup
    from scripts.tiny.facts import Country

    france = Country("France", "Paris", "euro", "EUR", "Europe", "West", "French", ".fr", ())
    facts = chat.Facts([france], [], [], [])
    kinds = [["capital"], ["small-talk", "capital"], ["about"]]
    rng = random.Random(0)
    talks = [chat._conversation(rng, facts, kind) for kind in kinds * 20]
    talks += [chat.tool_call(rng, facts) for _ in range(20)]
    for talk in talks:
        last = talk.turns[-1]
        messages = [{"role": t.role, "content": t.content} for t in talk.turns[:-1]]
        options: dict[str, Any] = {"tools": list(talk.tools)} if talk.tools else {}
        text = render(
            messages, add_generation_prompt=True, enable_thinking=bool(last.thought), **options
        )
        thought = f"{last.thought}\n</think>\n\n" if last.thought else ""
        assert markup.render(talk) == f"{text}{thought}{last.content}<|im_end|>\n"


# --- the record, computed again ---------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    """One process of transformers answers everything that is asked of it below."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    asked = {
        "score": [item["text"] for item in HELD_OUT],
        "generate": [FRANCE],
        "encode": [item["text"] for item in HELD_OUT],
        "limit": 16,
    }
    done = subprocess.run(
        [sys.executable, str(REFERENCE), str(FOLDER)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=80,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answered: dict[str, Any] = json.loads(done.stdout)
    return answered


@pytest.mark.torch
def test_transformers_tokenizer_gives_our_ids(reference: dict[str, Any]) -> None:
    for item, ids in zip(HELD_OUT, reference["encode"], strict=True):
        assert tokenizer().encode(item["text"]).ids == ids, item["name"]


@pytest.mark.torch
def test_held_out_perplexity_agrees_with_the_record(reference: dict[str, Any]) -> None:
    sums: dict[str, list[float]] = {}
    for item, (nll, count) in zip(HELD_OUT, reference["score"], strict=True):
        total = sums.setdefault(item["source"].split("/")[0], [0.0, 0.0])
        total[0] += nll
        total[1] += count
    recorded = RECORD["held_out"]["sources"]
    assert set(sums) == set(recorded)
    for source, (nll, count) in sums.items():
        assert count == recorded[source]["tokens"], source
        found = math.exp(nll / count)
        assert found == pytest.approx(recorded[source]["perplexity"], rel=0.01), source
        assert found < recorded[source]["unigram_perplexity"] / 2, source


@pytest.mark.torch
def test_the_capital_of_france_is_known(reference: dict[str, Any]) -> None:
    assert reference["generate"] == ["The capital of France is Paris.<|im_end|>"]


def test_the_recorded_perplexity_is_far_below_unigrams() -> None:
    overall = RECORD["held_out"]["overall"]
    assert overall["perplexity"] < overall["unigram_perplexity"] / 4
    assert overall["tokens"] > 20_000


def test_the_model_card_states_the_numbers_of_the_record() -> None:
    card = (FOLDER / "README.md").read_text("utf-8")
    overall = RECORD["held_out"]["overall"]
    length = RECORD["offline_acceptance"]["all"]["mean_length"]
    for number in (overall["perplexity"], overall["unigram_perplexity"], length):
        assert f"{number:.2f}" in card, number
    assert f"{RECORD['tokens_seen']:,}" in card


def test_the_drafter_was_measured_above_its_bar() -> None:
    assert RECORD["offline_acceptance"]["all"]["mean_length"] >= 2.0
