"""A log gets plain lines, a terminal a live one; both get the seconds of each phase."""

import io
import os
import pty
import subprocess
import sys

import pytest

from bake.progress import Plain, Timer
from serve.settings import REPOSITORY

WORK = """
from bake.progress import Timer, shown
with shown() as progress:
    timer = Timer(progress)
    progress.say("a [bracket] stays")
    with timer.phase("compile"):
        progress.step("graph", 1, 2)
print(sorted(timer.seconds))
"""


def test_a_log_gets_one_line_when_a_phase_begins_and_one_when_it_ends():
    written = io.StringIO()
    timer = Timer(Plain(written))
    with timer.phase("compile"):
        timer.progress.step("not told")
    first, second = written.getvalue().splitlines()
    assert first == "  compile …"
    assert second.startswith("  compile done in ")
    assert list(timer.seconds) == ["compile"]


def test_a_phase_that_fails_has_no_time():
    timer = Timer(Plain(io.StringIO()))
    with pytest.raises(ValueError, match="broken"), timer.phase("compile"):
        raise ValueError("broken")
    assert not timer.seconds


def test_a_terminal_is_given_back_and_standard_output_left_alone():
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", WORK],
            stdout=subprocess.PIPE,
            stderr=theirs,
            cwd=REPOSITORY,
            env={"TERM": "xterm", "PATH": "/usr/bin:/bin"},
            text=True,
            check=True,
        )
        shown = os.read(ours, 65536).decode()
    finally:
        os.close(theirs)
        os.close(ours)
    assert done.stdout == "['compile']\n"
    assert "a [bracket] stays" in shown
    assert "compile" in shown
    # The cursor, hidden while it spins, is back.
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
