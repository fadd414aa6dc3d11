"""Log lines: their two forms, and a way to standard error that never holds up the gateway.

Lines are written by a thread of their own. A terminal that is stopped, a pipe that nobody reads
or a disk that is full costs lines, which are counted; it costs no request.
"""

import io
import json
import logging
import os
import queue
import sys
import threading
import time
from contextvars import ContextVar
from typing import Literal

# Of the request that the current task serves.
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")

# Lines that wait for whoever reads them; an engine's start takes some hundreds.
WAITING_LINES = 10_000
# Written by one system call.
AT_ONCE = 100
AGAIN_SECONDS = 0.01
# At the end of the process, for what still waits.
FLUSH_SECONDS = 2.0


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, request id, and what a record has in
    ``facts``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line: dict[str, object] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := REQUEST_ID.get():
            line["request_id"] = request_id
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """For people: the engine's own lines behind a bar, ours behind the time."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, or more when it carries an exception."""
        if record.name == "engine":
            return f"engine | {record.getMessage()}"
        line = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname.lower():7} "
        line += record.getMessage()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class Writer(logging.Handler):
    """Hands lines to a thread that writes them to ``stream``."""

    def __init__(self, stream: io.RawIOBase, most: int = WAITING_LINES) -> None:
        super().__init__()
        self._ended = False
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(most)
        self.lost = 0
        # A daemon: a reader that never reads must not keep the process alive.
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Format it here, where its context is, and leave it to the thread."""
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self.lost += 1
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Write what waits, for a moment."""
        until = time.monotonic() + FLUSH_SECONDS
        try:
            self._lines.put(None, timeout=FLUSH_SECONDS)
        except queue.Full:
            pass
        else:
            self._thread.join(max(0.0, until - time.monotonic()))
        super().close()

    def _write(self) -> None:
        while lines := self._waiting():
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

    def _waiting(self) -> list[str]:
        """Lines that wait, for one system call; none at the end."""
        lines: list[str] = []
        while not self._ended and len(lines) < AT_ONCE:
            try:
                line = self._lines.get(block=not lines)
            except queue.Empty:
                break
            if line is None:
                self._ended = True
            else:
                lines.append(line + "\n")
        return lines


def configure_logging(form: Literal["text", "json"]) -> Writer:
    """Send every record to standard error in one form."""
    # A descriptor of its own: a thread that is stuck in sys.stderr's would hold up the end of the
    # interpreter, which flushes that.
    writer = Writer(io.FileIO(os.dup(sys.stderr.fileno()), "w"))
    writer.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[writer], force=True)
    # uvicorn announces itself in five lines that say less than our two.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    return writer
