"""What is loaded: our gateway over the fake engine, that engine directly, others by their address.

Our gateway starts the engine, as it always does; so all of them share one engine and one run.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from scripts.gateway.costs import Processes
from scripts.gateway.upstream import LISTENING
from scripts.served import POLL_SECONDS, NotServed, Starting, end
from serve.settings import BARE, PREFIX, REPOSITORY

DIRECT, OURS = "direct", "preheat"
START_SECONDS = 60
UPSTREAM = re.compile(rf"Worker pid=(\d+)\).*{LISTENING}(http://[\d.:]+)")


@dataclass(frozen=True)
class System:
    """Something that answers at ``url``; ``processes`` are what it costs, None when nobody says."""

    name: str
    url: str
    processes: Processes | None = None


def named(text: str) -> System:
    """A system as a person names it: NAME=URL, or NAME=URL,PID with the process that it costs.

    :raises argparse.ArgumentTypeError: it is none.
    """
    name, _, rest = text.partition("=")
    url, _, pid = rest.partition(",")
    if not name or urlsplit(url).scheme != "http" or not (pid.isdecimal() or pid == ""):
        raise argparse.ArgumentTypeError(f"expected NAME=http://…[,PID], got {text!r}")
    return System(name, url.rstrip("/"), Processes(int(pid)) if pid else None)


@contextmanager
def gateway(
    settings: Mapping[str, str], folder: Path, port: int = 0
) -> Iterator[tuple[System, System]]:
    """The engine on a TCP port, and our gateway before it; both are gone at the end.

    :raises NotServed: it does not become ready.
    """
    starting = begin(settings, folder, port)
    process = starting.process
    try:
        while not (running := starting.ready()):
            time.sleep(POLL_SECONDS)
        # Its line came before the token that it was asked for, but lines are written in a while.
        while not (found := UPSTREAM.search(starting.log.read_text(errors="replace"))):
            if time.monotonic() > starting.until:
                raise NotServed(f"the engine did not say where it listens: {starting.log}")
            time.sleep(POLL_SECONDS)
        engine = int(found[1])
        yield (
            System(DIRECT, found[2], Processes(engine)),
            System(OURS, running.url, Processes(process.pid, engine)),
        )
    finally:
        end(process, seconds=START_SECONDS)


def begin(settings: Mapping[str, str], folder: Path, port: int) -> Starting:
    """``preheat serve run`` over the fake engine; variables of ours are not inherited."""
    folder.mkdir()
    log = folder / "gateway.log"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX) and k not in BARE}
    ours = {"TMPDIR": str(folder), "PORT": "0", "PREHEAT_CHECK_MEMORY": "false"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "scripts.gateway.served", "--port", str(port)],
            cwd=REPOSITORY,
            env=inherited | ours | dict(settings),
            stdout=out,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for us, who end it.
            start_new_session=True,
        )
    return Starting(process, folder, log, time.monotonic() + START_SECONDS)
