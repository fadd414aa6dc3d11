"""What can go wrong in ``bake``.

BakeError          stops the program (exit 1): what happened, and the next step
└── Busy           another process works on the same root
"""

from pathlib import Path

from serve.errors import ServeError


class BakeError(ServeError):
    """Nothing was made: what stood there before still does."""


class Busy(BakeError):
    """Another process holds the lock of a root."""

    def __init__(self, root: Path, holder: str) -> None:
        super().__init__(
            f"{root}: process {holder} is making it",
            "wait until it is done, or stop it; nothing was touched",
        )
