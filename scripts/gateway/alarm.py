"""Timers that ring when they are due; uvloop's own count in whole milliseconds.

A timer of the kernel wakes the loop, at some tens of microseconds. Both ends of the benchmark keep
time with it: the fake engine's chunks, and the client's arrivals.
"""

import asyncio
import ctypes
import os
import time
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

CLOCK_MONOTONIC = 1
TFD_TIMER_ABSTIME = 1
NANO = 1_000_000_000


class Spec(ctypes.Structure):
    """``struct itimerspec``: an interval that is not used, and when to ring."""

    _fields_ = (
        ("every_s", ctypes.c_long),
        ("every_ns", ctypes.c_long),
        ("at_s", ctypes.c_long),
        ("at_ns", ctypes.c_long),
    )


class Bell:
    """One call that is due; ``call`` is None once it is not wanted any more."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call: Callable[[], object] | None = call

    def cancel(self) -> None:
        """Do not ring."""
        self.call = None


class Alarm:
    """Calls at times of ``time.perf_counter``, which on Linux is the kernel's monotonic clock."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        self._timer = self._libc.timerfd_create(CLOCK_MONOTONIC, flags)
        if self._timer < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._due: list[tuple[float, int, Bell]] = []
        self._serial = count()
        self._set = 0.0
        self._loop = loop
        loop.add_reader(self._timer, self._ring)

    def at(self, when: float, call: Callable[[], object]) -> Bell:
        """Call ``call`` at ``when``, or as soon as the loop can if that is over."""
        bell = Bell(call)
        heappush(self._due, (when, next(self._serial), bell))
        if not self._set or when < self._set:
            self._arm(when)
        return bell

    def close(self) -> None:
        """Nothing rings any more."""
        self._loop.remove_reader(self._timer)
        os.close(self._timer)

    def _arm(self, when: float) -> None:
        # Zero would disarm it; a time that is over rings at once.
        nanos = max(1, int(when * NANO))
        spec = Spec(0, 0, nanos // NANO, nanos % NANO)
        self._libc.timerfd_settime(self._timer, TFD_TIMER_ABSTIME, ctypes.byref(spec), None)
        self._set = when

    def _ring(self) -> None:
        try:
            os.read(self._timer, 8)
        except BlockingIOError:
            # Set anew after it had rung.
            return
        self._set = 0.0
        try:
            while self._due and self._due[0][0] <= time.perf_counter():
                bell = heappop(self._due)[2]
                if bell.call:
                    bell.call()
        finally:
            # One call that fails must not keep the others from theirs.
            if self._due:
                self._arm(self._due[0][0])
