"""A real model, as a newcomer without a GPU gets it: nobody names it, and it answers sensibly."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from scripts.served import Served, served
from serve.model import find_model
from serve.settings import REPOSITORY

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

NAME = "smollm2-135m"
# Of those that this model is sure of. At "What is the capital of France?" two first words are 0.1
# apart in its logits: llama.cpp says one, transformers the other.
QUESTIONS = {
    "What is the capital of Japan?": "Tokyo",
    "What is the largest ocean on Earth?": "Pacific",
    "What is the opposite of hot?": "cold",
}


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    weights = find_model(NAME, REPOSITORY / "experiments").path
    if not weights.exists():
        absent = f"{weights} is not there: make fetch MODEL={NAME}"
        if os.environ.get("REQUIRE_SMOLLM2"):
            pytest.fail(f"REQUIRE_SMOLLM2 is set: {absent}", pytrace=False)
        pytest.skip(absent)
    folder: Path = tmp_path_factory.mktemp("smollm2")
    settings = {
        "VARIANT": "baseline",
        "TARGET": "cpu",
        "PREHEAT_CACHE_ROOT": str(folder / "cache"),
        "PREHEAT_CACHE_POLICY": "off",
    }
    with served(settings, folder) as running:
        yield running


def test_it_is_the_model_of_a_variant_without_drafts_and_says_why(baseline):
    told = json.loads(baseline.get("/variant"))["model"]
    why = "default of target cpu for variants without an MTP head"
    assert (told["name"], told["architecture"]) == (NAME, "LlamaForCausalLM")
    assert told["why"] == why
    assert f" model {NAME}: {why}\n" in baseline.log.read_text(errors="replace")


@pytest.mark.parametrize("question", QUESTIONS)
def test_it_knows_what_a_model_of_its_size_knows(baseline, question):
    assert QUESTIONS[question] in ask(baseline, question).message.content


def test_the_templates_end_of_a_turn_stops_it(baseline):
    answer = ask(baseline, "What is the capital of Japan?")
    assert (answer.message.content, answer.finish_reason) == (
        "The capital of Japan is Tokyo.",
        "stop",
    )


def test_text_beyond_ascii_comes_back_as_it_was(baseline):
    # The tokenizer was rebuilt from the GGUF.
    asked = "Naïve café, 東京, 12,345 🦊"
    tokens = post(baseline, "/tokenize", {"prompt": asked})["tokens"]
    assert len(tokens) < len(asked.encode())
    assert post(baseline, "/detokenize", {"tokens": tokens})["prompt"] == asked


def post(running: Served, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = httpx2.post(running.url + path, json={"model": NAME, **body}, timeout=60)
    answer.raise_for_status()
    return answer.json()


def ask(running: Served, question: str):
    with OpenAI(base_url=f"{running.url}/v1", api_key="unused") as client:
        told = client.chat.completions.create(
            model=NAME,
            messages=[{"role": "user", "content": question}],
            max_tokens=64,
            temperature=0,
        )
    return told.choices[0]
