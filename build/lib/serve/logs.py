"""Log lines: their two forms, and a way to standard error that never holds up the gateway.

Lines are written by a thread of their own. A terminal that is stopped, a pipe that nobody reads
or a disk that is full costs lines, which are counted; it costs no request.
"""

import io
import json
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextvars import ContextVar
from functools import lru_cache
from typing import Literal

# Of the request that the current task serves.
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")

# Lines that wait for whoever reads them; an engine's start takes some hundreds.
WAITING_LINES = 10_000
# Written by one system call.
AT_ONCE = 100
# To wake the thread costs twice what a line does, so the lines of a while share one wake-up.
GATHER_SECONDS = 0.01
AGAIN_SECONDS = 0.01
# At the end of the process, for what still waits.
FLUSH_SECONDS = 2.0

_encode = json.JSONEncoder(ensure_ascii=False).encode


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, request id, and what a record has in
    ``facts``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line: dict[str, object] = {
            "time": _stamp(int(record.created), "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := REQUEST_ID.get():
            line["request_id"] = request_id
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encode(line)


class TextFormatter(logging.Formatter):
    """For people: the engine's own lines behind a bar, ours behind the time."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, or more when it carries an exception."""
        if record.name == "engine":
            return f"engine | {record.getMessage()}"
        line = f"{_stamp(int(record.created), '%H:%M:%S')} {record.levelname.lower():7} "
        line += record.getMessage()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class Writer(logging.Handler):
    """Hands lines to a thread that writes them to ``stream``."""

    def __init__(self, stream: io.RawIOBase, most: int = WAITING_LINES) -> None:
        super().__init__()
        self._stream = stream
        self._most = most
        self._lines: deque[str] = deque()
        self._woken = threading.Event()
        self._ended = threading.Event()
        self.lost = 0
        # A daemon: a reader that never reads must not keep the process alive.
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Format it here, where its context is, and leave it to the thread."""
        if len(self._lines) >= self._most:
            self.lost += 1
            return
        try:
            self._lines.append(self.format(record) + "\n")
        except Exception:
            self.handleError(record)
        else:
            if not self._woken.is_set():
                self._woken.set()

    def close(self) -> None:
        """Write what waits, for a moment."""
        self._ended.set()
        self._woken.set()
        self._thread.join(FLUSH_SECONDS)
        super().close()

    def _write(self) -> None:
        while not self._ended.is_set():
            self._woken.wait()
            self._ended.wait(GATHER_SECONDS)
            # Before the lines are taken: one that comes meanwhile wakes again.
            self._woken.clear()
            for lines in self._waiting():
                self._write_out(lines)

    def _waiting(self) -> Iterator[list[str]]:
        """What waits, as much of it as one system call writes."""
        while taken := [self._lines.popleft() for _ in range(min(AT_ONCE, len(self._lines)))]:
            yield taken

    def _write_out(self, lines: list[str]) -> None:
        data = memoryview("".join(lines).encode(errors="backslashreplace"))
        try:
            while data:
                written = self._stream.write(data) or 0
                data = data[written:]
                if not written:
                    # A descriptor that somebody made non-blocking, and a reader that is slow.
                    time.sleep(AGAIN_SECONDS)
        except (OSError, ValueError):
            # A full disk, or a reader that has left; the next lines may fare better.
            self.lost += len(lines)


def configure_logging(form: Literal["text", "json"]) -> Writer:
    """Send every record to standard error in one form."""
    # A descriptor of its own: a thread that is stuck in sys.stderr's would hold up the end of the
    # interpreter, which flushes that.
    writer = Writer(io.FileIO(os.dup(sys.stderr.fileno()), "w"))
    writer.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    # In neither form, and to gather it takes as long as the rest of a record; by
    # https://docs.python.org/3/howto/logging.html#optimization
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(level=logging.INFO, handlers=[writer], force=True)
    # uvicorn announces itself in five lines that say less than our two.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    return writer


@lru_cache(maxsize=2)
def _stamp(second: int, form: str) -> str:
    return time.strftime(form, time.localtime(second))
