"""The Docker engine: reached or not, and what it can do. The edge; what is wrong becomes words."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import docker
from docker import DockerClient
from docker.errors import APIError, DockerException
from docker.types import DeviceRequest
from requests.exceptions import RequestException
from urllib3.exceptions import HTTPError

from bake.errors import BakeError

ANSWER_SECONDS = 10
# A build step can be silent for as long as wheels of some gigabytes take to come.
SILENCE_SECONDS = 1800
GIB = 2**30


@dataclass(frozen=True)
class Facts:
    """What the engine says of itself. ``free`` is None where its disk is not this machine's."""

    name: str
    runtimes: tuple[str, ...]
    networks: tuple[str, ...]
    root: Path
    free: int | None

    @property
    def bridged(self) -> bool:
        """Whether containers get a network of their own, and ports can be published."""
        return "bridge" in self.networks


@contextmanager
def engine() -> Iterator[DockerClient]:
    """A client of the engine that ``DOCKER_HOST`` names, or of the usual one.

    :raises BakeError: none answers, or it does not let us in.
    """
    where = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    try:
        client = docker.from_env(timeout=ANSWER_SECONDS)
        client.ping()
    except (DockerException, RequestException, ValueError, OSError) as error:
        raise _unreachable(where, error) from error
    client.api.timeout = SILENCE_SECONDS
    try:
        yield client
    except APIError as error:
        raise BakeError(
            f"the Docker engine refused: {error.explanation or error}",
            "its own log says more (journalctl --unit docker)",
        ) from error
    except (DockerException, RequestException, HTTPError) as error:
        raise BakeError(
            f"the Docker engine at {where} went away: {error}", "is it running still?"
        ) from error
    finally:
        client.close()


def _unreachable(where: str, error: BaseException) -> BakeError:
    cause = _system_error(error)
    if cause is not None and cause.errno in (errno.EACCES, errno.EPERM):
        return BakeError(
            f"no permission to talk to the Docker engine at {where}",
            "join its group (sudo usermod -aG docker $USER, then log in anew), or use sudo",
        )
    why = (cause.strerror if cause is not None else "") or str(error)
    return BakeError(
        f"no Docker engine answers at {where}: {why}",
        "start one (sudo systemctl start docker), or say where it is: DOCKER_HOST=unix:///…",
    )


def _system_error(error: BaseException | None) -> OSError | None:
    """What the system said at the bottom of what libraries made of it."""
    seen: set[int] = set()
    pending, found = [error], None
    while pending:
        now = pending.pop()
        if now is None or id(now) in seen:
            continue
        seen.add(id(now))
        if isinstance(now, OSError) and now.errno is not None:
            found = now
        pending += [now.__cause__, now.__context__]
        pending += [one for one in now.args if isinstance(one, BaseException)]
    return found


def facts(client: DockerClient) -> Facts:
    """What ``client``'s engine can do."""
    told = client.info()
    root = Path(told.get("DockerRootDir") or "/var/lib/docker")
    try:
        free = shutil.disk_usage(root).free if told.get("Name") == os.uname().nodename else None
    except OSError:
        # Ours by name, and still somewhere else: in a virtual machine.
        free = None
    return Facts(
        name=f"Docker {told.get('ServerVersion', '?')}",
        runtimes=tuple(told.get("Runtimes") or ()),
        networks=tuple(network.name for network in client.networks.list()),
        root=root,
        free=free,
    )


def check_room(known: Facts, needed: int) -> None:
    """Refuse to begin what would end on a full disk.

    :raises BakeError: saying needed and free bytes.
    """
    if known.free is not None and known.free < needed:
        raise BakeError(
            f"too little disk for the image: needed {needed / GIB:.1f} GiB in {known.root}, "
            f"free {known.free / GIB:.1f} GiB",
            "make room (docker system df tells what can go), then build again",
        )


def check_device(known: Facts, device: str) -> None:
    """Refuse to start what needs a GPU on an engine that cannot give one.

    :raises BakeError: saying how to get there, or around it.
    """
    if device == "cuda" and "nvidia" not in known.runtimes:
        raise BakeError(
            f"{known.name} has no NVIDIA runtime, and this target needs the GPU",
            "install nvidia-container-toolkit; without a GPU: make build-import CACHE=FILE",
        )


def devices(device: str) -> list[DeviceRequest]:
    """What a container asks for to see one GPU; nothing for a CPU."""
    return [DeviceRequest(count=1, capabilities=[["gpu"]])] if device == "cuda" else []
