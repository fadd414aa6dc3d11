"""vLLM's own router before appliances, in the environment that ``make router`` makes."""

import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scripts.served import end, free_port
from serve.settings import REPOSITORY

PROGRAM = REPOSITORY / ".cache" / "router" / "bin" / "vllm-router"
READY_SECONDS = 60
STOP_SECONDS = 20


class NoRouter(RuntimeError):
    """It is not installed, ended, or was not ready in time; the text says which."""


@contextmanager
def router(policy: str, workers: Sequence[str], folder: Path) -> Iterator[str]:
    """The URL of a router by a policy over workers' URLs, stopped at the end.

    :raises NoRouter: there is none.
    """
    with running(switches(policy, workers), folder / f"router-{policy}.log") as url:
        yield url


@contextmanager
def running(words: Sequence[str], log: Path) -> Iterator[str]:
    """The URL of one that was told so much, on a port of its own.

    :raises NoRouter: it is not installed, or does not answer in time.
    """
    check()
    port = free_port()
    here = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port())]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(PROGRAM), *words, *here],
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _until_ready(process, url, log)
        yield url
    finally:
        end(process, seconds=STOP_SECONDS)


def check() -> None:
    """Whether it is installed.

    :raises NoRouter: it is not.
    """
    if not PROGRAM.is_file():
        raise NoRouter(f"{PROGRAM} is not there\nhint: make router")


def switches(policy: str, workers: Sequence[str]) -> list[str]:
    """As docs/fleet.md has them, and quicker to begin: ``/ready`` tells which worker is."""
    return [
        *("--policy", policy, "--worker-urls", *workers),
        *("--health-check-endpoint", "/ready", "--health-check-interval-secs", "2"),
        *("--health-failure-threshold", "1"),
        *("--worker-startup-check-interval", "1", "--log-level", "warning"),
    ]


def _until_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not _answers(f"{url}/v1/models"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise NoRouter(f"not ready:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own
            return bool(answer.status == 200)
    except OSError:
        return False
