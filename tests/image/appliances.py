"""Containers of the appliance, started as they are in production, and asked things."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from docker import DockerClient
from docker.models.containers import Container

from bake.image.container import SANDBOX
from bake.image.verify import ask
from tests.image.checkouts import VARIANT

# A start from the baked cache on two busy cores takes 20 s; more is a hang.
START_SECONDS = 180
PYTHON = "/opt/venv/bin/python"


class NotSo(AssertionError):
    """What a container was to do and did not; with what it said."""


@dataclass(frozen=True)
class Appliance:
    """One container."""

    container: Container

    @property
    def said(self) -> str:
        return str(self.container.logs().decode(errors="replace"))

    @property
    def ours(self) -> str:
        """What it said, less the engine's own lines."""
        return "\n".join(line for line in self.said.splitlines() if "engine |" not in line)

    @property
    def state(self) -> dict[str, Any]:
        self.container.reload()
        state: dict[str, Any] = self.container.attrs["State"]
        return state

    @property
    def url(self) -> str:
        """Where this machine reaches it."""
        self.container.reload()
        (port,) = self.container.ports["8000/tcp"]
        return f"http://{port['HostIp']}:{port['HostPort']}"

    def ask(self, path: str) -> Any:
        """What the gateway answers, asked from inside."""
        return json.loads(ask(self.container, path))

    def run(self, *words: str, **options: Any) -> str:
        """What a command in it prints; one that fails raises."""
        status, said = self.container.exec_run([*words], **options)
        if status:
            raise NotSo(f"{words[0]}: exit status {status}: {said.decode(errors='replace')}")
        return str(said.decode())

    def processes(self) -> dict[int, tuple[str, str]]:
        """Command line and state letter of each process in it."""
        return {int(pid): tuple(told) for pid, told in json.loads(self.run(*PROCESSES)).items()}

    def until(self, true: Callable[[], object], seconds: float = START_SECONDS) -> Any:
        """The first true answer; none within ``seconds``, or its end, raises."""
        deadline = time.monotonic() + seconds
        while not (answer := true()):
            if time.monotonic() > deadline or not self.state["Running"]:
                raise NotSo(f"not within {seconds:g} s:\n{self.state}\n{self.said[-4000:]}")
            time.sleep(0.25)
        return answer

    def until_ready(self) -> "Appliance":
        self.until(lambda: "engine ready after" in self.said)
        return self

    def end(self, seconds: float = START_SECONDS) -> int:
        """Its exit status, once it has ended by itself."""
        return int(self.container.wait(timeout=seconds)["StatusCode"])


PROCESSES = (
    PYTHON,
    "-I",
    "-S",
    "-c",
    """
import json, os
told = {}
for pid in filter(str.isdecimal, os.listdir("/proc")):
    try:
        words = open(f"/proc/{pid}/cmdline").read().replace("\\0", " ").strip()
        told[pid] = words, open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0]
    except OSError:
        pass
print(json.dumps(told))
""",
)


@contextmanager
def appliance(client: DockerClient, image: str, **options: Any) -> Iterator[Appliance]:
    """A started container of ``image``, without a network unless ``options`` say otherwise."""
    env = {"VARIANT": VARIANT, "PREHEAT_NO_KEYS": "true", **options.pop("environment", {})}
    created = {"read_only": True, "tmpfs": {"/tmp": ""}, **SANDBOX, **options}
    made = client.containers.create(image, environment=env, **created)
    try:
        made.start()
        yield Appliance(made)
    finally:
        made.remove(force=True, v=True)


def published() -> dict[str, Any]:
    """Options for a port of this machine; the engine chooses it."""
    return {"network_mode": "bridge", "ports": {"8000/tcp": ("127.0.0.1", None)}}
