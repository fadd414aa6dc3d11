"""What can go wrong in ``bake``.

BakeError          stops the program (exit 1): what happened, and the next step
├── Busy           another process works on the same root
├── Malformed      a file is not what its format says, or asks for more than a reader gives
│   └── Misset     a config says what cannot be, or does not go with the tensors beside it
└── Unsupported    a file is sound, and something of it is not known here
"""

from pathlib import Path

from serve.errors import ServeError

DAMAGED = "it is damaged: fetch it again"
CONFIG = "look at config.json: it is not this model's, or was changed"


class BakeError(ServeError):
    """Nothing was made: what stood there before still does."""


class Busy(BakeError):
    """Another process holds the lock of a root."""

    def __init__(self, root: Path, holder: str) -> None:
        super().__init__(
            f"{root}: process {holder} is making it",
            "wait until it is done, or stop it; nothing was touched",
        )


class Malformed(BakeError):
    """``where`` is the file, or a part of it; ``offset`` where in the file it shows."""

    def __init__(
        self, where: str, detail: str, offset: int | None = None, hint: str = DAMAGED
    ) -> None:
        at = "" if offset is None else f" (at byte {offset})"
        super().__init__(f"{where}: {detail}{at}", hint)
        self.where = where
        self.detail = detail
        self.offset = offset


class Misset(Malformed):
    """What ``config.json`` says is wrong; fetching the weights again would not help."""

    def __init__(self, where: str, detail: str) -> None:
        super().__init__(where, detail, hint=CONFIG)


class Unsupported(BakeError):
    """Says exactly what of a file is not known."""
