"""A wall clock that is a day ahead and a day behind in turn, eleven times a second.

With this folder in ``PYTHONPATH`` an interpreter starts with it. The monotonic clock goes on as it
does. Files keep their times, and what C asks the kernel for by itself is not reached.
"""

import time

DAY = 24 * 3600
# Odd: who looks once a second sees both.
PER_SECOND = 11

real_time = time.time


def jumping_time() -> float:
    """In place of ``time.time``."""
    ahead = int(time.monotonic() * PER_SECOND) % 2
    return real_time() + (DAY if ahead else -DAY)


def jumping_time_ns() -> int:
    """In place of ``time.time_ns``."""
    return int(jumping_time() * 1e9)


time.time = jumping_time
time.time_ns = jumping_time_ns
