"""The compose files: what they promise, and the appliance and Prometheus run from them for real.

No Grafana can be had where this is tested: its part is checked as far as files go.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest

from scripts.served import free_port
from serve import __version__
from serve.settings import REPOSITORY, Settings
from tests.deploy.conftest import Prometheus, say, until
from tests.deploy.shipped import COMPOSE, COMPOSE_GPU, alerts, read

STAND_IN = REPOSITORY / "tests" / "deploy" / "prometheus.Dockerfile"
SERVICES = read(COMPOSE)["services"]
# What a person may have set is not for us.
SETTABLE = (
    "VARIANT",
    "PORT",
    "GPU",
    "APPLIANCE_",
    "PREHEAT_",
    "PROMETHEUS_",
    "GRAFANA_",
    "COMPOSE_",
)


def compose(*arguments: str, env: Mapping[str, str] | None = None, timeout: float = 300) -> str:
    """What ``docker compose`` prints; a failure fails the test with all that it said."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(SETTABLE)}
    done = subprocess.run(
        ["docker", "compose", *arguments],
        env=kept | dict(env or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def has(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


@pytest.fixture(scope="session")
def has_compose() -> None:
    if not has("docker", "compose", "version"):
        pytest.skip("no docker compose here")


@pytest.mark.parametrize("service", SERVICES)
class TestService:
    def test_it_writes_nowhere_and_may_do_nothing_special(self, service):
        asked = SERVICES[service]
        assert asked["read_only"] is True
        assert asked["cap_drop"] == ["ALL"]
        assert asked["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in asked
        assert "cap_add" not in asked

    def test_only_this_machine_reaches_it(self, service):
        assert all(port.startswith("127.0.0.1:") for port in SERVICES[service]["ports"])

    def test_its_image_can_be_chosen_and_is_pinned_by_a_tag_without_a_host(self, service):
        variable, _, default = SERVICES[service]["image"].strip("${}").partition(":-")
        # Not PREHEAT_IMAGE: what carries the prefix is a setting, or is refused as none.
        name = "APPLIANCE" if service == "preheat" else service.upper()
        assert variable == f"{name}_IMAGE"
        name, _, tag = default.partition(":")
        assert any(character.isdigit() for character in tag)
        assert "." not in name.split("/")[0]

    def test_what_it_mounts_is_there_and_read_only(self, service):
        for mount in SERVICES[service].get("volumes", ()):
            source, _, mode = mount.split(":") if mount.count(":") == 2 else (*mount.split(":"), "")
            if source.startswith("."):
                assert (COMPOSE.parent / source).is_dir()
                assert mode == "ro"


@pytest.mark.parametrize(
    ("file", "what"), [(COMPOSE, "cpu-tiny"), (COMPOSE_GPU, "cuda-qwen3.5-4b")]
)
def test_the_image_is_the_one_that_this_version_builds(file, what):
    image = read(file)["services"]["preheat"]["image"]
    assert image == f"${{APPLIANCE_IMAGE:-preheat:{__version__}-{what}}}"


def test_the_appliance_is_given_the_time_that_it_takes_to_stop():
    seconds = int(SERVICES["preheat"]["stop_grace_period"].removesuffix("s"))
    settings = Settings()
    assert seconds >= settings.drain_seconds + settings.stop_seconds + 10


def test_the_health_of_the_appliance_is_what_its_image_says():
    assert "healthcheck" not in SERVICES["preheat"]
    assert "HEALTHCHECK" in (REPOSITORY / "Dockerfile").read_text()


def test_prometheus_is_there_before_the_appliance_is_ready_and_grafana_after_prometheus():
    assert "depends_on" not in SERVICES["prometheus"]
    assert SERVICES["grafana"]["depends_on"] == {"prometheus": {"condition": "service_healthy"}}


@pytest.mark.docker
@pytest.mark.usefixtures("has_compose")
class TestConfig:
    def test_the_file_is_valid_and_needs_nothing_set(self):
        made = json.loads(compose("-f", str(COMPOSE), "config", "--format", "json"))
        assert set(made["services"]) == set(SERVICES)
        assert made["services"]["preheat"]["environment"]["VARIANT"] == "seq8-best"

    def test_what_is_set_arrives(self):
        env = {"VARIANT": "seq8", "PORT": "8123", "APPLIANCE_IMAGE": "mine:1"}
        made = json.loads(compose("-f", str(COMPOSE), "config", "--format", "json", env=env))
        preheat = made["services"]["preheat"]
        assert (preheat["image"], preheat["environment"]["VARIANT"]) == ("mine:1", "seq8")
        # The container's own port stays; PORT is this machine's.
        assert "PORT" not in preheat["environment"]
        (port,) = preheat["ports"]
        assert (port["host_ip"], port["published"], port["target"]) == ("127.0.0.1", "8123", 8000)

    def test_the_other_file_adds_one_gpu_and_takes_nothing_away(self):
        files = ("-f", str(COMPOSE), "-f", str(COMPOSE_GPU))
        preheat = json.loads(compose(*files, "config", "--format", "json"))["services"]["preheat"]
        (device,) = preheat["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}
        assert preheat["read_only"]
        assert "cuda" in preheat["image"]


@dataclass(frozen=True)
class Stack:
    """The project as it runs."""

    project: tuple[str, ...]
    env: Mapping[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.env['PORT']}"

    @property
    def prometheus(self) -> Prometheus:
        return Prometheus(f"127.0.0.1:{self.env['PROMETHEUS_PORT']}")

    def compose(self, *arguments: str) -> str:
        return compose(*self.project, *arguments, env=self.env)

    def inspect(self, service: str) -> dict:
        container = self.compose("ps", "--all", "--quiet", service).strip()
        done = subprocess.run(["docker", "inspect", container], capture_output=True, check=True)
        return json.loads(done.stdout)[0]


@pytest.fixture(scope="session")
def stack(has_compose: None, image: str) -> Iterator[Stack]:
    if not has("docker", "info"):
        pytest.skip("no Docker engine answers")
    name = f"preheat-test-{os.getpid()}"
    build = ["docker", "build", "--quiet", "--network", "host", "--tag", name, "-"]
    with STAND_IN.open("rb") as lines:
        subprocess.run(build, stdin=lines, check=True, timeout=300, stdout=subprocess.DEVNULL)
    env = {
        "APPLIANCE_IMAGE": image,
        "PROMETHEUS_IMAGE": name,
        "PORT": str(free_port()),
        "PROMETHEUS_PORT": str(free_port()),
    }
    running = Stack(("-f", str(COMPOSE), "-p", name), env)
    try:
        running.compose("up", "--detach", "--no-build", "--pull", "never", "preheat", "prometheus")
        yield running
    finally:
        running.compose("down", "--volumes", "--timeout", "60")
        subprocess.run(["docker", "image", "rm", name], check=False, stdout=subprocess.DEVNULL)


@pytest.mark.docker
@pytest.mark.timeout(600)
def test_the_appliance_is_served_and_watched_from_its_compose_file(stack):
    """One start, asked one thing after the other: it is the dear part."""
    logs = lambda: stack.compose("logs", "--no-color")  # noqa: E731

    until(lambda: health(stack, "prometheus") == "healthy", 60, logs)
    until(lambda: health(stack, "preheat") == "healthy", 300, logs)
    until(lambda: stack.prometheus.query("up == 1"), 30, logs)

    assert say(stack.url, "tiny", "What is the capital of France?") == 200
    (target,) = stack.prometheus.get("targets")["activeTargets"]
    assert (target["health"], target["labels"]["instance"]) == ("up", "preheat:8000")
    tokens = 'vllm:generation_tokens_total{instance="preheat:8000"} > 0'
    until(lambda: stack.prometheus.query(tokens), 30, logs)
    rules = [r for group in stack.prometheus.get("rules")["groups"] for r in group["rules"]]
    assert {rule["name"] for rule in rules} == set(alerts())
    assert stack.prometheus.query('ALERTS{alertstate="firing"}') == []

    for service in ("preheat", "prometheus"):
        granted = stack.inspect(service)["HostConfig"]
        assert granted["ReadonlyRootfs"]
        assert granted["CapDrop"] == ["ALL"]
        assert "no-new-privileges:true" in granted["SecurityOpt"]
        assert {it["HostIp"] for ports in granted["PortBindings"].values() for it in ports} == {
            "127.0.0.1"
        }

    # Prometheus keeps what it saw when it is made anew.
    before = str(time.time())
    stack.compose("up", "--detach", "--force-recreate", "--no-deps", "--wait", "prometheus")
    assert stack.prometheus.query(tokens, time=before)

    stack.compose("stop", "preheat")
    state = stack.inspect("preheat")["State"]
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False)
    until(lambda: stack.prometheus.query("up == 0"), 30, logs)


def health(stack: Stack, service: str) -> str:
    return stack.inspect(service)["State"].get("Health", {}).get("Status", "none")
