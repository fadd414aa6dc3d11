"""The application on a real Ray: what a replica that goes, comes or is killed does to requests."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scripts.served import free_port
from serve.keeper import descendants
from serve.settings import REPOSITORY
from tests.deploy.conftest import until
from tests.deploy.visitors import NotWhole, ask, said

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

PYTHON = REPOSITORY / ".cache" / "ray" / "bin" / "python"
SERVED = REPOSITORY / "tests" / "serve" / "served.py"
# Two replicas on a machine of two cores.
TWO = {
    "settings": {"PREHEAT_NO_KEYS": "true"},
    "body_mib": 1,
    "min_replicas": 2,
    "max_replicas": 2,
    "cpus": 0.1,
    "drain_seconds": 15,
    "stop_seconds": 3,
}


@dataclass(frozen=True)
class Ray:
    """One, with the application on it."""

    process: "subprocess.Popen[str]"
    url: str

    def told(self, line: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"Ray ended: {self.process.wait(60)}"
        return json.loads(line)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ray]:
    """Two replicas with the fake engine."""
    fake = {"variant": "fake", "command": [sys.executable, str(SERVED)]}
    with on_ray({**TWO, **fake}, tmp_path_factory.mktemp("ray")) as running:
        yield running


@contextmanager
def on_ray(arguments: dict[str, Any], folder: Path) -> Iterator[Ray]:
    """A Ray of its own with the application, ready."""
    if not PYTHON.is_file():
        why = f"{PYTHON} is not there: make ray"
        if os.environ.get("REQUIRE_RAY"):
            pytest.fail(f"REQUIRE_RAY is set: {why}", pytrace=False)
        pytest.skip(why)
    port, log = free_port(), folder / "log"
    kept = {name: os.environ[name] for name in ("PATH", "DOCKER_HOST") if name in os.environ}
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [str(PYTHON), "-m", "tests.deploy.ray.driver", str(port), json.dumps(arguments)],
            cwd=REPOSITORY,
            env={**kept, "HOME": os.environ.get("HOME", "/")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    running = Ray(process, f"http://127.0.0.1:{port}")
    try:
        assert running.answer() == {"ready": True}, log.read_text()[-4000:]
        yield running
        assert running.told("stop") == {"stopped": True}
        assert process.wait(60) == 0
    finally:
        for pid in (*descendants(process.pid), process.pid):
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, 9)
        process.wait(60)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def gateways(replica: int) -> list[int]:
    """The gateway's processes of one replica, and the engine's."""
    return list(descendants(replica))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "whoever reaches Ray's proxy would be let in"),
        ({"settings": {"PREHEAT_NO_KEYS": "true"}, "min_replicas": 2}, "min_replicas 2 is above 1"),
        ({"settings": {"PREHEAT_NO_KEYS": "true", "PORT": "1"}}, "PORT: said by arguments"),
        ({"replicas": 2}, "Extra inputs are not permitted"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arguments_that_cannot_be_are_told(served, arguments, told):
    code = "from deploy.ray.appliance import Arguments; import sys; "
    code += "Arguments.model_validate_json(sys.argv[1])"
    done = subprocess.run(
        [str(PYTHON), "-c", code, json.dumps(arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert told in done.stderr


def test_a_request_meets_the_gateway_and_the_engine(served):
    for stream in (True, False):
        ask(served.url, said("tiny", "hello", stream=stream, tokens=4))
    with urllib.request.urlopen(f"{served.url}/variant", timeout=30) as answer:
        assert json.load(answer)["variant"] == "fake"
        assert answer.headers["x-request-id"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{served.url}/nowhere", timeout=30)
    with refused.value as error:
        assert json.load(error)["error"]["code"] == "unknown_route"


def test_a_body_that_is_too_large_is_refused_and_the_replica_lives(served):
    large = {**said("tiny", "x" * 2**21, stream=False), "max_tokens": 1}
    with pytest.raises(NotWhole, match=r"status 413: .*body_too_large"):
        ask(served.url, large)
    ask(served.url, said("tiny", "small", stream=False, tokens=1))


def test_more_and_fewer_replicas_lose_nothing(served, visited):
    with visited(served.url) as seen:
        for count in (3, 1, 2):
            assert len(served.told(f"scale {count}")) == count
    assert seen.lost == []
    assert seen.whole > 10


def test_a_killed_replica_takes_its_own_requests_along_and_no_other(served, visited):
    before = served.told("replicas")
    left = gateways(before[0])
    with visited(served.url, clients=4) as seen:
        time.sleep(1)
        killed = served.told("kill 0")
        until(lambda: len(served.told("replicas")) == 2 and killed not in served.told("replicas"))
        at_once = len(seen.lost)
        time.sleep(3)
        # Those it was answering have ended, each client heard of it, and nobody after them.
        assert len(seen.lost) == at_once <= 4
    assert seen.whole > 10
    # Its gateway has drained and is gone, and so is the engine.
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))


def test_a_client_that_leaves_ends_its_request_in_the_engine(served):
    connection = urllib.request.Request(
        f"{served.url}/v1/completions",
        json.dumps(said("tiny", "x", stream=True, tokens=1000)).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(connection, timeout=30) as answer:
        answer.read(1)
    # Whichever replica is asked, one of two.
    until(lambda: any(aborted(served.url) for _ in range(8)), 20)


def aborted(url: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    (line,) = [one for one in text.splitlines() if one.startswith("fake_aborted_total ")]
    return float(line.rpartition(" ")[2])


@pytest.mark.docker
@pytest.mark.timeout(1800)
def test_a_replica_of_the_baked_image_that_goes_loses_nothing(
    image, visited, record_property, tmp_path
):
    """vLLM in a container for each replica, from the baked caches."""
    baked = {"variant": "seq8-best", "command": in_container(image), "start_seconds": 600}
    with on_ray({**TWO, **baked, "drain_seconds": 60}, tmp_path) as running:
        with visited(running.url, clients=2) as seen:
            time.sleep(5)
            assert len(running.told("scale 1")) == 1
            time.sleep(5)
        with urllib.request.urlopen(f"{running.url}/variant", timeout=60) as answer:
            cache = json.load(answer)["engine"]["compile_cache"]
        for name in ("compiled", "loaded"):
            record_property(name, cache[name])
    assert seen.lost == []
    assert seen.whole > 10
    assert (cache["compiled"], cache["refused"]) == (0, [])
    assert cache["loaded"] > 0


def in_container(image: str) -> list[str]:
    """The command of a replica, as docs/ray.md has it: variables by name, the host's network."""
    names = [
        "VARIANT",
        "PORT",
        "PREHEAT_HOST",
        "PREHEAT_NO_KEYS",
        "PREHEAT_DRAIN_SECONDS",
        "PREHEAT_STOP_SECONDS",
        "PREHEAT_START_SECONDS",
    ]
    told = [word for name in names for word in ("--env", name)]
    hardened = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"]
    return ["docker", "run", "--rm", "--network", "host", *hardened, *told, image]
