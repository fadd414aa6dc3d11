"""Forks engines off one process that has imported what they need. Stdlib only, as the keeper.

One connection on the socket is one engine::

    server → gateway   ready                            all is imported
    gateway → server   {"argv", "env", "grace"}         and two descriptors: stdin, stdout
    server → gateway   forked PID                       its guard, which leads a process group
    server → gateway   ended STATUS                     the guard has left, and so have all

An engine stands under a guard and a keeper of its own (``serve.keeper``), so the close of its
standard input stops it, whoever closes it. Knows neither vLLM nor what was imported:
``serve.plugin.zygote`` passes in how a fork becomes an engine.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from serve import keeper

READY = b"ready\n"
FORKED = b"forked "
ENDED = b"ended "
# One request, argv and environment, is a few kilobytes.
REQUEST_BYTES = 2**20

Become = Callable[[Sequence[str], Mapping[str, str]], None]


class ForkServer:
    """Engines forked off this process, each with the connection that asked for it.

    ``become(argv, env)`` turns a fork into the engine; it need not return.
    """

    def __init__(self, listener: socket.socket, become: Become) -> None:
        self._listener = listener
        self._become = become
        self._asking: set[socket.socket] = set()
        self._lives: dict[int, socket.socket] = {}
        self._stopping = False
        self._wake, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> None:
        """Serve until SIGTERM, and until the last life has ended."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        while self._lives or not self._stopping:
            for ready in self._readable():
                if ready is self._listener:
                    self._accept()
                elif ready == self._wake:
                    os.read(self._wake, 4096)
                else:
                    self._take(ready)
            self._reap()

    def _stop(self, *_: object) -> None:
        self._stopping = True
        # A guard passes it on. Without this, engines would serve on until we are killed.
        for guard in self._lives:
            os.kill(guard, signal.SIGTERM)

    def _readable(self) -> list[Any]:
        sources: list[int | socket.socket] = [self._wake]
        if not self._stopping:
            sources += [self._listener, *self._asking]
        with selectors.PollSelector() as selector:
            for source in sources:
                selector.register(source, selectors.EVENT_READ)
            return [key.fileobj for key, _ in selector.select()]

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        if _say(connection, READY):
            self._asking.add(connection)

    def _take(self, connection: socket.socket) -> None:
        """Read one request; fork, or let go of one who left or says something else."""
        self._asking.discard(connection)
        line, descriptors = _received(connection)
        asked = _parsed(line)
        if asked is not None and len(descriptors) == 2:
            self._fork(connection, asked, descriptors)
        else:
            connection.close()
        for descriptor in descriptors:
            os.close(descriptor)

    def _fork(self, connection: socket.socket, asked: dict[str, Any], std: list[int]) -> None:
        # Held back: in the child it would run our handler, and stop nothing.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        child = os.fork()
        if child == 0:
            self._lives[0] = connection
            self._keep(asked, std)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        self._lives[child] = connection
        _say(connection, b"%s%d\n" % (FORKED, child))

    def _keep(self, asked: dict[str, Any], std: list[int]) -> NoReturn:
        """The child: guard and keeper of the engine, with nothing of ours left open."""
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number, descriptor in enumerate((std[0], std[1], std[1])):
            os.dup2(descriptor, number)
        for descriptor in (*std, self._wake, self._wake_writer):
            os.close(descriptor)
        for held in (self._listener, *self._asking, *self._lives.values()):
            held.close()
        os._exit(keeper.hold(lambda: self._become(asked["argv"], asked["env"]), asked["grace"]))

    def _reap(self) -> None:
        while self._lives:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            if connection := self._lives.pop(pid, None):
                _say(connection, b"%s%d\n" % (ENDED, keeper.exit_status(status)))
                connection.close()


def _say(connection: socket.socket, words: bytes) -> bool:
    """Whether anybody heard it; the connection is closed if not."""
    try:
        connection.sendall(words)
    except OSError:
        # The gateway is gone. The keeper has seen its pipe close and does what is needed.
        connection.close()
        return False
    return True


def _received(connection: socket.socket) -> tuple[bytes, list[int]]:
    """One line and the descriptors that came with it; what there is of it when the peer left."""
    line = b""
    descriptors: list[int] = []
    with contextlib.suppress(OSError):
        line, descriptors, _, _ = socket.recv_fds(connection, REQUEST_BYTES, 2)
        while line and not line.endswith(b"\n") and (more := connection.recv(REQUEST_BYTES)):
            line += more
    return line, descriptors


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The request in a line, or None when it is none."""
    try:
        asked = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return asked if isinstance(asked, dict) and {"argv", "env", "grace"} <= asked.keys() else None
