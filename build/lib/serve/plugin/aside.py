"""Computes something in a fork, on another core, while this process goes on importing.

Python runs one thread at a time, so a thread that hashes or parses slows the imports down; a
fork does not. It inherits what is imported already and hands over a pickled result.
"""

import os
import pickle
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Aside(Generic[T]):
    """The result of ``compute``, which runs in a fork from now on."""

    def __init__(self, compute: Callable[[], T]) -> None:
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.close(reading)
            try:
                with os.fdopen(writing, "wb") as pipe:
                    pickle.dump(compute(), pipe)
            finally:
                os._exit(0)
        os.close(writing)
        self._reading = reading

    def result(self) -> T | None:
        """Wait for it; None when the fork has failed, having said why. To be called once."""
        with os.fdopen(self._reading, "rb") as pipe:
            try:
                found: T = pickle.load(pipe)  # noqa: S301 - from our own fork
            except (EOFError, pickle.UnpicklingError):
                return None
        return found
