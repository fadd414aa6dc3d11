"""Starts and stops a gateway as a person does: for measurements, and for tests that need vLLM."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from serve.settings import BARE, PREFIX, REPOSITORY

# A cold start on two busy cores; more is a hang.
START_SECONDS = 900
STOP_SECONDS = 60
LISTENING = re.compile(r"gateway on (http://\S+)")
T = TypeVar("T")


class NotServed(RuntimeError):
    """The gateway ended, or was not ready in time; the text is the end of its log."""


@dataclass(frozen=True)
class Served:
    """One running gateway and the engine behind it."""

    process: subprocess.Popen[bytes]
    url: str
    socket: Path
    log: Path

    def get(self, path: str) -> bytes:
        """The body of one GET; an error status raises."""
        return _get(self.url + path)

    def stop(self) -> int:
        """SIGTERM; the gateway's exit status once it is gone."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)


def start(settings: Mapping[str, str], folder: Path) -> Served:
    """``preheat serve run`` on a free port, ready; log and socket lie in ``folder``.

    ``settings`` are the gateway's variables; those of this process are not inherited.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "gateway.log"
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(PREFIX) and name not in BARE
    }
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "serve", "run"],
            cwd=REPOSITORY,
            env=inherited | {"TMPDIR": str(folder), "PORT": "0"} | dict(settings),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        url = _wait(lambda: LISTENING.search(log.read_text(errors="replace")), process, log)[1]
        _wait(lambda: _is_ready(url), process, log)
    except BaseException:
        process.terminate()
        process.wait(STOP_SECONDS)
        raise
    return Served(process, url, next(folder.glob("preheat-*/engine.sock")), log)


@contextmanager
def served(settings: Mapping[str, str], folder: Path) -> Iterator[Served]:
    """``start``, and ``stop`` at the end whatever happens between."""
    running = start(settings, folder)
    try:
        yield running
    finally:
        running.stop()


def _wait(ask: Callable[[], T | None], process: "subprocess.Popen[bytes]", log: Path) -> T:
    deadline = time.monotonic() + START_SECONDS
    while not (answer := ask()):
        if process.poll() is not None or time.monotonic() > deadline:
            tail = log.read_text(errors="replace")[-4000:]
            raise NotServed(f"not ready (exit status {process.poll()}):\n{tail}")
        time.sleep(0.2)
    return answer


def _is_ready(url: str) -> bool:
    try:
        return bool(_get(f"{url}/ready"))
    except urllib.error.URLError:
        # 503 while it starts; refused when it has just ended, which the caller sees.
        return False


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - our own gateway
        return bytes(answer.read())
