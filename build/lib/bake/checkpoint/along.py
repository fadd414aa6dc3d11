"""Which small files of a checkpoint go along into one that is made of it, by every maker alike."""

from collections.abc import Mapping
from pathlib import Path

from bake.checkpoint.standing import RECORD as CONVERTED
from serve.origin import RECORD as DERIVED

# How the source came to be is no history of what is made of it; and whoever says that it was
# converted may be replaced by a conversion.
HISTORY = (CONVERTED, DERIVED, "quantization.json", "training.json")
# A model needs nothing that it was tried on.
DATA = (".jsonl",)


def goes(name: str) -> bool:
    """Whether a file of this name does."""
    return name not in HISTORY and not name.endswith(DATA)


def along(files: Mapping[str, Path]) -> dict[str, Path]:
    """Those of ``bake.checkpoint.folder.Found.files`` that do."""
    return {name: path for name, path in files.items() if goes(name)}
