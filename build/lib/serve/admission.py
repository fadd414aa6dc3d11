"""Who may go to the engine now, who waits, and whose turn is next.

A bounded number of requests is at the engine and a bounded number waits. Turns go round the keys
that wait, one request each, so that a key with a thousand waiting requests delays another's first
by one. Nobody has a turn while the gate is shut: the engine starts, or is being changed.

One event loop, no locks. Knows neither HTTP nor what a key is.
"""

import asyncio
import math
from collections import OrderedDict
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Bounds:
    """How much at once: requests at the engine, requests that wait, bytes of bodies held."""

    at_work: int
    waiting: int
    held_bytes: int


@dataclass
class Rate:
    """How fast places become free: an average over about the last ``SPAN`` of them."""

    SPAN = 16
    seconds: float = 0.0
    last: float | None = None

    def note(self, now: float) -> None:
        """A place became free."""
        if self.last is not None:
            gap = now - self.last
            self.seconds += (gap - self.seconds) / self.SPAN if self.seconds else gap
        self.last = now


# Futures in the order of their coming; a dict would take longer and longer to find its first.
Queue = OrderedDict["asyncio.Future[None]", None]


@dataclass
class Admission:
    """The places at the engine and the queue before them."""

    bounds: Bounds
    open: bool = False
    at_work: int = 0
    waiting: int = 0
    held_bytes: int = 0
    rate: Rate = field(default_factory=Rate)
    _queues: "OrderedDict[str, Queue]" = field(default_factory=OrderedDict)

    @property
    def free(self) -> bool:
        """Whether the next to come need not wait."""
        return self.open and self.at_work < self.bounds.at_work and not self.waiting

    @property
    def full(self) -> bool:
        """Whether the next to come can neither go nor wait."""
        return not self.free and self.waiting >= self.bounds.waiting

    def retry_after(self) -> int:
        """Seconds after which a place in the queue is likely to be free: at least 1, at most 60."""
        return min(
            60, max(1, math.ceil(self.rate.seconds * (self.waiting - self.bounds.waiting + 1)))
        )

    def take(self) -> None:
        """A place that is ``free``."""
        self.at_work += 1

    async def wait(self, key: str) -> None:
        """Wait for a turn, and take the place. May be cancelled: nothing is taken then."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(key, OrderedDict())[turn] = None
        self.waiting += 1
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # The turn had come, and nobody is there to use it.
                self.at_work -= 1
                self._next()
            else:
                self._forget(key, turn)
            raise

    def leave(self, now: float) -> None:
        """Give a place back."""
        self.at_work -= 1
        self.rate.note(now)
        self._next()

    def hold(self, more: int, held: int) -> bool:
        """Take ``more`` bytes of a body of which ``held`` are held. Whether there is room.

        One alone always has room: whether it is too large is another's question.
        """
        if held < self.held_bytes and self.held_bytes + more > self.bounds.held_bytes:
            return False
        self.held_bytes += more
        return True

    def shut(self) -> None:
        """No turns until ``unshut``."""
        self.open = False

    def unshut(self) -> None:
        """Turns again."""
        self.open = True
        self._next()

    def _next(self) -> None:
        while self.open and self.waiting and self.at_work < self.bounds.at_work:
            key, queue = next(iter(self._queues.items()))
            turn, _ = queue.popitem(last=False)
            # Behind all other keys that wait.
            self._queues.move_to_end(key)
            if not queue:
                del self._queues[key]
            self.waiting -= 1
            # One that was cancelled just now has yet to hear of it.
            if not turn.done():
                self.at_work += 1
                turn.set_result(None)

    def _forget(self, key: str, turn: "asyncio.Future[None]") -> None:
        queue = self._queues.get(key)
        if queue is None or turn not in queue:
            return
        del queue[turn]
        if not queue:
            del self._queues[key]
        self.waiting -= 1
