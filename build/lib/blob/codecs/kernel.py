"""How kernels are compiled, and where their machine code is kept.

Numba's own cache looks at the file that holds a kernel, by its time: code inlined from another
file would stay as it was, and a copied file would be compiled again. Ours looks at what all files
of this folder say, and all of the kernel's own where that is another. It takes ``NUMBA_CACHE_DIR``
even where nobody can write to it, as in a baked root, and ``__pycache__`` otherwise.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit
from numba.core import config
from numba.core.caching import CacheImpl, UserProvidedCacheLocator

HERE = Path(__file__).parent

# Folders that hold kernels of ours.
HOMES: set[Path] = set()


def kernel(function: Callable[..., Any]) -> Any:
    """Compile ``function`` when it is first called, and keep its machine code.

    Never fastmath: it contracts a multiplication and an addition to one rounding, and bytes change.
    """
    HOMES.add(Path(function.__code__.co_filename).parent)
    return njit(cache=True, nogil=True, error_model="numpy")(function)


class Locator(UserProvidedCacheLocator):  # type: ignore[misc]
    """Where our kernels are kept; those of others are not touched."""

    def __init__(self, py_func: Any, py_file: str) -> None:
        super().__init__(py_func, py_file)
        self._home = Path(py_file).parent
        if not config.CACHE_DIR:
            self._cache_path = str(self._home / "__pycache__")

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> "Locator | None":
        """For a kernel of ours, if there is a place for it."""
        if Path(py_file).parent not in HOMES:
            return None
        made = cls(py_func, py_file)
        made.ensure_cache_path()
        return made if config.CACHE_DIR or os.access(made.get_cache_path(), os.W_OK) else None

    def ensure_cache_path(self) -> None:
        """Make the folder, if that can be; where it cannot, all is there or nothing is kept."""
        with contextlib.suppress(OSError):
            Path(self.get_cache_path()).mkdir(parents=True, exist_ok=True)

    def get_source_stamp(self) -> str:
        """Of every file that a kernel could inline."""
        return _stamp(self._home)


@cache
def _stamp(home: Path) -> str:
    digest = hashlib.sha256()
    for folder in sorted({HERE, home}):
        for path in sorted(folder.glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


CacheImpl._locator_classes.insert(0, Locator)
