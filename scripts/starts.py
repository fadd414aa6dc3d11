"""One start, timed from outside: a process and what it says, its first token, an idle machine.

What is started and how the samples are judged belong to the script that measures.
"""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blob.errors import Stop
from experiments.record import Record, add, folder_of
from serve.keeper import descendants
from serve.settings import REPOSITORY
from serve.startlog import StartLog

DEADLINE_SECONDS = 900
POLL_SECONDS = 0.01
# Share of all cores that may be busy before a sample is taken.
IDLE = 0.05
ENGINE_INIT = re.compile(r"init engine \(.*\) took ([\d.]+) s")
LISTENING = re.compile(r"gateway on http://[^:]+:(\d+)")
PROMPT = "The first thing that a reader of this sentence should know is"


class NotMeasured(RuntimeError):
    """A start failed, or the machine is never idle; the text is the end of the log."""


@dataclass
class Run:
    """One process and what it says, each line with the time it came."""

    process: "subprocess.Popen[bytes]"
    began: float
    lines: list[tuple[float, str]] = field(default_factory=list)

    def read(self) -> None:
        """Take in lines until the end; in a thread of its own."""
        assert self.process.stdout is not None  # noqa: S101 - we asked for a pipe
        with self.process.stdout as output:
            for line in output:
                text = line.decode(errors="replace").rstrip().removeprefix("engine | ")
                self.lines.append((time.monotonic(), text))

    def find(self, pattern: "re.Pattern[str]") -> "re.Match[str] | None":
        """The last match in what was said."""
        found = [match for _, line in self.lines if (match := pattern.search(line))]
        return found[-1] if found else None

    @property
    def tail(self) -> str:
        """The end of what was said."""
        return "\n".join(line for _, line in self.lines[-30:])


@contextmanager
def running(argv: Sequence[str], env: Mapping[str, str]) -> Iterator[Run]:
    """``argv`` in a session of its own, stopped and gone at the end, with all below it."""
    began = time.monotonic()
    process = subprocess.Popen(
        argv,
        env=dict(env),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    run = Run(process, began)
    reading = threading.Thread(target=run.read, daemon=True)
    reading.start()
    try:
        yield run
    finally:
        below = descendants(process.pid)
        process.terminate()
        process.wait(60)
        for pid in below:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        reading.join()


class Client:
    """Asks for completions as soon as somebody answers."""

    def __init__(
        self, connect: Callable[[], http.client.HTTPConnection | None], model: str, run: Run
    ) -> None:
        self._connect = connect
        self._model = model
        self._run = run

    def first_token(self, began: float) -> dict[str, Any]:
        """Seconds from ``began`` to the first token, and what a greedy completion then says."""
        while self.complete(1) is None:
            if self._run.process.poll() is not None:
                raise NotMeasured(f"it ended\n{self._run.tail}")
            if time.monotonic() - began > DEADLINE_SECONDS:
                raise NotMeasured(f"no token in {DEADLINE_SECONDS} s\n{self._run.tail}")
            time.sleep(POLL_SECONDS)
        seconds = time.monotonic() - began
        return {"seconds": round(seconds, 3), "text": self.complete(16)}

    def complete(self, tokens: int) -> str | None:
        """A greedy completion, or None when nobody answers yet."""
        body = {"model": self._model, "prompt": PROMPT, "max_tokens": tokens, "temperature": 0}
        try:
            connection = self._connect()
            if connection is None:
                return None
            connection.request(
                "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            said = answer.read()
            connection.close()
        except (OSError, http.client.HTTPException):
            return None
        return str(json.loads(said)["choices"][0]["text"]) if answer.status == 200 else None


def recorded(variant: str, measured: Callable[[], Record]) -> int:
    """Measure, add the record to the variant's and tell it; exit status 0 when it was added, 1 when
    it could not be measured or kept, and that of what stopped it.
    """
    try:
        record = measured()
        path = add(record, folder_of(variant))
    except (Stop, NotMeasured, OSError) as error:
        print(f"not measured: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, Stop) else 1
    print(json.dumps(record.summary, indent=1))
    print(f"wrote {path.relative_to(REPOSITORY)}")
    return 0


def unix(path: Path) -> http.client.HTTPConnection:
    """A connection over the engine's own socket."""
    connection = http.client.HTTPConnection("engine", timeout=DEADLINE_SECONDS)
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def tcp(run: Run) -> http.client.HTTPConnection | None:
    """A connection to the gateway, once it says where it is."""
    found = run.find(LISTENING)
    if found is None:
        return None
    return http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=DEADLINE_SECONDS)


def started(run: Run) -> dict[str, Any]:
    """What the log tells of a start: seconds per phase, graphs, and vLLM's own `init engine`."""
    log = StartLog(run.began)
    for at, line in list(run.lines):
        log.observe(line, at)
    init = run.find(ENGINE_INIT)
    return {
        "phases": log.seconds(),
        "engine_init_seconds": float(init[1]) if init else None,
        "loaded": len(log.loaded),
        "compiled": len(log.compiled),
    }


def wait_until_idle() -> float:
    """The share of all cores that was busy in the last second, once it is small.

    :raises NotMeasured: something else runs on this machine and does not end.
    """
    deadline = time.monotonic() + DEADLINE_SECONDS
    while (busy := busy_share(1.0)) > IDLE:
        if time.monotonic() > deadline:
            raise NotMeasured(f"the machine is never idle: {busy:.0%} of its cores are busy")
    return round(busy, 3)


def busy_share(seconds: float) -> float:
    """The share of all cores' time that was not idle, over ``seconds`` from now."""
    before = cpu_times()
    time.sleep(seconds)
    passed = [after - was for was, after in zip(before, cpu_times(), strict=True)]
    idle = passed[3] + passed[4]
    return 1 - idle / max(sum(passed), 1)


def cpu_times() -> list[int]:
    """User, nice, system, idle, iowait and so on of all cores, in ticks (proc(5), /proc/stat)."""
    with Path("/proc/stat").open(encoding="ascii") as file:
        return [int(word) for word in file.readline().split()[1:]]
