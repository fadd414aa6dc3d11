"""Runs a program that a model wrote, with limits, and where the kernel allows it, enclosed.

Enclosed: no network, no process of others, every file system read-only but an empty one that
ends with it. What this user can read, it can read. Only `--run-code` leads here.
"""

import os
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

SECONDS = 10
MEMORY_BYTES = 2**30
FILE_BYTES = 2**20
GLANCE_SECONDS = 0.02

# Not as __main__: what an answer does when it is started itself is no part of the question. The
# word is written by who came to the end: a program that only exits with 0 has passed nothing.
# The number of processes (threads, too) is limited here: before, it would count who encloses.
DRIVER = """import os, resource, runpy, sys
for what in (resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE):
    resource.setrlimit(what, (64, 64))
runpy.run_path(sys.argv[1], run_name="answer")
os.write(int(sys.argv[2]), sys.argv[3].encode())
"""
NAMESPACES = ("--user", "--map-root-user", "--mount", "--net", "--pid", "--fork", "--kill-child")
# In it: mounts become read-only (spaces in their names stand as octal), then rights are given up.
ENCLOSE = """while read -r _ _ _ _ at _; do
    mount -o remount,bind,ro "$(printf %b "$at")"
done < /proc/self/mountinfo
mount -t tmpfs -o size=16m none "$1"
cd "$1"
shift
exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"""
HELD = {
    True: "limits; no network, no process of others, files read-only",
    False: "limits alone",
}


def passes(program: str, seconds: float = SECONDS, *, enclosed: bool | None = None) -> bool:
    """Whether it runs to its last line, in time, and then ends with status 0.

    It sees no environment and an empty folder; what it started ends with it, unless it is not
    ``enclosed`` (None: as this machine can) and has left its session.
    """
    enclosed = can_enclose() if enclosed is None else enclosed
    word = secrets.token_hex(16)
    ours, its = os.pipe()
    os.set_blocking(ours, False)
    with tempfile.TemporaryDirectory(prefix="preheat-code-") as folder:
        file, room = Path(folder) / "program.py", Path(folder) / "room"
        room.mkdir()
        file.write_text(program, encoding="utf-8", errors="replace")
        words = [sys.executable, "-I", "-S", "-c", DRIVER, str(file), str(its), word]
        try:
            ended = _run([*_enclosing(room), *words] if enclosed else words, room, its, seconds)
            return ended and _said(ours) == word.encode()
        finally:
            os.close(ours)
            os.close(its)


@cache
def can_enclose() -> bool:
    """Whether the kernel lets this user, and all tools for it are there."""
    return passes("", enclosed=True)


def held() -> str:
    """What bounds a program on this machine: for the record."""
    return HELD[can_enclose()]


def _enclosing(room: Path) -> list[str]:
    return ["unshare", *NAMESPACES, "sh", "-euc", ENCLOSE, "sh", str(room)]


def _run(words: list[str], room: Path, its: int, seconds: float) -> bool:
    """Whether it ended in time, with status 0; nothing of its session is alive afterwards."""
    try:
        process = subprocess.Popen(
            words,
            cwd=room,
            env={"PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[its],
            preexec_fn=_limit,  # noqa: PLW1509 - it makes system calls only
            start_new_session=True,
        )
    except FileNotFoundError:
        return False
    try:
        ended = _ended(process.pid, seconds)
    finally:
        # Not yet waited for: its number is still its own, and its group's.
        os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
    return ended and status == 0


def _said(ours: int) -> bytes:
    """What is in the pipe; who holds its other end is not waited for."""
    try:
        return os.read(ours, 256)
    except BlockingIOError:
        return b""


def _ended(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return True
        time.sleep(GLANCE_SECONDS)
    return False


def _limit() -> None:
    """In the child: memory, time, size of a file; no dump of its memory."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
