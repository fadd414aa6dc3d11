"""Slices a model for the ranks of tensor parallelism: vLLM slices, each rank keeps what it got.

A hybrid layer has regions of unequal size for each rank, so no rule of ours cuts. One process for
each rank makes the model as a worker does, fills it, and writes its parameters before they are
post-processed (``serve.plugin.ranks``); no engine is started.
"""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bake import tree
from bake.checkpoint.folder import files_of
from bake.errors import BakeError
from bake.weights.place import check_apart
from blob import manifest
from serve.model import Model
from serve.startlog import causes

ALONE = "serve.plugin.alone"
SECONDS = 1800
POLL_SECONDS = 0.1
STOP_SECONDS = 10


@dataclass(frozen=True)
class Sharded:
    """What was made. ``bytes`` are those of each rank, as they are given back."""

    folder: Path
    world: int
    model: str
    bytes: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class Worker:
    """How a worker's process is started: the interpreter, and the whole of its environment."""

    python: Path
    env: Mapping[str, str]


def shard(  # noqa: PLR0913 - of what, for whom, where
    model: Model, world: int, codec: str, folder: Path, store: Path, worker: Worker
) -> Sharded:
    """Make ``folder``, which a server with that many ranks takes as its model.

    :raises BakeError: something stands there, or the store does; or a rank's process failed:
        its own words.
    """
    began = time.monotonic()
    check_apart(folder, store)
    with tree.locked(folder):
        tree.recover(folder)
        if folder.exists() or folder.is_symlink():
            raise BakeError(f"{folder}: exists", "remove it, or choose another folder with --out")
        part = tree.beside(folder, ".part")
        part.mkdir(parents=True)
        try:
            _run(model, world, {"capture": str(part), "codec": codec, "store": str(store)}, worker)
            for name, path in files_of(model.path).items():
                shutil.copyfile(path, part / name)
            ranks = [manifest.read(part / f"rank-{rank}-of-{world}") for rank in range(world)]
        except BaseException:
            tree.remove(part)
            raise
        tree.put_in_place(folder)
    of = ranks[0].rank
    return Sharded(
        folder,
        world,
        of.model if of else "",
        tuple(rank.size for rank in ranks),
        round(time.monotonic() - began, 3),
    )


def _run(model: Model, world: int, extra: Mapping[str, str], worker: Worker) -> None:
    with tempfile.TemporaryDirectory(prefix="preheat-") as scratch:
        meet = Path(scratch) / "meet"
        job: dict[str, Any] = {
            "model": str(model.path),
            "extra": dict(extra),
            "world": world,
            "meet": str(meet),
            "drafts": 1 if model.has_mtp else 0,
            "language_model_only": model.language_model_only,
        }
        started: list[tuple[subprocess.Popen[bytes], Path]] = []
        try:
            for rank in range(world):
                log = Path(scratch) / f"rank-{rank}.log"
                started.append((_start({**job, "rank": rank}, log, worker), log))
            _wait(started)
        finally:
            for process, _ in started:
                _stop(process)


def _start(job: Mapping[str, Any], log: Path, worker: Worker) -> "subprocess.Popen[bytes]":
    argv = [str(worker.python), "-m", ALONE, json.dumps(job)]
    with log.open("wb") as said:
        return subprocess.Popen(
            argv,
            env=dict(worker.env),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait(started: "list[tuple[subprocess.Popen[bytes], Path]]") -> None:
    """Until all ended well; the others of one that failed would wait for it for ever."""
    deadline = time.monotonic() + SECONDS
    while any(process.poll() is None for process, _ in started):
        _check(started)
        if time.monotonic() > deadline:
            raise BakeError(f"the ranks were not done in {SECONDS} s")
        time.sleep(POLL_SECONDS)
    _check(started)


def _check(started: "list[tuple[subprocess.Popen[bytes], Path]]") -> None:
    for rank, (process, log) in enumerate(started):
        if process.poll():
            said = causes(log.read_text(errors="replace").splitlines())
            lines = "\n".join(f"  | {line}" for line in said)
            raise BakeError(f"rank {rank} ended with exit status {process.returncode}:\n{lines}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End a rank and all that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
