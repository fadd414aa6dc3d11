"""One timer for all connections."""

import asyncio
from typing import Protocol

# Connections that are looked at in one turn of the loop.
AT_ONCE = 100


class Looked(Protocol):
    """Something that does what is due when it is looked at."""

    loop: asyncio.AbstractEventLoop

    def look(self, now: float) -> None:
        """It is this late, by the loop's clock."""


class Sweep:
    """Looks at every connection once in so many seconds: requests pay for no timers."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._connections: set[Looked] = set()
        # Those that this round has not come to.
        self._ahead: list[Looked] = []
        self._next: asyncio.TimerHandle | None = None

    def add(self, connection: Looked) -> None:
        """Look at this one, too."""
        self._connections.add(connection)
        if self._next is None:
            self._plan(connection.loop)

    def remove(self, connection: Looked) -> None:
        """It is closed."""
        self._connections.discard(connection)

    def _plan(self, loop: asyncio.AbstractEventLoop) -> None:
        # A few at a time: thousands at once would be felt by every stream.
        steps = 1 + len(self._connections) // AT_ONCE
        self._next = loop.call_later(self._seconds / steps, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        ahead = self._ahead or list(self._connections)
        self._ahead = ahead[AT_ONCE:]
        for connection in ahead[:AT_ONCE]:
            if connection in self._connections:
                connection.look(now)
        if self._connections:
            self._plan(loop)
        else:
            self._next = None
            self._ahead = []
