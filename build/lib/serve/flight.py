"""One request on its way, and the ways in which it can be ended before its answer is whole.

Whoever ends it says why; the task that serves it is cancelled, wherever it waits, and tells the
client. The first reason stands.
"""

import asyncio

from serve.errors import Refusal

# A client that has left is told nothing.
GONE = Refusal(499, "client_gone", "the client left")
GATEWAY_STOPS = Refusal(
    503,
    "gateway_stopping",
    "the gateway stops",
    headers={"connection": "close", "retry-after": "2"},
)
ENGINE_FAILED = Refusal(
    503,
    "engine_failed",
    "the engine is gone and is not started again",
    headers={"connection": "close", "retry-after": "2"},
)


class Flight:
    """A request that the current task serves."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - the server runs every request in one
        self._task = task
        self._over = False
        # Whether it has had its turn at the engine.
        self.at_work = False
        self.ended_by: Refusal | None = None

    def end(self, why: Refusal) -> None:
        """Stop serving it, unless it is over or being stopped already."""
        if not self._over and self.ended_by is None:
            self.ended_by = why
            self._task.cancel()

    def over(self) -> None:
        """Its answer is whole: nothing ends it any more."""
        self._over = True

    def caught(self) -> Refusal | None:
        """Why the task was cancelled, if by ``end``; from here on it can wait again."""
        if self.ended_by is not None:
            self._task.uncancel()
            self._over = True
        return self.ended_by

    def ends_in(self, seconds: float | None, why: Refusal) -> "Timer | None":
        """End it so many seconds from now, unless the timer is cancelled; None for never."""
        if seconds is None:
            return None
        return asyncio.get_running_loop().call_later(seconds, self.end, why)


Timer = asyncio.TimerHandle


class Flights:
    """All that are on their way."""

    def __init__(self) -> None:
        self._all: set[Flight] = set()

    def __len__(self) -> int:
        return len(self._all)

    def begin(self) -> Flight:
        """One more, of the current task, until ``over``."""
        flight = Flight()
        self._all.add(flight)
        return flight

    def over(self, flight: Flight) -> None:
        """One less."""
        flight.over()
        self._all.discard(flight)

    def end(self, why: Refusal, *, at_work: bool = False) -> None:
        """End every one of them, or every one at work."""
        for flight in list(self._all):
            if flight.at_work or not at_work:
                flight.end(why)
