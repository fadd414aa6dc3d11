"""How an engine's process comes to be: executed anew, or forked off a zygote that stands ready.

Both ways put it under ``serve.keeper`` and give back the same three things: a pipe whose close
stops it, its output, and its exit status. Does not know what an engine is or when it is ready.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import PIPE, STDOUT, Process
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

from serve import keeper
from serve.command import Command
from serve.errors import EngineFailed
from serve.forkserver import ENDED, FORKED, READY
from serve.output import TAIL_LINES, read_lines
from serve.startlog import causes

logger = logging.getLogger(__name__)
engine_output = logging.getLogger("engine")

KEEPER = Path(keeper.__file__)
POLL_SECONDS = 0.02
# An interpreter that fails closes its socket first, and tells its traceback after that.
DYING_SECONDS = 5.0
# What the keeper needs beyond the grace to kill and reap.
KEEPER_SECONDS = 10.0


Connection = tuple[StreamReader, StreamWriter]


class Life(Protocol):
    """One engine's process, from the outside."""

    @property
    def stdout(self) -> StreamReader:
        """What it writes; ends when all of it is gone."""

    def close(self) -> None:
        """Have it stopped: SIGTERM, then SIGKILL after the grace."""

    def kill(self) -> None:
        """SIGKILL to its keeper, for one that does not end by ``close``."""

    async def wait(self) -> int:
        """Its exit status, once it and all below it are gone."""


class Launcher(Protocol):
    """A way to start engines."""

    preloads: bool

    async def ready(self) -> None:
        """Return once ``launch`` costs no import any more. May be cancelled.

        :raises EngineFailed: it never will be.
        """

    async def launch(self, argv: Sequence[str], env: Mapping[str, str], grace: float) -> Life:
        """Start ``argv`` under exactly ``env``.

        :raises EngineFailed: no process can be started.
        """

    def close(self) -> None:
        """Leave nothing behind. Lives must have ended before."""


def keeper_argv(argv: Sequence[str], grace: float) -> list[str]:
    """``argv`` under a keeper that gives it ``grace`` seconds to stop."""
    return [sys.executable, "-I", "-S", str(KEEPER), str(grace), *argv]


class Executed:
    """A life that asyncio's own subprocess holds."""

    def __init__(self, process: Process) -> None:
        assert process.stdout is not None  # noqa: S101 - we asked for a pipe
        self.stdout = process.stdout
        self._process = process

    def close(self) -> None:
        """Close the pipe, which makes the keeper stop the engine."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def kill(self) -> None:
        """SIGKILL to guard and keeper."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def wait(self) -> int:
        """The guard's exit status, which is the engine's; 128 + its signal if it was killed."""
        code = await self._process.wait()
        return code if code >= 0 else 128 - code


class Execute:
    """Starts each engine from nothing."""

    preloads = False

    async def ready(self) -> None:
        """At once."""

    async def launch(self, argv: Sequence[str], env: Mapping[str, str], grace: float) -> Executed:
        """A keeper, which executes ``argv``."""
        try:
            process = await asyncio.create_subprocess_exec(
                *keeper_argv(argv, grace),
                env=dict(env),
                stdin=PIPE,
                stdout=PIPE,
                stderr=STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise EngineFailed(f"no process can be started: {error.strerror}") from error
        return Executed(process)

    def close(self) -> None:
        """Nothing is left between two lives."""


class Forked:
    """A life that a fork server holds, and tells the end of."""

    def __init__(self, pid: int, stdin: int, stdout: StreamReader, server: Connection) -> None:
        self.stdout = stdout
        self._pid = pid
        self._stdin: int | None = stdin
        self._ended = asyncio.create_task(self._end(server))

    def close(self) -> None:
        """Close the pipe, which makes the keeper stop the engine."""
        if self._stdin is not None:
            os.close(self._stdin)
        self._stdin = None

    def kill(self) -> None:
        """SIGKILL to guard and keeper."""
        with contextlib.suppress(ProcessLookupError):
            if self._pid:
                os.killpg(self._pid, signal.SIGKILL)

    async def wait(self) -> int:
        """What the server said; 128 + SIGKILL when it ended before it could."""
        return await asyncio.shield(self._ended)

    async def _end(self, server: Connection) -> int:
        told, writer = server
        try:
            said = await told.readline()
        finally:
            writer.close()
        return int(said.removeprefix(ENDED)) if said.startswith(ENDED) else 128 + signal.SIGKILL


class Zygote:
    """Starts engines as forks of one process that has imported what they need.

    ``argv`` is a ``serve.forkserver`` that listens at ``path``. It begins to import as soon as
    this object is made, and is started again when it has died.
    """

    preloads = True

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], path: Path, grace: float
    ) -> None:
        self._argv = keeper_argv(argv, grace)
        self._env = dict(env)
        self._path = path
        self._grace = grace
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._reading: asyncio.Task[None] | None = None
        self._connection: Connection | None = None
        self._proven = False
        self._process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        # Not asyncio's: the imports begin before there is an event loop.
        self._path.unlink(missing_ok=True)
        try:
            return subprocess.Popen(
                self._argv,
                env=self._env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise EngineFailed(f"no process can be started: {error.strerror}") from error

    async def ready(self) -> None:
        """Connect, and wait until all is imported."""
        self._disconnect()
        while not await self._greeted():
            # One that was ready and has died since is started again; one that never was, fails.
            if not self._proven:
                raise await self._failed()
            await self._end()
            self._process, self._proven = self._start(), False
        self._proven = True

    async def _greeted(self) -> bool:
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        self._connection = await self._connect()
        try:
            return self._connection is not None and await self._connection[0].readline() == READY
        except ConnectionError:
            # It dies with our connection in its queue, and has yet to say why.
            await self._dead()
            return False

    async def _dead(self) -> None:
        """Wait for an end that has begun: to hasten it would cut short what it says."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DYING_SECONDS):
                while self._process.poll() is None:
                    await asyncio.sleep(POLL_SECONDS)

    async def launch(self, argv: Sequence[str], env: Mapping[str, str], grace: float) -> Forked:
        """Ask for a fork on the connection that said ready."""
        if self._connection is None:
            await self.ready()
        assert self._connection is not None  # noqa: S101 - ready has made it
        connection, self._connection = self._connection, None
        stdin, stdin_writer = os.pipe()
        output, output_writer = os.pipe()
        request = {"argv": list(argv), "env": dict(env), "grace": grace}
        try:
            _send(connection, json.dumps(request).encode() + b"\n", [stdin, output_writer])
            said = await connection[0].readline()
        except OSError:
            said = b""
        finally:
            os.close(stdin)
            os.close(output_writer)
        stdout = await _reader(os.fdopen(output, "rb"))
        if not said.startswith(FORKED):
            # It was ready and has died since: a life that ended at once, and told so.
            return Forked(0, stdin_writer, stdout, connection)
        return Forked(int(said.removeprefix(FORKED)), stdin_writer, stdout, connection)

    def close(self) -> None:
        """End the server, as its keeper does it."""
        self._disconnect()
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(self._grace + KEEPER_SECONDS)
        except subprocess.TimeoutExpired:
            logger.error("the zygote's keeper does not end; killing it")
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._reading is None and self._process.stdout is not None:
            self._process.stdout.close()

    async def _connect(self) -> Connection | None:
        """A connection, or None once the server is gone."""
        while self._process.poll() is None:
            try:
                return await asyncio.open_unix_connection(self._path)
            except (FileNotFoundError, ConnectionRefusedError):
                # Not there yet, or not there any more.
                await asyncio.sleep(POLL_SECONDS)
        return None

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection[1].close()
        self._connection = None

    async def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - we asked for a pipe
        reader = await _reader(self._process.stdout)
        async for line in read_lines(reader):
            if line.startswith(keeper.PID_LINE):
                continue
            self._tail.append(line)
            engine_output.info("%s", line)

    async def _end(self) -> None:
        """Close, and read what it still says."""
        await asyncio.to_thread(self.close)
        if self._reading is not None:
            await self._reading
        self._reading = None

    async def _failed(self) -> EngineFailed:
        await self._end()
        said = "\n".join(f"engine | {line}" for line in causes(list(self._tail)))
        status = self._process.returncode
        return EngineFailed(f"the engine cannot be imported: exit status {status}\n{said}")


def _send(connection: Connection, message: bytes, descriptors: Sequence[int]) -> None:
    # asyncio cannot send descriptors: on a duplicate, which may block, as the server reads.
    with socket.socket(fileno=os.dup(connection[1].get_extra_info("socket").fileno())) as raw:
        raw.setblocking(True)
        sent = socket.send_fds(raw, [message], descriptors)
        raw.sendall(message[sent:])


def open_launcher(command: Command, grace: float) -> Launcher:
    """A zygote that begins to import now, where the command names one."""
    if not command.zygote:
        return Execute()
    return Zygote(command.zygote, command.env, Path(command.zygote[-1]), grace)


async def _reader(pipe: IO[bytes]) -> StreamReader:
    """A stream over the reading end of a pipe; closes it when it ends."""
    reader = StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    return reader
