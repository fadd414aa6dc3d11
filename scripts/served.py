"""Starts, asks and stops a gateway as a person does: for measurements, and for tests with vLLM."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.settings import BARE, PREFIX, REPOSITORY

# A cold start on two busy cores; more is a hang.
START_SECONDS = 900
STOP_SECONDS = 60
POLL_SECONDS = 0.2
# vLLM's core and worker spin on their shared queue for a second after the last message (its
# SpinCondition), Intel's OpenMP for 0.2 s: what is timed next to it begins after both.
PAUSE_SECONDS = 1.3
ANSWER_SECONDS = 600
SAID_CHARACTERS = 300
LISTENING = re.compile(r"gateway on (http://\S+)")


class NotServed(RuntimeError):
    """The gateway ended, or was not ready in time; the text is the end of its log."""


class Failed(RuntimeError):
    """A request was answered with an error, or not at all; the text says which."""


@dataclass(frozen=True)
class Served:
    """One running gateway and the engine behind it."""

    process: subprocess.Popen[bytes]
    url: str
    socket: Path
    log: Path

    def get(self, path: str) -> bytes:
        """The body of one GET; an error status raises."""
        return get(self.url + path)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON that one POST is answered with.

        :raises Failed: an error status, or no answer.
        """
        return post(self.url, path, body)

    def stop(self) -> int:
        """SIGTERM; the gateway's exit status once it is gone."""
        return end(self.process)


@dataclass
class Starting:
    """A gateway that is not ready yet."""

    process: subprocess.Popen[bytes]
    folder: Path
    log: Path
    until: float
    url: str = ""

    def ready(self) -> Served | None:
        """The gateway, or None while it starts; asks once and does not wait.

        :raises NotServed: it ended, or its time is over.
        """
        if not self.url and (found := LISTENING.search(self.log.read_text(errors="replace"))):
            self.url = found[1]
        if self.url and _is_ready(self.url):
            socket = next(self.folder.glob("preheat-*/engine.sock"))
            return Served(self.process, self.url, socket, self.log)
        ended = self.process.poll()
        if ended is not None or time.monotonic() > self.until:
            tail = self.log.read_text(errors="replace")[-4000:]
            why = "its time is over" if ended is None else f"exit status {ended}"
            raise NotServed(f"not ready ({why}):\n{tail}")
        return None


def begin(settings: Mapping[str, str], folder: Path, seconds: float = START_SECONDS) -> Starting:
    """``preheat serve run`` on a free port, to be ready in so many seconds; log and socket lie in
    ``folder``.

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
    return Starting(process, folder, log, time.monotonic() + seconds)


def start(settings: Mapping[str, str], folder: Path) -> Served:
    """``begin``, and wait until it is ready."""
    starting = begin(settings, folder)
    try:
        while not (running := starting.ready()):
            time.sleep(POLL_SECONDS)
    except BaseException:
        end(starting.process)
        raise
    return running


@contextmanager
def served(settings: Mapping[str, str], folder: Path) -> Iterator[Served]:
    """``start``, and ``stop`` at the end whatever happens between, SIGTERM too."""
    with stoppable():
        running = start(settings, folder)
        try:
            yield running
        finally:
            running.stop()


@contextmanager
def several(
    each: Mapping[str, Mapping[str, str]],
    folder: Path,
    at_once: int = 1,
    seconds: float = START_SECONDS,
) -> Iterator[dict[str, Served]]:
    """A gateway for each of the settings, by name, all ready in so many seconds; no more than
    ``at_once`` start side by side. At the end all are stopped, whatever happens between.

    :raises NotServed: one of them does not start; the text begins with its name.
    """
    with stoppable():
        begun: list[Starting] = []
        try:
            yield _all_ready(each, folder, at_once, time.monotonic() + seconds, begun)
        finally:
            end(*(one.process for one in begun))


def _all_ready(
    each: Mapping[str, Mapping[str, str]],
    folder: Path,
    at_once: int,
    until: float,
    begun: list[Starting],
) -> dict[str, Served]:
    found: dict[str, Served] = {}
    waiting, starting = list(each), dict[str, Starting]()
    while waiting or starting:
        while waiting and len(starting) < at_once:
            name = waiting.pop(0)
            left = until - time.monotonic()
            if left <= 0:
                raise NotServed(f"{name}: no time was left to start it")
            starting[name] = begin(each[name], folder / name, left)
            begun.append(starting[name])
        for name, one in list(starting.items()):
            try:
                ready = one.ready()
            except NotServed as error:
                raise NotServed(f"{name}: {error}") from error
            if ready:
                found[name] = ready
                del starting[name]
        time.sleep(POLL_SECONDS)
    return {name: found[name] for name in each}


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM ends the body as an exception does, so that what it started is stopped: gateways and
    engines have a session of their own, and would outlive it. Ctrl-C ends it without a traceback.
    """
    if threading.current_thread() is not threading.main_thread():
        # Only there does Python take signals.
        yield
        return

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    was = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGTERM, was)


def post(url: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON that one POST to the server at ``url`` is answered with.

    :raises Failed: an error status, or no answer.
    """
    request = urllib.request.Request(  # noqa: S310 - our own gateway, or one that a person named
        url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:  # noqa: S310
            said: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            words = error.read().decode(errors="replace")[:SAID_CHARACTERS]
        raise Failed(f"POST {path}: status {error.code}: {words}") from error
    except (OSError, ValueError) as error:
        raise Failed(f"POST {path}: no answer: {error}") from error
    return said


def end(*processes: "subprocess.Popen[bytes]", seconds: float = STOP_SECONDS) -> int:
    """Told to end at once, waited for one after the other; the last one's exit status. One that is
    not gone in so many seconds is killed.
    """
    status = 0
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            # Its keeper ends the engine when the gateway is gone, however it went.
            process.kill()
            status = process.wait()
    return status


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


def _is_ready(url: str) -> bool:
    try:
        return bool(get(f"{url}/ready"))
    except OSError:
        # 503 while it starts, or late on a busy machine; refused when it has just ended, which the
        # caller sees.
        return False


def get(url: str) -> bytes:
    """The body of one GET; an error status raises."""
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - our own gateway
        return bytes(answer.read())
