"""Proves an image: started as it will be, read-only and without a network, it does as it was baked.

Nothing compiled, everything loaded, the recorded tokens to the recorded prompt, no root, and a
SIGTERM that ends it. What it says is read by ``serve/ask.py`` inside: no port is published.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from docker import DockerClient
from docker.models.containers import Container

from bake import answer
from bake.errors import BakeError
from bake.image import labels
from bake.image.bakery import IN_IMAGE
from bake.image.container import REBUILD, container, digest, end, fetch, output, start
from bake.image.daemon import devices
from bake.image.labels import Holds
from bake.progress import Progress
from serve import identity, manifest

ASK = ("/opt/venv/bin/python", "-I", "-S", "/opt/preheat/serve/ask.py")
WEIGHTS = "/opt/preheat/weights"
CODE = "/opt/preheat/serve"
READY = "engine ready after"
# The gateway drains for 30 s and gives the engine 15 to stop.
STOP_SECONDS = 60
TAIL_LINES = 15


@dataclass(frozen=True)
class Verified:
    """One variant of an image that stood the test. ``seconds``: container start to first token."""

    variant: str
    seconds: float
    phases: dict[str, float]
    loaded: int
    text: str

    def sentence(self) -> str:
        """For a person."""
        return (
            f"{self.variant}: first token {self.seconds:.1f} s after the container's start; "
            f"compiled 0, loaded {self.loaded}; the recorded tokens"
        )


def verify(
    client: DockerClient, image: str, holds: Holds, variants: Sequence[str], progress: Progress
) -> list[Verified]:
    """Start each of ``variants`` of an image that ``check_image`` passed, and judge what it does.

    :raises BakeError: naming the variant and the first thing that is not as it should be.
    """
    if absent := [v for v in variants if v not in holds.variants]:
        raise BakeError(
            f"{image}: {', '.join(absent)} is not baked into it",
            f"there are: {', '.join(holds.variants) or 'none'}",
        )
    return [_verify(client, image, holds, variant, progress) for variant in variants]


def check_image(client: DockerClient, image: str) -> Holds:
    """What the image holds, once all that can be known without serving is known to be right.

    :raises BakeError: it is none of ours, runs as root, or a file in it is not what was built.
    """
    with container(client, image) as one:
        holds = labels.parse(one.attrs["Config"].get("Labels"))
        if isinstance(holds, str):
            raise BakeError(f"{image}: {holds}", "build one: make build")
        found = digests(one)
        found |= {
            v: digest(one, f"{IN_IMAGE}/{holds.root(v)}/{manifest.NAME}") for v in holds.baked
        }
    for what, built in {**holds.digests, **holds.baked}.items():
        if found[what] != built:
            raise BakeError(
                f"{image}: the files of {what} are not what was built "
                f"(expected {built[:19]}…, got {found[what][:19]}…)",
                REBUILD,
            )
    if output(client, image, ["id", "-u"]).strip() == b"0":
        raise BakeError(f"{image}: would run as root", REBUILD)
    return holds


def digests(one: Container) -> dict[str, str]:
    """SHA-256 over the weights and our own code in a container, by the names of their labels."""
    return {"weights": digest(one, WEIGHTS), "code": digest(one, CODE)}


def _verify(
    client: DockerClient,
    image: str,
    holds: Holds,
    variant: str,
    progress: Progress,
) -> Verified:
    options = {
        "environment": {
            "VARIANT": variant,
            "PREHEAT_CACHE_POLICY": "require",
            # No port of it is published.
            "PREHEAT_NO_KEYS": "true",
        },
        "read_only": True,
        "tmpfs": {"/tmp": ""},  # noqa: S108 - the container's own
        "device_requests": devices(holds.device),
    }
    with container(client, image, **options) as one:
        progress.step(f"{variant}: starting")
        start(one)
        seconds = _until_ready(one, variant)
        progress.step(f"{variant}: asking")
        told = json.loads(ask(one, "/variant"))
        recorded = _kept(one, f"{IN_IMAGE}/{holds.root(variant)}")
        problems = _problems(told, recorded[0])
        said = answer.parse(ask(one, recorded[1].path, json.dumps(recorded[1].body)))
        if differs := answer.differs(recorded[1], said):
            problems.append(differs)
        one.stop(timeout=STOP_SECONDS)
        if status := end(one):
            problems.append(f"ended with exit status {status} at SIGTERM, not 0")
        if problems:
            raise BakeError(f"{variant}: " + "\n  ".join(problems), REBUILD)
        engine = told["engine"]
        loaded = engine["compile_cache"]["loaded"]
        return Verified(variant, round(seconds, 2), engine["seconds"], loaded, said.text)


def _until_ready(one: Container, variant: str) -> float:
    """Seconds from the container's start until its engine has generated a token.

    By the engine's clock, which stamps each line: whoever asks again and again slows it down.

    :raises BakeError: it ended before.
    """
    tail: list[str] = []
    for raw in one.logs(stream=True, follow=True, timestamps=True):
        stamp, _, line = raw.decode(errors="replace").rstrip().partition(" ")
        tail = [*tail[-TAIL_LINES:], line]
        if READY in line:
            one.reload()
            return _seconds(one.attrs["State"]["StartedAt"], stamp)
    status = end(one)
    ours = [line for line in tail if "engine |" not in line] or tail
    raise BakeError(
        f"{variant} did not start: exit status {status}\n"
        + "\n".join(f"  | {line}" for line in ours)
    )


def _seconds(started: str, ready: str) -> float:
    # RFC 3339 with nanoseconds, of which Python takes six digits.
    at = [datetime.fromisoformat(time.removesuffix("Z")[:26]) for time in (started, ready)]
    return (at[1] - at[0]).total_seconds()


def ask(one: Container, path: str, body: str | None = None) -> bytes:
    """What the gateway in a running container answers.

    :raises BakeError: nothing, or an error.
    """
    words = [*ASK, path, *([body] if body is not None else []), "--timeout", "60"]
    done = one.exec_run(words, demux=True)
    out, err = done.output
    if done.exit_code:
        why = (err or out or b"").decode(errors="replace").strip()
        raise BakeError(f"{path} was not answered: {why}")
    return bytes(out or b"")


def _kept(one: Container, root: str) -> tuple[identity.Identity, answer.Recorded]:
    """What stands in a baked root of the image: who it is, and what it answered."""
    with tempfile.TemporaryDirectory(prefix="preheat-") as folder:
        for name in (identity.FILE, answer.FILE):
            fetch(one, f"{root}/{name}", Path(folder))
        return (
            identity.parse((Path(folder) / identity.FILE).read_bytes()),
            answer.load((Path(folder) / answer.FILE).read_bytes()),
        )


def _problems(told: dict[str, Any], baked: identity.Identity) -> list[str]:
    cache, engine = told["cache"], told["engine"]["compile_cache"]
    problems = []
    if not cache["used"]:
        problems.append(f"the baked cache was not used: {'; '.join(cache['reasons'])}")
    if engine["compiled"]:
        problems.append(f"compiled {engine['compiled']} graphs, expected 0")
    if engine["refused"]:
        problems.append(f"refused {engine['refused']}")
    if engine["loaded"] != len(baked.graphs):
        problems.append(f"loaded {engine['loaded']} graphs, {len(baked.graphs)} were baked")
    if told["engine"].get("without_baked_cache"):
        problems.append("fell back to a start without the baked cache")
    return problems
