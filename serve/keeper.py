"""Stands between gateway and engine, so that no engine outlives its gateway. Stdlib only.

    keeper.py GRACE_SECONDS ARGV…      standard input: a pipe that the gateway holds open

Started by path with ``python -I -S``, it becomes two processes, both subreapers:

    gateway ─► guard ─► keeper ─► engine ─► …

The keeper runs ARGV in a process group of its own, and leaves only when every descendant is
gone. It stops the engine (SIGTERM, then SIGKILL after the grace) when the pipe closes, which the
kernel does however the gateway ends, or at SIGTERM. The guard only waits. Killing either of the
two leaves the other to finish: without its guard the keeper gets a SIGTERM (PR_SET_PDEATHSIG);
without its keeper the engine's orphans, also those in sessions of their own, come to the guard,
which kills them.

Exit status: the engine's own, or 128 + the signal that ended it; 127 if it cannot be executed.

A zygote (``serve.plugin.zygote``) calls ``hold`` in a process it has forked, with another way for
the engine to come to be than ``execv``.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Callable

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PID_LINE = "keeper: engine pid "
POLL_SECONDS = 0.05


def main(argv: list[str]) -> int:
    return hold(lambda: execute(argv[2:]), float(argv[1]))


def hold(become: Callable[[], None], grace: float) -> int:
    """Split this process into guard and keeper around an engine.

    ``become`` turns the engine's process, just forked, into the engine; it need not return.
    The engine gets ``grace`` seconds between SIGTERM and SIGKILL. Its exit status is returned.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # SIGTERM waits until whoever it is meant for can take it.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    guard = os.getpid()
    if keeper := os.fork():
        return _guard(keeper)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != guard:
        return 1  # the guard died before the line above
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return _keep(become, grace, libc)


def _guard(keeper: int) -> int:
    """Pass SIGTERM on, wait for the keeper, and end what it would have left behind."""
    signal.signal(signal.SIGTERM, lambda *_: os.kill(keeper, signal.SIGTERM))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    # Not reaped yet: until the handler is gone, the id must not become someone else's.
    os.waitid(os.P_PID, keeper, os.WEXITED | os.WNOWAIT)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    status = reap(keeper)
    kill_descendants()
    return 1 if status is None else status


def _keep(become: Callable[[], None], grace: float, libc: ctypes.CDLL) -> int:
    """Run the engine until it ends or is to be stopped, and until nothing of it is left."""
    wake, wake_writer = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(wake_writer, False)
    stop_asked = []
    signal.signal(signal.SIGTERM, lambda *_: stop_asked.append(True))
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_writer)

    engine = _spawn(become, libc)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    status = None
    while status is None and not stop_asked:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
        if 0 in ready and not os.read(0, 4096):
            stop_asked.append(True)
        status = reap(engine)
    if status is None:
        status = _terminate(engine, grace)
    kill_descendants()
    return status


def _spawn(become: Callable[[], None], libc: ctypes.CDLL) -> int:
    keeper = os.getpid()
    child = os.fork()
    if child:
        return child
    os.setpgid(0, 0)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != keeper:
        os._exit(1)  # the keeper died before the line above
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    # Blocked until here: one that came between fork and now would have run our handler, in vain.
    # The other is what a gateway that starts us holds back for itself.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGUSR1])
    # The pipe is the keeper's: an engine that held it would hide the gateway's death.
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    # Before anything else, so that it is the first line whatever the engine writes.
    print(f"{PID_LINE}{os.getpid()}", flush=True)
    become()
    os._exit(127)


def execute(command: list[str]) -> None:
    """Replace this process; returns only when that cannot be done, having said why."""
    try:
        os.execv(command[0], command)
    except OSError as error:
        print(f"keeper: cannot execute {command[0]}: {error.strerror}", flush=True)


def reap(engine: int) -> int | None:
    """Collect every child that has ended; the engine's exit status once it is among them."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, raw = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == engine:
                status = exit_status(raw)
    return status


def exit_status(raw: int) -> int:
    """Of a wait status: the process's own, or 128 + the signal that ended it, as shells do."""
    code = os.waitstatus_to_exitcode(raw)
    return code if code >= 0 else 128 - code


def _terminate(engine: int, grace: float) -> int:
    """SIGTERM to the first process, which stops its own; SIGKILL to what is left after that."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(engine, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while time.monotonic() < deadline:
        if (status := reap(engine)) is not None:
            return status
        time.sleep(POLL_SECONDS)
    return 128 + signal.SIGKILL


def kill_descendants() -> None:
    """SIGKILL until none is left: as subreaper, whoever is orphaned comes to us."""
    while pids := descendants(os.getpid()):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        reap(-1)
        time.sleep(POLL_SECONDS)


def descendants(root: int) -> list[int]:
    """Process ids below ``root``, from ``/proc`` (children stand with the thread that forked)."""
    found: list[int] = []
    frontier = [root]
    while frontier:
        children = _children(frontier.pop())
        found += children
        frontier += children
    return found


def _children(pid: int) -> list[int]:
    children: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - no pathlib import here
            with open(f"/proc/{pid}/task/{thread}/children") as file:  # noqa: PTH123
                children += [int(child) for child in file.read().split()]
    return children


if __name__ == "__main__":
    sys.exit(main(sys.argv))
