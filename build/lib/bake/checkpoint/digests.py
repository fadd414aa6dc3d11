"""SHA-256 of a conversion's sources, while it goes on: hashing leaves the interpreter to others."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from types import TracebackType

from bake.checkpoint.folder import Shard


class Digests:
    """Reads every file once more, one after the other, from what the machine still has of it."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._stop = Event()
        self._pool = ThreadPoolExecutor(1)
        self._made: Mapping[str, Future[str]] = {
            shard.path.name: self._pool.submit(shard.source.sha256, self._stop.is_set)
            for shard in shards
        }

    def __enter__(self) -> "Digests":
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _where: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True)

    def all(self) -> dict[str, str]:
        """By the names of the files; waits for the last."""
        return {name: future.result() for name, future in self._made.items()}
