"""Runs a variant's engine without a gateway, with flags and variables added, and asks it things.

The command is ``serve.plan``'s: what is profiled is what is served, plus what is added here.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.metrics import read, summed
from scripts.served import NotServed, stoppable
from serve.plan import Plan, make_plan
from serve.settings import read_settings

START_SECONDS = 900
STOP_SECONDS = 60
ANSWER_SECONDS = 600


@dataclass(frozen=True)
class Asked:
    """One request of a load: the prompt's token ids and how many tokens to write."""

    prompt: Sequence[int]
    max_tokens: int


@dataclass(frozen=True)
class Running:
    """One engine, ready."""

    plan: Plan
    process: subprocess.Popen[bytes]

    def call(self, method: str, path: str, body: Any = None) -> bytes:
        """The body of an answer.

        :raises NotServed: any status but 200.
        """
        link = _Unix(str(self.plan.command.socket))
        try:
            sent = None if body is None else json.dumps(body)
            link.request(method, path, sent, {"Content-Type": "application/json"})
            answer = link.getresponse()
            data = answer.read()
        finally:
            link.close()
        if answer.status != 200:
            raise NotServed(f"{method} {path}: {answer.status} {data[:300]!r}")
        return data

    def load(self, asked: Sequence[Asked], concurrency: int) -> float:
        """Send all, so many at a time, greedily; wall seconds until the last was answered."""
        bodies = [
            {
                "model": self.plan.model.name,
                "prompt": list(one.prompt),
                "max_tokens": one.max_tokens,
                "temperature": 0,
                "repetition_penalty": 1.0,
                "ignore_eos": True,
            }
            for one in asked
        ]
        began = time.perf_counter()
        with ThreadPoolExecutor(concurrency) as pool:
            list(pool.map(lambda body: self.call("POST", "/v1/completions", body), bodies))
        return time.perf_counter() - began

    def steps(self) -> int:
        """Steps that the engine has taken since it began."""
        told = summed(read(self.call("GET", "/metrics").decode()))
        return int(told.get("vllm:iteration_tokens_total_count", 0))

    def post(self, path: str, body: Any) -> dict[str, Any]:
        """The JSON that a POST is answered with.

        :raises NotServed: any status but 200.
        """
        answer: dict[str, Any] = json.loads(self.call("POST", path, body))
        return answer


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ANSWER_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(ANSWER_SECONDS)
        self.sock.connect(self._path)


@contextmanager
def engine(
    settings: Mapping[str, str],
    folder: Path,
    flags: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    without: str = "",
) -> Iterator[Running]:
    """One engine for the body, its log in ``folder``; its group is gone afterwards.

    ``without`` names a flag of the variant that is left out with its value.

    :raises NotServed: it does not come up.
    """
    plan = make_plan(read_settings(settings), Path(sys.executable), folder / "engine.sock")
    plan = plan.within(os.environ)
    argv = changed(plan.command.argv, flags, without)
    log = folder / "engine.log"
    with stoppable():
        with log.open("wb") as out:
            process = subprocess.Popen(
                argv,
                env={**plan.command.env, **(env or {})},
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        running = Running(plan, process)
        try:
            _wait(lambda: _healthy(running), process, log)
            yield running
        finally:
            stop(process)


def changed(argv: Sequence[str], flags: Sequence[str], without: str) -> list[str]:
    """``argv`` with ``flags`` before its last two words, the socket, and one flag left out."""
    kept = list(argv)
    if without in kept:
        at = kept.index(without)
        del kept[at : at + 2]
    return [*kept[:-2], *flags, *kept[-2:]]


def _healthy(running: Running) -> bool:
    try:
        running.call("GET", "/health")
    except (OSError, http.client.HTTPException, NotServed):
        return False
    return True


def _wait(ready: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            tail = log.read_text(errors="replace")[-2000:]
            raise NotServed(f"engine not ready (exit status {process.poll()}):\n{tail}")
        time.sleep(0.2)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM to the leader, and SIGKILL to what is left of its group: a core may outlive it."""
    process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    # Not reaped yet: the group's number is not another's while its leader is there.
    while time.monotonic() < deadline and process.returncode is None:
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
            break
        time.sleep(0.05)
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
