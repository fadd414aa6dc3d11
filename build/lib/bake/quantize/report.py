"""What a quantization tells of itself; the same bytes for the same work."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

NAME = "quantization.json"


@dataclass(frozen=True)
class Searched:
    """One search: the module whose output is divided, the matrices behind it, and the point of
    the grid that won. Errors are of these matrices' outputs: ‖Q(W)x − Wx‖² / ‖Wx‖².
    """

    before: str
    weights: tuple[str, ...]
    ratio: float
    duo: bool
    rounded_error: float
    error: float


@dataclass(frozen=True)
class Report:
    """``errors``: ‖Q(W) − W‖ / ‖W‖ of each packed tensor, W being what was rounded (scaled, with
    AWQ). ``bytes_before`` and ``bytes_after`` are of all tensors, ``head_bytes_*`` of the
    head alone: a tied one takes none before. ``seconds`` is not part of the file.
    """

    folder: Path
    recipe: Mapping[str, Any]
    source: Mapping[str, str]
    tensors: int
    bytes_before: int
    bytes_after: int
    head_bytes_before: int
    head_bytes_after: int
    errors: Mapping[str, float]
    left: Mapping[str, str]
    searched: tuple[Searched, ...] = ()
    calibration: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Everything, for a program."""
        return {**asdict(self), "folder": str(self.folder)}

    def file(self) -> bytes:
        """As the folder keeps it: nothing of when and where."""
        told = {k: v for k, v in asdict(self).items() if k not in ("folder", "seconds")}
        return (json.dumps(told, indent=1, sort_keys=True) + "\n").encode()
