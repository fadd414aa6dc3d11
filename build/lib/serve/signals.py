"""The signals that stop a gateway, held back while nobody could take them."""

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def held(numbers: Iterable[int]) -> Iterator[None]:
    """Keep signals back until somebody takes them (``serve.run``), at the latest until the end.

    One that came while an event loop is being set up would be lost.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
