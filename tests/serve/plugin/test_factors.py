"""What is recorded of a key changes if, and only if, vLLM's own hash does."""

import json
import os
import subprocess
import sys

import pytest

from bake.explain import Side, explain
from serve.command import EARLY
from serve.plugin.factors import VARIABLE
from serve.settings import REPOSITORY

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]

TINY = REPOSITORY / "weights" / "tiny"
ARGS = {"model": str(TINY), "dtype": "bfloat16", "max_num_seqs": 8, "enable_prefix_caching": False}


def drafting(k: int) -> dict:
    return {"speculative_config": {"method": "mtp", "num_speculative_tokens": k}}


# name: environment, arguments; then the factors that must be named, in their groups.
HASHED = {
    "model path string": ({}, {"model": "LINK"}, {("model_config", "model")}),
    "process name prefix": (
        {"VLLM_PROCESS_NAME_PREFIX": "pod-7"},
        {},
        {("environment", "VLLM_PROCESS_NAME_PREFIX")},
    ),
    "plugins": ({"VLLM_PLUGINS": "preheat,x"}, {}, {("environment", "VLLM_PLUGINS")}),
    "ready timeout": (
        {"VLLM_ENGINE_READY_TIMEOUT_S": "77"},
        {},
        {("environment", "VLLM_ENGINE_READY_TIMEOUT_S")},
    ),
    "pod address": (
        {"VLLM_P2P_SIDE_CHANNEL_HOST": "10.0.0.7"},
        {},
        {("environment", "VLLM_P2P_SIDE_CHANNEL_HOST")},
    ),
    "sequences of a step": ({}, {"max_num_seqs": 4}, {("scheduler_config", "max_num_seqs")}),
    "type": ({}, {"dtype": "float32"}, {("model_config", "dtype")}),
    "length": ({}, {"max_model_len": 512}, {("model_config", "max_model_len")}),
    "drafting": ({}, drafting(4), {("speculative_config", "draft_model_config.dtype")}),
}
NOT_HASHED = {
    "nothing": ({}, {}),
    "asking for records": ({VARIABLE: "/tmp/factors"}, {}),
    "forcing a hit": ({"VLLM_FORCE_AOT_LOAD": "1"}, {}),
    "another cache root": ({"VLLM_CACHE_ROOT": "/tmp/elsewhere"}, {}),
    "another HOME": ({"HOME": "/tmp/elsewhere"}, {}),
    "another XDG": ({"XDG_CACHE_HOME": "/tmp/e", "XDG_CONFIG_HOME": "/tmp/f"}, {}),
    "another TMPDIR": ({"TMPDIR": "/var/tmp"}, {}),
    "served name": ({}, {"served_model_name": ["other"]}),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, dict]:
    """Every question of this file, asked together: vLLM's imports are dear."""
    link = tmp_path_factory.mktemp("model") / "tiny"
    link.symlink_to(TINY)
    cases = {
        **{name: (env, args) for name, (env, args, _) in HASHED.items()},
        **NOT_HASHED,
        "K=4": ({}, drafting(4)),
        "K=2": ({}, drafting(2)),
    }
    asked = [
        {"env": env, "args": {**ARGS, **args, **({"model": str(link)} if "model" in args else {})}}
        for env, args in cases.values()
    ]
    base = {"PATH": os.environ["PATH"], "HOME": "/root", "PYTHONPATH": str(EARLY)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.serve.plugin.hashed"],
        input=json.dumps(asked),
        env={**base, "VLLM_PLUGINS": "preheat", "HF_HUB_OFFLINE": "1"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(cases, json.loads(done.stdout.splitlines()[-1]), strict=True))


def between(a: dict, b: dict):
    return explain(Side("a", [a]), Side("b", [b]))


@pytest.mark.parametrize("case", HASHED)
def test_what_vllm_hashes_is_named_and_changes_the_hash(answers, case):
    found = between(answers["nothing"], answers[case])
    assert answers["nothing"]["hash"] != answers[case]["hash"]
    named = {(item.group, item.factor) for item in found.differences}
    assert HASHED[case][2] <= named


@pytest.mark.parametrize("case", NOT_HASHED)
def test_what_vllm_does_not_hash_changes_neither(answers, case):
    found = between(answers["nothing"], answers[case])
    assert answers["nothing"]["hash"] == answers[case]["hash"]
    assert not found.differences


def test_two_k_have_the_same_key_and_that_is_called_a_danger(answers):
    """Fails when vLLM hashes num_speculative_tokens (vllm#53366): then say so no longer."""
    found = between(answers["K=4"], answers["K=2"])
    assert answers["K=4"]["hash"] == answers["K=2"]["hash"]
    assert not found.differences
    assert "num_speculative_tokens is 4 in A and 2 in B, the same key" in found.dangers[0]


def test_listening_changes_nothing_of_the_key(answers):
    for answer in answers.values():
        assert answer["again"] == [answer["env"]["hash"], answer["config"]["hash"]]


def test_every_part_of_the_configuration_tells_its_factors(answers):
    parts = answers["K=4"]["config"]["parts"]
    assert {"model_config", "cache_config", "scheduler_config", "compilation_config"} <= set(parts)
    assert len(answers["K=4"]["env"]["factors"]) > 200
    assert parts["scheduler_config"]["factors"]["max_num_seqs"] == 8
    drafted = parts["speculative_config"]["factors"]["draft_model_config"]
    assert drafted["model"] == str(TINY)
    assert answers["K=4"]["inductor"]["torch_key"]


def test_no_record_is_written_unless_asked_for(monkeypatch):
    from serve.plugin import factors

    monkeypatch.delenv(VARIABLE, raising=False)
    assert not factors.needed()
