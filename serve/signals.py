"""The signals that a gateway takes, held back while nobody could take them."""

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

STOPPING = (signal.SIGINT, signal.SIGTERM)
# Soon to be stopped: whoever can go elsewhere is told to, and all are served.
LEAVING = signal.SIGUSR1


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
