"""What a key has used, and whether it may ask now.

The time is passed in, as seconds of a monotonic clock. All of it lives in memory: a gateway that
is started again begins anew, as does one of several that share a file of keys.

Requests and tokens of a minute stand in buckets that fill steadily, so that nobody gets the worth
of two minutes at a minute's edge. A day is 24 hours from the first use on: a wall clock jumps.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from serve.keys import Key

SECOND = 10**9
MINUTE = 60 * SECOND
DAY = 24 * 60 * MINUTE
# Seconds are floats: an exact wait, added to a time, could come out a hair too short.
SLACK = 1_000
# When a request at work will end is not known.
CONCURRENCY_SECONDS = 1.0


@dataclass(frozen=True)
class Spent:
    """Why not now; after ``retry_after`` seconds it is worth asking again."""

    code: str
    message: str
    retry_after: float


@dataclass
class Bucket:
    """Holds what ``limit`` allows in a minute, and fills by as much in each.

    A request or a token is ``MINUTE`` parts, of which ``limit`` come in each nanosecond: whole
    numbers, so that no rounding adds up over a million requests.
    """

    limit: int
    at: int
    parts: int

    def holds(self, now: int) -> int:
        """Parts that are in it; below zero while more was taken than there was."""
        return min(self.limit * MINUTE, self.parts + max(now - self.at, 0) * self.limit)

    def take(self, amount: int, now: int) -> None:
        """Take requests or tokens, whether they are there or not."""
        self.parts = self.holds(now) - amount * MINUTE
        self.at = max(self.at, now)

    def wait(self, wanted: int, now: int) -> int:
        """Nanoseconds until it holds ``wanted`` parts; 0 when it does."""
        missing = wanted - self.holds(now)
        return -(-missing // self.limit) if missing > 0 else 0

    def limited(self, limit: int, now: int) -> "Bucket":
        """As much was taken from it, and another limit holds.

        A lower one takes back what was left, and makes no debt of what its forerunner allowed.
        """
        there = self.holds(now)
        left = (limit - self.limit) * MINUTE + there
        return Bucket(limit, now, max(left, min(there, 0)))


class Quota:
    """What one key has used."""

    def __init__(self, key: Key, now: float) -> None:
        at = _nanoseconds(now)
        self.key = key
        self._at_work = 0
        self._requests = _bucket(key.requests_per_minute, None, at)
        self._tokens = _bucket(key.tokens_per_minute, None, at)
        # Counted without a limit, too: one may be set while the day lasts.
        self._today = 0
        self._day_began: int | None = None

    def refusal(self, now: float) -> Spent | None:
        """Why no request is admitted now: of several reasons the one that lasts longest."""
        reasons = self._reasons(_nanoseconds(now))
        return max(reasons, key=lambda reason: reason.retry_after, default=None)

    def begin(self, now: float) -> None:
        """Count a request that was admitted, and one more at work."""
        self._at_work += 1
        if self._requests:
            self._requests.take(1, _nanoseconds(now))

    def end(self) -> None:
        """A request that was begun is over."""
        self._at_work -= 1

    def use(self, tokens: int, now: float) -> None:
        """Count what a request cost."""
        # An engine that counts below zero gives nobody anything back.
        if tokens <= 0:
            return
        at = _nanoseconds(now)
        if self._tokens:
            self._tokens.take(tokens, at)
        if self._day_left(at) == 0:
            self._today, self._day_began = 0, at
        self._today += tokens

    def change(self, key: Key, now: float) -> None:
        """Other limits hold from now on; what was used stays used."""
        at = _nanoseconds(now)
        self._requests = _bucket(key.requests_per_minute, self._requests, at)
        self._tokens = _bucket(key.tokens_per_minute, self._tokens, at)
        self.key = key

    def _reasons(self, now: int) -> Iterator[Spent]:
        key = self.key
        if key.concurrency is not None and self._at_work >= key.concurrency:
            said = f"key {key} may have {key.concurrency} requests at work at once"
            yield Spent("concurrency", said, CONCURRENCY_SECONDS)
        if self._requests and (wait := self._requests.wait(MINUTE, now)):
            said = f"key {key} may ask {key.requests_per_minute} requests a minute"
            yield Spent("requests_per_minute", said, _seconds(wait))
        # Above zero is enough: what a request costs is known when it is over.
        if self._tokens and (wait := self._tokens.wait(1, now)):
            said = f"key {key} may use {key.tokens_per_minute} tokens a minute"
            yield Spent("tokens_per_minute", said, _seconds(wait))
        day = key.tokens_per_day
        if day is not None and self._today >= day and (wait := self._day_left(now)):
            said = f"key {key} may use {day} tokens a day"
            yield Spent("tokens_per_day", said, _seconds(wait))

    def _day_left(self, now: int) -> int:
        """Nanoseconds; 0 when no day has begun."""
        return 0 if self._day_began is None else max(self._day_began + DAY - now, 0)


def _bucket(limit: int | None, before: Bucket | None, now: int) -> Bucket | None:
    if limit is None:
        return None
    return before.limited(limit, now) if before else Bucket(limit, now, limit * MINUTE)


def _nanoseconds(now: float) -> int:
    return round(now * SECOND)


def _seconds(wait: int) -> float:
    return (wait + SLACK) / SECOND
