"""LiteLLM's proxy, to be measured beside: its own environment, its leanest configuration.

One worker, no database, no keys, no callbacks, its production mode, uvloop, errors logged only:
what its documentation has for speed, and less than anybody would run.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.gateway.costs import Processes
from scripts.gateway.systems import System
from scripts.gateway.upstream import MODEL
from scripts.served import NotServed, free_port
from serve.settings import REPOSITORY

NAME = "litellm"
PINS = Path(__file__).with_name("litellm.txt")
VENV = REPOSITORY / ".cache" / "litellm"
START_SECONDS = 120
STOP_SECONDS = 10
ENVIRONMENT = {
    "PATH": os.defpath,
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    # Else it fetches a list of prices.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    # On loopback, and keys would only cost it time.
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
}


class NotInstalled(RuntimeError):
    """pip could not; the text is the end of what it said."""


def version() -> str:
    """The release that is pinned."""
    pins = PINS.read_text(encoding="utf-8").split()
    return next(pin for pin in pins if pin.startswith("litellm==")).removeprefix("litellm==")


def installed(venv: Path = VENV) -> bool:
    """Whether the environment is there, of these very pins."""
    stamp = venv / PINS.name
    return stamp.is_file() and stamp.read_bytes() == PINS.read_bytes()


def install(tell: Callable[[str], None], venv: Path = VENV) -> None:
    """Make the environment; minutes, once.

    :raises NotInstalled: pip could not.
    """
    tell(f"installing litellm {version()} in {venv.relative_to(REPOSITORY)}: minutes, once")
    pip = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install"]
    for words in (
        [sys.executable, "-m", "venv", "--clear", str(venv)],
        [*pip, "--quiet", "--requirement", str(PINS)],
    ):
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotInstalled((done.stdout + done.stderr)[-2000:])
    # The stamp comes last: a half environment has none.
    (venv / PINS.name).write_bytes(PINS.read_bytes())


@contextmanager
def proxy(upstream: str, folder: Path) -> Iterator[System]:
    """The proxy before the engine at ``upstream``; gone at the end, with all that it started.

    :raises NotServed: it does not answer in time.
    """
    folder.mkdir()
    port, log = free_port(), folder / "litellm.log"
    config = folder / "litellm.yaml"
    config.write_text(json.dumps(configuration(upstream)))
    words = [str(VENV / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1"]
    words += ["--port", str(port), "--num_workers", "1", "--telemetry", "False"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            words,
            cwd=folder,
            env=ENVIRONMENT | {"HOME": str(folder), "TMPDIR": str(folder)},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        system = System(NAME, f"http://127.0.0.1:{port}", Processes(process.pid))
        until_alive(system.url, process, log)
        yield system
    finally:
        stop(process)


def configuration(upstream: str) -> dict[str, object]:
    """As YAML, of which JSON is a part."""
    there = {"model": f"openai/{MODEL}", "api_base": f"{upstream}/v1", "api_key": "none"}
    return {
        "model_list": [{"model_name": MODEL, "litellm_params": there}],
        "litellm_settings": {"telemetry": False, "num_retries": 0, "callbacks": []},
    }


def until_alive(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Return once it answers.

    :raises NotServed: it ended, or its time is over.
    """
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health/liveliness", timeout=5):  # noqa: S310
                return
        except (OSError, urllib.error.URLError):
            time.sleep(0.2)
    raise NotServed(f"{NAME} does not answer:\n{log.read_text(errors='replace')[-2000:]}")


def stop(process: "subprocess.Popen[bytes]") -> None:
    """All of its group, which is its own session's."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    process.wait()
