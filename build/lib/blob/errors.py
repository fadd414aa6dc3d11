"""What stops a program here: what happened, and the next step a person can take.

    Stop
    └── BlobError              a blob, a shard or a manifest is not what it should be
        └── Damaged            its bytes are not those that were written

``serve.errors`` and ``bake.errors`` grow from the same root.
"""


class Stop(Exception):
    """Ends the program with ``exit_code``. ``hint`` is the next step."""

    exit_code = 1

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}\nhint: {self.hint}" if self.hint else self.what


class BlobError(Stop):
    """A blob cannot be made, read or used as asked."""


class Damaged(BlobError):
    """Bytes differ from what the manifest says; ``where`` names the tensor, file or section."""

    def __init__(self, where: str, detail: str) -> None:
        super().__init__(f"{where}: {detail}", "copy or pack the blob again: preheat bake pack")
        self.where = where
        self.detail = detail
