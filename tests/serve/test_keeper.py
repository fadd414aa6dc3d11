"""The keeper by itself: a process with a pipe, as the gateway starts it."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pytest

from serve.keeper import PID_LINE, descendants
from serve.launch import KEEPER
from tests.serve.live import DEADLINE_SECONDS, alive, assert_gone, wait_for

FOR_EVER = ("/bin/sh", "-c", "setsid sleep 600 & exec sleep 600")
DEAF = ("/bin/sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 600; done")


@contextmanager
def kept(*argv: str, grace: float = 10) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-I", "-S", str(KEEPER), str(grace), *argv]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as popen:
        try:
            yield popen
        finally:
            popen.kill()


def out(popen: subprocess.Popen[bytes]) -> IO[bytes]:
    assert popen.stdout is not None
    return popen.stdout


def engine_pid(popen: subprocess.Popen[bytes]) -> int:
    return int(out(popen).readline().decode().removeprefix(PID_LINE))


def close(popen: subprocess.Popen[bytes]) -> None:
    assert popen.stdin is not None
    popen.stdin.close()


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -SEGV $$", 128 + 11)]
)
def test_the_exit_status_is_the_engines_own_or_tells_its_signal(script: str, status: int) -> None:
    with kept("/bin/sh", "-c", script) as popen:
        assert popen.wait(DEADLINE_SECONDS) == status


def test_what_cannot_be_executed_is_named_and_ends_with_127() -> None:
    with kept("/no/such/program") as popen:
        said = out(popen).read().decode()
        assert "keeper: cannot execute /no/such/program: No such file or directory" in said
        assert popen.wait(DEADLINE_SECONDS) == 127


def test_the_engines_pid_is_the_first_line_whatever_it_writes() -> None:
    with kept("/bin/sh", "-c", "printf garbage") as popen:
        assert engine_pid(popen) > 0
        assert out(popen).read() == b"garbage"


def test_the_engine_reads_an_empty_input_and_not_the_pipe() -> None:
    with kept("/bin/sh", "-c", "cat; echo end") as popen:
        engine_pid(popen)
        assert out(popen).readline() == b"end\n"


@pytest.mark.parametrize("how", ["pipe", "sigterm"])
def test_a_closed_pipe_or_sigterm_stops_everything(how: str) -> None:
    with kept(*FOR_EVER) as popen:
        engine_pid(popen)
        wait_for(lambda: len(descendants(popen.pid)) >= 3, "engine and its child")
        below = descendants(popen.pid)
        close(popen) if how == "pipe" else popen.send_signal(signal.SIGTERM)
        assert popen.wait(DEADLINE_SECONDS) == 128 + signal.SIGTERM
        assert not any(map(alive, below))


@pytest.mark.parametrize("again", range(8))
def test_a_stop_at_the_moment_of_the_start_is_not_lost(again: int) -> None:
    # The grace is longer than the test may take: a lost SIGTERM would show.
    with kept("/bin/sleep", "600", grace=600) as popen:
        close(popen)
        assert popen.wait(DEADLINE_SECONDS) == 128 + signal.SIGTERM


def test_ctrl_c_is_left_to_the_gateway() -> None:
    with kept("/bin/sleep", "600") as popen:
        engine_pid(popen)
        for pid in (popen.pid, descendants(popen.pid)[0]):
            subprocess.run(["/bin/kill", "-INT", str(pid)], check=True)
        close(popen)
        assert popen.wait(DEADLINE_SECONDS) == 128 + signal.SIGTERM


def test_an_engine_that_ignores_sigterm_is_killed_after_the_grace() -> None:
    with kept(*DEAF, grace=0.1) as popen:
        engine_pid(popen)
        assert out(popen).readline() == b"deaf\n"
        below = descendants(popen.pid)
        close(popen)
        assert popen.wait(DEADLINE_SECONDS) == 128 + signal.SIGKILL
        assert not any(map(alive, below))


@pytest.mark.parametrize("victim", ["guard", "keeper"])
def test_killing_either_of_the_two_leaves_the_other_to_finish(victim: str) -> None:
    with kept(*FOR_EVER) as popen:
        engine_pid(popen)
        wait_for(lambda: len(descendants(popen.pid)) >= 3, "engine and its child")
        below = descendants(popen.pid)
        killed = popen.pid if victim == "guard" else below[0]
        subprocess.run(["/bin/kill", "-KILL", str(killed)], check=True)
        popen.wait(DEADLINE_SECONDS)
        assert_gone(below)


def test_an_engine_that_ends_by_itself_leaves_none_of_its_children() -> None:
    with kept("/bin/sh", "-c", "setsid sleep 600 & sleep 600 & echo $!; exit 3") as popen:
        engine_pid(popen)
        child = int(out(popen).readline())
        assert popen.wait(DEADLINE_SECONDS) == 3
        assert not alive(child)
