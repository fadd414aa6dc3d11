"""Real engines serve blobs of the tiny model, and the slices of two ranks; a damaged one, none.

What reaches the model is compared in ``tests/serve/plugin/test_weights.py``; here it is served.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from scripts.served import NotServed, Served, served
from serve.settings import REPOSITORY
from tests.hardware import avx512
from tests.integration.conftest import settings
from tests.serve.plugin.packed import damage

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

QUESTIONS = (
    "What is the capital of France?",
    "Count from one to ten.",
    "Say something about the sea.",
)
# Weights whose last bits differ answer alike for long, and not for ever.
TOKENS = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("blobs")


def bake(folder: Path, *words: str) -> Path:
    """The blob that a command makes, as a person types it."""
    out = folder / "-".join(words[:2] + words[-1:])
    store = str(folder / "store")
    code = "import sys, preheat; sys.exit(preheat.main())"
    arguments = ["bake", *words, "--out", str(out), "--store", store, "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        | {"TARGET": "cpu"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out


def serving(folder: Path, blob: Path, variant: str) -> Any:
    """The blob behind the gateway; each has a cache of its own, as its path is in every key."""
    beside = folder / f"run-{blob.name}"
    return served(settings(variant, folder / "cache") | {"MODEL": str(blob)}, beside)


def answers(running: Served) -> list[str]:
    with OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0) as client:
        model = client.models.list().data[0].id
        asked = [
            client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": question}],
                temperature=0,
                max_tokens=TOKENS,
                extra_body={"repetition_penalty": 1.0},
            )
            for question in QUESTIONS
        ]
    return [one.choices[0].message.content or "" for one in asked]


def loads(running: Served) -> list[dict[str, Any]]:
    told = json.loads(running.get("/variant"))
    return list(told["engine"]["weights"] if "engine" in told else told["weights"])


@pytest.fixture(scope="module", params=[pytest.param("int4", marks=avx512), "int5"])
def packed(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[str, Served]]:
    """A blob of one codec, with MTP: one that is served as it is stored, one that is decoded."""
    codec: str = request.param
    blob = bake(folder, "pack", "tiny", "--codec", codec)
    with serving(folder, blob, "seq8-best") as running:
        yield codec, running


def test_a_blob_is_served(packed: tuple[str, Served]) -> None:
    codec, running = packed
    assert all(answers(running))
    model, drafter = loads(running)
    assert (model["from"], model["drafter"], drafter["drafter"]) == ("blob", False, True)
    assert model["bytes_stored"] < 13_661_360
    # INT4 goes to vLLM's own kernels as it is stored.
    phases = {"map", "verify", "wait", "copy", "post-process"} | {"decode"} - {
        "decode" if codec == "int4" else ""
    }
    assert set(model["seconds"]) == phases


@pytest.fixture(scope="module")
def ranks(folder: Path) -> Iterator[Served]:
    """Two ranks of tensor parallelism, each with its own slices of model and drafter."""
    with serving(folder, bake(folder, "shard", "tiny", "--tp", "2"), "seq8-best") as running:
        yield running


@pytest.mark.nightly
def test_two_ranks_say_what_one_says(ranks: Served, seq8_best: Served) -> None:
    assert answers(ranks) == answers(seq8_best)


@pytest.mark.nightly
def test_each_rank_read_only_what_is_its_own(ranks: Served) -> None:
    told = loads(ranks)
    assert {(one["rank"], one["drafter"]) for one in told} == {
        (rank, drafter) for rank in (0, 1) for drafter in (False, True)
    }
    assert {one["from"] for one in told} == {"rank"}
    # Half of the model's 13.7 MB, and the norms that every rank has.
    assert all(one["bytes_stored"] < 7_000_000 for one in told)


def test_one_flipped_bit_starts_no_engine_and_the_tensor_is_named(folder: Path) -> None:
    blob = bake(folder, "pack", "tiny", "--codec", "q8_0")
    damage(blob, "model.layers.1.mlp.down_proj.weight")
    with pytest.raises(NotServed) as refused, serving(folder, blob, "baseline"):
        pass
    # What the gateway ends with, below all tracebacks.
    last_words = str(refused.value).rpartition("\npreheat: ")[2]
    assert "WeightsError: " in last_words
    assert "model.layers.1.mlp.down_proj.weight: " in last_words
