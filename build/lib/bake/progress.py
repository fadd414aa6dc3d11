"""Says how far a long work is: a live line on a terminal, plain lines anywhere else.

Both write to stderr: stdout is for results. Keeps the seconds of each phase for the report.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

# Is told what is done, of how much: bytes; of 0 where nobody knows.
Shown = Callable[[int, int], None]


class Progress(Protocol):
    """What a work tells while it goes on."""

    def say(self, line: str) -> None:
        """One line that stays."""

    def step(self, what: str, done: int = 0, total: int = 0) -> None:
        """What is being done within the phase; ``total`` 0 when nobody knows."""

    def begin(self, phase: str) -> None:
        """A phase begins."""

    def end(self, phase: str, seconds: float) -> None:
        """It ended well."""


class Plain:
    """One line a phase, for logs."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr

    def say(self, line: str) -> None:
        """One line that stays."""
        print(line, file=self._stream, flush=True)

    def step(self, what: str, done: int = 0, total: int = 0) -> None:
        """Steps are not told: a log would fill with them."""

    def begin(self, phase: str) -> None:
        """A phase begins."""
        self.say(f"  {phase} …")

    def end(self, phase: str, seconds: float) -> None:
        """It ended well."""
        self.say(f"  {phase} done in {seconds:.1f} s")


class Live:
    """A spinner, the phase, its step and seconds; what is done stays above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.status import Status

        self._console = Console(stderr=True)
        self._status = Status("", console=self._console)
        self._phase = ""

    def say(self, line: str) -> None:
        """One line that stays."""
        self._console.print(line, markup=False, highlight=False)

    def step(self, what: str, done: int = 0, total: int = 0) -> None:
        """Show the step behind the phase."""
        counted = f" {done}/{total}" if total else ""
        self._status.update(f"{self._phase}[dim]{counted} {what}[/dim]")

    def begin(self, phase: str) -> None:
        """A phase begins."""
        self._phase = phase
        self._status.update(phase)
        self._status.start()

    def end(self, phase: str, seconds: float) -> None:
        """It ended well."""
        self._status.stop()
        self._console.print(f"  [green]✓[/green] {phase} [dim]{seconds:.1f} s[/dim]")

    def close(self) -> None:
        """Give the terminal back."""
        self._status.stop()


@contextmanager
def shown() -> Iterator[Progress]:
    """What suits standard error."""
    if not sys.stderr.isatty():
        yield Plain()
        return
    live = Live()
    try:
        yield live
    finally:
        live.close()


class Timer:
    """Tells phases to a ``Progress`` and remembers how long each took."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """One phase; a phase that fails has no time."""
        started = time.monotonic()
        self.progress.begin(name)
        yield
        took = time.monotonic() - started
        self.seconds[name] = round(took, 3)
        self.progress.end(name, took)


def silent(_done: int, _total: int) -> None:
    """Show no progress."""


@contextmanager
def bar(what: str, *, quiet: bool) -> Iterator[Shown]:
    """A bar of bytes on a terminal's standard error; nothing elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


@contextmanager
def timed_bar(what: str, *, quiet: bool) -> Iterator[Shown]:
    """``bar``, and how long it took as a line that stays."""
    began = time.monotonic()
    with bar(what, quiet=quiet) as shown:
        yield shown
    if not quiet:
        say(f"  {what}: {time.monotonic() - began:.1f} s")


def say(line: str) -> None:
    """One line on standard error, at once."""
    print(line, file=sys.stderr, flush=True)
