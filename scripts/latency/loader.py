"""The load generator as its parent sees it: one process, one job after the other."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import Timer
from typing import Any

from serve.settings import REPOSITORY

GRACE_SECONDS = 60


class LoadFailed(RuntimeError):
    """The load generator ended: a fault of ours, not of the server."""


class Loader:
    """One process of ``scripts.latency.load``."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def run(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """One job, to its end; the job's own deadline bounds it.

        :raises LoadFailed: the process is gone.
        """
        send, receive = self._process.stdin, self._process.stdout
        if send is None or receive is None:
            raise LoadFailed("the load generator has no pipes")
        try:
            send.write(json.dumps(job) + "\n")
            send.flush()
        except OSError as error:
            raise LoadFailed(f"the load generator is gone: {error}") from error
        # A job ends by itself; should it not, its process does.
        late = Timer(job["deadline"] + GRACE_SECONDS, self._process.kill)
        late.daemon = True
        late.start()
        try:
            line = receive.readline()
        finally:
            late.cancel()
        if not line.endswith("\n"):
            raise LoadFailed(f"the load generator ended (exit status {self._process.wait()})")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def loader() -> Iterator[Loader]:
    """A load generator, gone at the end."""
    with subprocess.Popen(
        [sys.executable, "-m", "scripts.latency.load"],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Ctrl-C is for its parent, which ends it.
        start_new_session=True,
    ) as process:
        try:
            yield Loader(process)
        finally:
            process.terminate()
            # A job that was not taken is flushed here, to a process that may be gone.
            if process.stdin:
                with suppress(OSError):
                    process.stdin.close()
