"""lm-evaluation-harness itself over the fetched data, asking a server that always says the same."""

import json
from collections.abc import Iterator

import pytest

from scripts.datasets import FOLDER, is_here
from scripts.quality import harness
from scripts.quality.harness import Asked, Endpoint
from scripts.quality.sources import DATASETS
from tests.bake.parcels import environ
from tests.scripts.json_server import JsonServer, json_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Right for every second kind of question, and wrong for all others.
ANSWER = "no commas here\n\n```python\ndef has_close_elements(numbers, threshold):\n"
ANSWER += "    pairs = [(a, b) for i, a in enumerate(numbers) for b in numbers[i + 1:]]\n"
ANSWER += "    return any(abs(a - b) < threshold for a, b in pairs)\n```\nThe answer is B: 18"


@pytest.fixture
def server() -> Iterator[JsonServer]:
    message = {"role": "assistant", "content": ANSWER}
    with json_server(lambda _: (200, {"choices": [{"index": 0, "message": message}]})) as listening:
        yield listening


def test_every_task_of_a_package_is_asked_and_scored(server, tmp_path):
    pytest.importorskip("lm_eval", reason="pip install 'preheat[quality]'")
    names = [name for name in harness.TASKS if name != harness.HUB]
    if absent := [name for name in names if not is_here(DATASETS[name], FOLDER)]:
        pytest.skip(f"{', '.join(absent)} not fetched: make datasets")
    tasks = [Asked(name, DATASETS[name].items, [0, 1, 2, 7], 64) for name in names]
    told = harness.scores(tasks, Endpoint(server.url, "same", 2), tmp_path, environ(tmp_path))
    assert {name: one.unread for name, one in told.items() if one.unread} == {}
    told = {name: one.scores for name, one in told.items()}
    items = {name: lines(name) for name in names}
    for name in ("mmlu", "gpqa_diamond"):
        assert told[name] == [int(items[name][place]["answer"] == "B") for place in (0, 1, 2, 7)]
    assert told["gsm8k"] == [int(items["gsm8k"][place]["answer"] == "18") for place in (0, 1, 2, 7)]
    assert told["humaneval"] == [1, 0, 0, 0]
    assert set(told["ifeval"]) <= {0, 1}
    asked = [body for _, body in server.asked]
    assert len(asked) == 20
    assert {body["max_tokens"] for body in asked} == {64}
    assert {body["temperature"] for body in asked} == {0.0}
    assert {body["messages"][0]["role"] for body in asked} == {"user"}
    prompts = [body["messages"][0]["content"] for body in asked]
    for place in (0, 1, 2, 7):
        assert items["ifeval"][place]["prompt"] in prompts


def lines(name: str) -> list[dict]:
    raw = (FOLDER / f"{name}.jsonl").read_bytes()
    return [json.loads(line) for line in raw.split(b"\n") if line]
