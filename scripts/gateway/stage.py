"""A gateway process over an engine with faults, its crowd of clients, and what is left of both.

Knows how to start, ask and count; the faults are others'.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import MappingProxyType

from scripts.gateway import faulted
from scripts.gateway.asking import (
    PATIENCE_SECONDS,
    Ask,
    Asking,
    bearer,
    fetched,
    gauge,
    outcome,
)
from scripts.gateway.line import Answer, Line
from scripts.gateway.stand import NOTHING, Stand, stand_of
from scripts.gateway.verdict import NO_ANSWER, WHOLE, Counts
from scripts.served import free_port
from serve import keyring
from serve.keeper import descendants
from serve.keys import digest_of, new_secret
from serve.settings import BARE, PREFIX, REPOSITORY

POLL_SECONDS = 0.02
RUNNING = "vllm:num_requests_running"
LOG, SEEN = "gateway.log", "seen"


class NotStaged(RuntimeError):
    """The gateway did not become what the scenario begins with; the text says what it said."""


@dataclass
class Stage:
    """One gateway and the engine behind it."""

    process: "subprocess.Popen[bytes]"
    folder: Path
    port: int
    # What its clients show it, where it asks for keys.
    key: str = ""
    began: Stand = NOTHING
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return "127.0.0.1", self.port

    @property
    def said(self) -> str:
        """Its log."""
        return (self.folder / LOG).read_text(errors="replace")

    @property
    def socket(self) -> str:
        """Where the engine listens."""
        return str(next(self.folder.glob("preheat-*")) / "engine.sock")

    # Asking.

    def ask(self, **facts: object) -> Ask:
        """A request with a number of its own, and the key."""
        if self.key:
            facts = {"headers": (bearer(self.key),)} | facts
        return Ask(next(self.numbers), **facts)  # type: ignore[arg-type]

    async def begin(self, **facts: object) -> Asking:
        """Send a request on a new line."""
        ask, line = self.ask(**facts), await Line.open(self.address)
        await line.send(ask.raw())
        return Asking(ask, line, asyncio.create_task(outcome(line, ask)))

    async def several(self, number: int, **facts: object) -> list[Asking]:
        """So many of a kind."""
        return [await self.begin(**facts) for _ in range(number)]

    async def word(self, **facts: object) -> str:
        """What came of one request."""
        try:
            asking = await self.begin(**facts)
        except OSError:
            return NO_ANSWER
        return await asking.task

    async def fetch(self, path: str) -> Answer:
        """The answer to a GET."""
        return await fetched(self.address, path, *([bearer(self.key)] if self.key else []))

    async def until_again(self, since: float, **facts: object) -> float:
        """Seconds from ``since`` until a request is answered as it should be."""
        until = since + PATIENCE_SECONDS
        while (said := await self.word(**facts)) != WHOLE:
            if time.monotonic() > until:
                raise NotStaged(f"no answers any more, but {said}\n{self.said[-2000:]}")
            await asyncio.sleep(POLL_SECONDS)
        return time.monotonic() - since

    # Looking.

    @property
    def engine(self) -> int:
        """The process id of the engine, without its keeper's.

        :raises NotStaged: there is none.
        """
        for pid in descendants(self.process.pid):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if words[1:3] == [b"-m", faulted.FAULTY.encode()]:
                    return pid
        raise NotStaged("there is no engine")

    async def running(self) -> int:
        """How many requests the engine works on, as it says itself.

        :raises OSError: there is none. :raises LookupError: it does not say.
        """
        said = (await fetched(self.socket, "/metrics")).body.decode()
        return int(float(gauge(said, RUNNING)))

    async def metric(self, name: str) -> float:
        """A figure of the gateway's own, of several with labels the sum."""
        return gauge((await self.fetch("/metrics")).body.decode(), name)

    def stand(self) -> Stand:
        """What the gateway holds now."""
        return stand_of(self.process.pid, self.port, self.socket)

    async def is_ready(self) -> bool:
        """Whether it says that it answers."""
        try:
            return (await self.fetch("/ready")).status == 200
        except OSError:
            return False

    async def is_idle(self) -> bool:
        """Whether nobody is connected and nothing runs, by the kernel's, the engine's and the
        gateway's own account.
        """
        said = (await self.fetch("/metrics")).body.decode()
        own = ("preheat_requests_in_flight", "preheat_requests_waiting")
        busy = sum(gauge(said, name) for name in (*own, RUNNING))
        return not busy and await self.is_alone()

    async def is_alone(self) -> bool:
        """Whether no client is connected."""
        return self.stand().connections == 0

    async def until(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        """Return as soon as it holds.

        :raises NotStaged: it never does.
        """
        until = time.monotonic() + PATIENCE_SECONDS
        while not await condition():
            if time.monotonic() > until or self.process.poll() is not None:
                raise NotStaged(f"never: {what}\n{self.said[-2000:]}")
            await asyncio.sleep(POLL_SECONDS)

    async def until_listening(self) -> None:
        """Return once clients can connect."""

        async def listening() -> bool:
            return "gateway on" in self.said

        await self.until(listening, "listening")

    async def until_waiting(self, number: int) -> None:
        """Return once so many requests wait for their turn."""

        async def waiting() -> bool:
            return await self.metric("preheat_requests_waiting") == number

        await self.until(waiting, f"{number} waiting")

    async def counted(self, askings: Iterable[Asking], counts: Counts | None = None) -> Counts:
        """What came of the requests, and what is left when all is over."""
        counts = counts or Counts()
        counts.words.update([await asking.task for asking in askings])
        if self.process.poll() is None:
            await self._look(counts)
        counts.asked_twice = sum(times - 1 for times in self.seen().values())
        return counts

    def seen(self) -> Counter[int]:
        """How often the engine was asked each request that has a number of its own."""
        return Counter(int(line) for line in self.noted() if line.isdecimal() and int(line))

    def noted(self) -> list[str]:
        """What the engine has seen, line by line."""
        path = self.folder / SEEN
        return path.read_text().split("\n") if path.exists() else []

    async def _look(self, counts: Counts) -> None:
        """Until all is as it was at the start, or it is clear that it never will be."""
        until = time.monotonic() + PATIENCE_SECONDS / 2
        while True:
            now = self.stand()
            counts.connections = now.connections - self.began.connections
            counts.descriptors = now.descriptors - self.began.descriptors
            with contextlib.suppress(OSError):
                # There may be none just now.
                counts.running = await self.running()
            left = (counts.running, counts.connections, counts.descriptors)
            if not any(left) and counts.running is not None:
                return
            if time.monotonic() > until:
                if counts.running is None:
                    raise NotStaged(f"no engine answers\n{self.said[-2000:]}")
                return
            await asyncio.sleep(POLL_SECONDS)

    async def ended(self) -> int:
        """Its exit status, once it has ended by itself.

        :raises NotStaged: it does not.
        """
        until = time.monotonic() + PATIENCE_SECONDS
        while (status := self.process.poll()) is None:
            if time.monotonic() > until:
                raise NotStaged(f"it does not end\n{self.said[-2000:]}")
            await asyncio.sleep(POLL_SECONDS)
        return status

    async def stopped(self) -> int:
        """Its exit status after SIGTERM."""
        self.process.terminate()
        return await self.ended()

    async def within(self, condition: Callable[[], Awaitable[bool]]) -> bool:
        """Whether it holds before long."""
        try:
            await self.until(condition, "")
        except (NotStaged, LookupError):
            return False
        return True


@asynccontextmanager
async def stage(
    folder: Path,
    *switches: str,
    settings: Mapping[str, str] = MappingProxyType({}),
    ready: bool = True,
    log: int | None = None,
    key: str = "",
) -> AsyncIterator[Stage]:
    """A gateway, ready unless it need not be; nothing of it is left at the end.

    ``switches`` are of ``scripts.gateway.faulty``, ``settings`` of the gateway; ``log`` is a file
    descriptor that takes the place of a file, ``key`` what clients show who show nothing else.

    :raises NotStaged: it does not get ready.
    """
    made = started(folder, switches, settings, log)
    made.key = key
    try:
        if ready:
            await made.until(made.is_ready, "ready")
            await made.until(made.is_alone, "alone")
            made.began = made.stand()
        yield made
    finally:
        await asyncio.to_thread(gone, made.process)


def started(
    folder: Path,
    switches: Sequence[str] = (),
    settings: Mapping[str, str] = MappingProxyType({}),
    log: int | None = None,
) -> Stage:
    """A gateway that is only just starting. Whoever wants it ends it, by ``gone``."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX) and k not in BARE}
    port = free_port()
    ours = {"TMPDIR": str(folder), "PORT": str(port), "PREHEAT_CHECK_MEMORY": "false"}
    with (folder / LOG).open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "scripts.gateway.faulted", "--seen", folder / SEEN, *switches],
            cwd=REPOSITORY,
            env=inherited | ours | dict(settings),
            stdout=file if log is None else log,
            stderr=file if log is None else log,
            # Ctrl-C is for us, who end it.
            start_new_session=True,
        )
    return Stage(process, folder, port)


def gone(process: "subprocess.Popen[bytes]") -> None:
    """Leave nothing of a gateway."""
    if process.poll() is None:
        below = descendants(process.pid)
        process.kill()
        process.wait()
        # Its keeper ends the engine; a stopped one needs more than that.
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def key_file(path: Path, **facts: int) -> str:
    """A file of one key; its secret."""
    id_, secret = new_secret()
    asked = {"id": id_, "sha256": digest_of(secret), "created": keyring.now(), **facts}
    path.write_bytes(keyring.dump((keyring.Record.model_validate(asked),)))
    path.chmod(0o600)
    return secret
