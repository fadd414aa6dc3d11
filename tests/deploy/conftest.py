"""Visitors; a real gateway with a real vLLM under load, and a real Prometheus that watches it."""

import json
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.served import Served, free_port, served
from tests.deploy.shipped import CONFIG, RULES, read
from tests.deploy.visitors import CLIENTS, Seen, visitors

# Two workers talk at once: two cores hold no more.
TALKERS = 2
# So many that every rate over RATE_INTERVAL has its samples.
SCRAPES = 7


Visited = Callable[..., AbstractContextManager[Seen]]


@pytest.fixture
def visited(record_property: Callable[[str, object], None]) -> Visited:
    """``visitors``; what came of them is told in the run's report (scripts/measure_losses.py)."""

    @contextmanager
    def come(url: str, clients: int = CLIENTS) -> Iterator[Seen]:
        # Filled in until the last of them has gone, so it is told then, whatever went wrong.
        told: list[Seen] = []
        try:
            with visitors(url, clients=clients) as seen:
                told.append(seen)
                yield seen
        finally:
            for one in told:
                record_property("clients", clients)
                record_property("whole", one.whole)
                record_property("lost", json.dumps(one.lost))

    return come


# For this folder's tests alone: whoever is asked all the while takes a core from all others.
@pytest.fixture(scope="package")
def gateway(cache_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """``seq8-best`` from its baked cache when there is one, asked all the while."""
    settings = {
        "VARIANT": "seq8-best",
        "MODEL": "tiny",
        "TARGET": "cpu",
        "PREHEAT_CACHE_ROOT": str(cache_root),
    }
    with served(settings, tmp_path_factory.mktemp("gateway")) as running, talked_to(running.url):
        yield running


@pytest.fixture(scope="session")
def promtool() -> str:
    return found("promtool")


@pytest.fixture(scope="package")
def prometheus(gateway: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Prometheus"]:
    """The shipped configuration, looking at ``gateway`` for some scrapes already."""
    binary, folder = found("prometheus"), tmp_path_factory.mktemp("prometheus")
    config = read(CONFIG)
    config["rule_files"] = [str(RULES)]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [gateway.url.split("//")[1]]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    running = Prometheus(f"127.0.0.1:{free_port()}")
    command = [
        binary,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={running.address}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        until(running.has_seen_enough, 120, lambda: (folder / "log").read_text(errors="replace"))
        yield running
    finally:
        process.terminate()
        process.wait(30)


class Prometheus:
    """Its HTTP API."""

    def __init__(self, address: str) -> None:
        self.address = address

    def query(self, expression: str, **at: str) -> list[dict[str, Any]]:
        """The series that an instant query finds; one that does not parse raises."""
        found: list[dict[str, Any]] = self.get("query", query=expression, **at)["result"]
        return found

    def get(self, what: str, **arguments: str) -> Any:
        url = f"http://{self.address}/api/v1/{what}?{urllib.parse.urlencode(arguments)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]

    def has_seen_enough(self) -> bool:
        try:
            seen = self.query("sum_over_time(up[5m])")
        except (urllib.error.URLError, OSError):
            return False
        return bool(seen) and float(seen[0]["value"][1]) >= SCRAPES


def found(program: str) -> str:
    """Where a program of Prometheus is; the test is skipped without it."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"no {program} here: apt-get install --no-install-recommends prometheus")
    return path


def until(
    true: Callable[[], object], seconds: float = 60, log: Callable[[], str] = lambda: ""
) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:g} s:\n{log()[-4000:]}")
        time.sleep(0.5)


@contextmanager
def talked_to(url: str) -> Iterator[None]:
    """Clients that stream, one after the other, and ask for what does not exist in between."""
    over = threading.Event()

    def talk(number: int) -> None:
        for turn in range(10_000):
            if over.is_set():
                return
            say(url, "tiny", f"Tell me about Japan, {number} {turn}.")
            say(url, "nobody", "Are you there?")
            over.wait(0.2)

    talkers = [threading.Thread(target=talk, args=(n,), daemon=True) for n in range(TALKERS)]
    for talker in talkers:
        talker.start()
    try:
        yield
    finally:
        over.set()
        for talker in talkers:
            talker.join(60)


def say(url: str, model: str, text: str) -> int:
    """One streamed chat; its status, 0 when there was nobody to answer."""
    body = {
        "model": model,
        "stream": True,
        "max_tokens": 32,
        "messages": [{"role": "user", "content": text}],
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def scrape(running: Served) -> str:
    return running.get("/metrics").decode()
