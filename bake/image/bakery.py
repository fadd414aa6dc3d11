"""Bakes in a container of the image, on the device, what will be a layer of it.

A root that was baked from the same inputs is used again: each lies in its folder beside a file
that holds the digest of all that it was made from.
"""

import hashlib
import json
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from docker import DockerClient

from bake import tree
from bake.errors import BakeError
from bake.image.container import container, end, fetch
from bake.image.daemon import devices
from bake.progress import Progress
from serve import manifest

IN_IMAGE = "/opt/preheat/baked"
TAIL_LINES = 15
# Of our own code, what a baked root depends on: how an engine is started, patched and warmed.
INPUTS = (
    "serve/plugin/**/*.py",
    "serve/command.py",
    "serve/forkserver.py",
    "serve/launch.py",
    "bake/answer.py",
    "bake/cache.py",
    "bake/trial.py",
    "bake/warm.py",
)
# Of the layers that a bake runs on, the last are told otherwise. Weights, in two: by the digest of
# those of one variant, so that another's change nothing. What compiles, in two: by its packages,
# as it is installed anew on other weights. Our code, in three: see above.
LAST_LAYERS = 2 + 2 + 3


def key_of(
    identity: Mapping[str, Any], layers: Sequence[str], told: Mapping[str, str], repository: Path
) -> str:
    """SHA-256 over everything that a bake is made from.

    ``identity`` is what the image says of the variant on this device; ``layers`` are the digests
    of what it runs on: system, torch, vLLM, weights, compiler, code. ``told`` stands for the last.
    """
    sources = {
        str(path.relative_to(repository)): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in INPUTS
        for path in repository.glob(pattern)
    }
    below = [*layers[:-LAST_LAYERS]]
    made_from = {"identity": identity, "layers": below, "sources": sources, "told": told}
    canonical = json.dumps(made_from, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def is_current(root: Path, key: str) -> bool:
    """Whether ``root`` was baked from what ``key`` stands for, and is still what was baked."""
    try:
        return _key_file(root).read_bytes() == key.encode() and not manifest.verify(root)
    except OSError:
        return False


def keep_key(root: Path, key: str) -> None:
    """Remember what ``root`` was baked from."""
    _key_file(root).write_text(key, encoding="utf-8")


def bake(
    client: DockerClient,
    baker: str,
    root: Path,
    device: str,
    progress: Progress,
    **options: Any,
) -> None:
    """Bake the variant that ``root`` is named after in a container of ``baker``, into ``root``.

    ``options`` are the container's besides: what is mounted, what is said.

    :raises BakeError: with the last lines of the bake that failed. What stood there still does.
    """
    name = "/".join(root.parts[-3:])
    command = ["bake", "cache", root.name]
    given = {"command": command, "device_requests": devices(device), **options}
    with container(client, baker, **given) as one:
        one.start()
        tail = _follow(one.logs(stream=True, follow=True), progress)
        if status := end(one):
            raise BakeError(
                f"baking {name} failed with exit status {status}:\n"
                + "\n".join(f"  | {line}" for line in tail)
            )
        receive(one, f"{IN_IMAGE}/{name}", root)


def receive(one: Any, path: str, root: Path) -> None:
    """Copy the root at ``path`` of a container to ``root``, whole or not at all.

    :raises BakeError: it is not what its manifest says.
    """
    tree.recover(root)
    part = tree.beside(root, ".part")
    arriving = tree.beside(root, ".arriving")
    tree.remove(arriving)
    arriving.mkdir(parents=True)
    try:
        fetch(one, path, arriving)
        (arriving / path.rpartition("/")[2]).rename(part)
    finally:
        tree.remove(arriving)
    tree.seal(part)
    if violations := manifest.verify(part):
        raise BakeError(f"{path}: not what was baked: {violations[0]}", "build again")
    _key_file(root).unlink(missing_ok=True)
    tree.put_in_place(root)


def _follow(logs: Any, progress: Progress) -> Sequence[str]:
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    for raw in logs:
        for line in raw.decode(errors="replace").splitlines():
            if line.strip():
                tail.append(line)
                progress.step(line.strip(" …"))
    return tail


def _key_file(root: Path) -> Path:
    return root.with_name(f"{root.name}.key")
