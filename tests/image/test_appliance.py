"""The appliance as it ships, for real: what it may, what it writes, what it says, how it stops."""

import json
import time
from collections.abc import Iterator

import pytest
from docker import DockerClient
from openai import OpenAI

from bake.image import daemon
from tests.image.appliances import PYTHON, Appliance, appliance, published

pytestmark = [pytest.mark.docker, pytest.mark.engine, pytest.mark.timeout(1800)]

TALK = [{"role": "user", "content": "What is the capital of France?"}]
# No object: between the tokens of one, this model of two layers likes to put spaces for ever.
SCHEMA = {"enum": ["Paris is it", "Rome is it"]}
# As little as the platforms give that choose the user themselves.
ANYBODY = "4711:0"
# The engine's processes: whoever of them is killed, the others go, and all come again.
WORKER = "VLLM::Worker"


@pytest.fixture(scope="module")
def bridged(client: DockerClient) -> None:
    if not daemon.facts(client).bridged:
        pytest.skip("the engine has no bridge: no port can be published")


@pytest.fixture(scope="module")
def running(client: DockerClient, image: str, bridged: None) -> Iterator[Appliance]:
    """One that nobody stops nor breaks."""
    with appliance(client, image, **published()) as one:
        yield one.until_ready()


@pytest.fixture(scope="module")
def openai(running: Appliance) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0) as talking:
        yield talking


def chat(openai: OpenAI, **fields):
    asked = {"model": "tiny", "messages": TALK, "max_tokens": 24, "temperature": 0, **fields}
    return openai.chat.completions.create(**asked)


def test_its_health_check_finds_it_healthy(running):
    running.until(lambda: running.state["Health"]["Status"] == "healthy", 30)


def test_it_runs_as_its_own_user_and_pid_1_is_an_init(running):
    assert running.run("id", "-u").strip() == "10001"
    assert running.processes()[1][0] == "tini -- preheat serve run"


def test_it_has_no_privilege_and_can_get_none(running):
    status = dict(
        line.split(":\t") for line in running.run("cat", "/proc/self/status").splitlines()
    )
    assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")} == {0}
    assert status["NoNewPrivs"] == "1"


def test_it_holds_no_compiler_no_installer_and_nothing_that_bakes(running):
    for absent in ("gcc", "g++", "cc", "uv", "git"):
        assert running.container.exec_run(["which", absent])[0] == 1, absent
    # The base has one of its own; the environment that serves has none.
    assert "pip" not in running.run("ls", "/opt/venv/bin").split()
    found = running.container.exec_run([PYTHON, "-c", "import bake"])
    assert (found[0], b"No module named 'bake'" in found[1]) == (1, True)


def test_it_writes_nothing_but_to_tmp_and_there_next_to_nothing(running, openai):
    chat(openai)
    assert running.container.diff() is None
    sizes = running.run("find", "/tmp", "-type", "f", "-printf", "%s ").split()
    assert sum(map(int, sizes)) < 10_000


def test_nothing_of_the_image_may_be_written_by_its_user(running):
    owned = running.run("find", "/opt", "-not", "-type", "l", "-writable", "-print", "-quit")
    assert owned == ""


def test_it_says_that_everything_was_loaded_and_nothing_compiled(running):
    told = running.ask("/variant")
    cache = told["engine"]["compile_cache"]
    assert (cache["loaded"], cache["compiled"], cache["refused"]) == (2, 0, [])
    assert told["cache"]["used"]
    assert running.said.count("compile cache: 2 loaded, 0 compiled, 0 refused") == 1


def test_a_chat_is_answered_through_the_published_port(openai):
    answer = chat(openai)
    assert "Paris" in answer.choices[0].message.content
    assert answer.usage.completion_tokens > 0


def test_a_stream_says_the_same_as_the_whole_answer(openai):
    parts = [chunk.choices[0].delta.content or "" for chunk in chat(openai, stream=True)]
    assert len(parts) > 2
    assert "".join(parts) == chat(openai).choices[0].message.content


def test_an_answer_fits_the_schema_that_was_asked_for(openai):
    form = {"type": "json_schema", "json_schema": {"name": "capital", "schema": SCHEMA}}
    answer = chat(openai, response_format=form)
    assert json.loads(answer.choices[0].message.content) in SCHEMA["enum"]


@pytest.mark.usefixtures("bridged")
def test_a_sigterm_in_mid_stream_lets_the_stream_end_whole_under_any_user(client, image):
    tokens = 1500
    with appliance(client, image, user=ANYBODY, **published()) as one:
        one.until_ready()
        assert one.run("sh", "-c", "echo $(id -u):$(id -g)").strip() == ANYBODY
        with OpenAI(base_url=f"{one.url}/v1", api_key="unused", max_retries=0) as openai:
            stream = chat(
                openai,
                stream=True,
                max_tokens=tokens,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True},
            )
            chunks = [next(stream)]
            began = time.monotonic()
            one.container.kill("SIGTERM")
            chunks += stream
            ended = time.monotonic()
        assert one.end() == 0
        assert time.monotonic() - ended < 20
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert reasons[-1] == "length"
    assert chunks[-1].usage.completion_tokens == tokens
    # Or nothing was drained: it was over before.
    assert ended - began > 0.5


def test_an_engine_killed_for_want_of_memory_comes_again_from_the_baked_cache(client, image):
    with appliance(client, image, mem_limit="4g", memswap_limit="4g") as one:
        one.until_ready()
        (worker,) = (pid for pid, (words, _) in one.processes().items() if words == WORKER)
        # exec_run: the hog itself may be killed too, once the worker is.
        one.container.exec_run([PYTHON, "-I", "-S", "-c", HOG, str(worker)])
        one.until(lambda: one.said.count("engine ready after") == 2)

        assert worker not in one.processes()
        told = one.ask("/variant")["engine"]
        cache = told["compile_cache"]
        assert (told["restarts"], cache["loaded"], cache["compiled"]) == (1, 2, 0)
        assert one.ask("/v1/models")["data"]
        assert one.state["OOMKilled"]
        zombies = {pid: words for pid, (words, state) in one.processes().items() if state == "Z"}
        assert zombies == {}
        one.container.stop(timeout=60)
        assert one.state["ExitCode"] == 0


# Takes memory until the kernel has ended the process that it points at.
HOG = """
import os, sys
victim = sys.argv[1]
open(f"/proc/{victim}/oom_score_adj", "w").write("1000")
taken = []
while "VLLM::Worker" in open(f"/proc/{victim}/cmdline").read():
    taken.append(bytearray(8 << 20))
"""


@pytest.mark.parametrize("size", ["4k", "64k"])
def test_a_tmp_of_a_few_kilobytes_is_enough_even_when_it_is_full(client, image, size):
    with appliance(client, image, tmpfs={"/tmp": f"size={size}"}) as one:
        one.until_ready()
        # 0 or 1: it is full at some point.
        one.container.exec_run(["sh", "-c", "cat /dev/zero >/tmp/full"])
        assert "100%" in one.run("df", "/tmp")
        assert one.ask("/v1/models")["data"]
        one.container.stop(timeout=60)
        assert one.state["ExitCode"] == 0


def test_it_starts_with_the_shared_memory_of_a_container_that_nobody_asked_more_for(running):
    running.container.reload()
    assert running.container.attrs["HostConfig"]["ShmSize"] == 64 * 2**20
