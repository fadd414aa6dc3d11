import io
import json
import logging
import sys
import threading
from pathlib import Path

from serve.logs import AT_ONCE, REQUEST_ID, JsonFormatter, TextFormatter, Writer


def record(message: str, name: str = "access") -> logging.LogRecord:
    return logging.LogRecord(name, logging.INFO, __file__, 1, message, None, None)


def test_a_json_line_is_one_object_whatever_the_message_holds() -> None:
    REQUEST_ID.set("")
    line = JsonFormatter().format(record('two\nlines " é'))
    assert "\n" not in line
    assert json.loads(line)["message"] == 'two\nlines " é'
    assert "request_id" not in json.loads(line)


def test_an_exception_is_told_in_both_forms() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        failed = logging.LogRecord(
            "serve", logging.ERROR, __file__, 1, "failed", None, sys.exc_info()
        )
    assert "ValueError: why" in json.loads(JsonFormatter().format(failed))["exception"]
    assert TextFormatter().format(failed).endswith("ValueError: why")


def test_the_engines_own_lines_stand_behind_a_bar() -> None:
    assert TextFormatter().format(record("INFO said", "engine")) == "engine | INFO said"


class Stalled(io.RawIOBase):
    """Takes nothing until it is released."""

    def __init__(self) -> None:
        self.asked, self.released = threading.Event(), threading.Event()
        self.taken = b""

    def write(self, data: object, /) -> int:
        self.asked.set()
        self.released.wait()
        line = bytes(data)  # type: ignore[call-overload]
        self.taken += line
        return len(line)


def writing_to(stream: io.RawIOBase, most: int) -> Writer:
    writer = Writer(stream, most)
    writer.setFormatter(logging.Formatter("%(message)s"))
    return writer


def test_lines_are_written_whole_and_in_order_by_the_time_it_is_closed(tmp_path: Path) -> None:
    told = [f"line {number}" for number in range(3 * AT_ONCE + 1)]
    with io.FileIO(tmp_path / "log", "w") as stream:
        writer = writing_to(stream, len(told))
        for line in told:
            writer.emit(record(line))
        writer.close()
    assert (tmp_path / "log").read_text().splitlines() == told
    assert writer.lost == 0


def test_lines_beyond_what_may_wait_are_lost_counted_and_hold_nobody_up() -> None:
    stream = Stalled()
    writer = writing_to(stream, 2)
    writer.emit(record("first"))
    assert stream.asked.wait(10)
    for line in ("second", "third", "fourth", "fifth"):
        writer.emit(record(line))
    assert writer.lost == 2
    stream.released.set()
    writer.close()
    assert stream.taken == b"first\nsecond\nthird\n"


def test_a_full_disk_costs_lines_that_are_counted() -> None:
    with io.FileIO("/dev/full", "w") as stream:
        writer = writing_to(stream, 10)
        writer.emit(record("lost"))
        writer.close()
    assert writer.lost == 1
