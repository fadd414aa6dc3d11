"""What starts a gateway ends it, whatever ends what started it."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from scripts import served
from scripts.served import Failed, NotServed, post, stoppable
from tests.paced_server import Server, serving

COMMAND = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from scripts import served

def started(settings, folder):
    return SimpleNamespace(stop=lambda: print("stopped", flush=True))

served.start = started
with served.served({}, Path(".")):
    print("started", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_the_gateway(number: signal.Signals, status: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(COMMAND)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout
        assert command.stdout.readline() == "started\n"
        command.send_signal(number)
        said, odd = command.communicate(timeout=30)
    assert (command.returncode, said, odd) == (status, "stopped\n", "")


def test_beside_the_main_thread_signals_are_left_alone() -> None:
    was, found = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with stoppable():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [was]


def test_a_gateway_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "STOP_SECONDS", 0.2)
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", deaf + "; time.sleep(60)"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        running = served.Served(process, "", Path(), Path(os.devnull))
        assert running.stop() == -signal.SIGKILL


def test_where_no_time_is_left_nothing_is_started(tmp_path: Path) -> None:
    with pytest.raises(NotServed, match="one: no time was left to start it"):  # noqa: SIM117
        with served.several({"one": {}}, tmp_path, seconds=-1):
            pytest.fail("it began")
    assert list(tmp_path.iterdir()) == []


def test_one_that_is_late_is_told_from_one_that_ended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("so far\n")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        starting = served.Starting(process, tmp_path, log, until=0)
        with pytest.raises(NotServed, match=r"not ready \(its time is over\):\nso far"):
            starting.ready()
        process.kill()
        process.wait()
        with pytest.raises(NotServed, match=r"not ready \(exit status -9\):\nso far"):
            starting.ready()


def test_an_answer_that_is_none_says_why() -> None:
    body = {"model": "m", "max_tokens": 1, "prompt": "refused"}
    refused = r"POST /v1/completions: status 429: .*no"
    with serving(Server()) as url, pytest.raises(Failed, match=refused):
        post(url, "/v1/completions", body)
    with pytest.raises(Failed, match="no answer"):
        post("http://127.0.0.1:1", "/x", body)
