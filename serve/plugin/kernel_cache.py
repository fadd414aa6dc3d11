"""Where numba finds the machine code of our decoders: in the baked root, which nobody can write.

Numba's own locators want a folder that they can write to, and take a source that was copied for
one that changed, by its time. Named by ``NUMBA_CACHE_LOCATOR_CLASSES`` (numba 0.62 and later).
"""

import contextlib
import hashlib
from pathlib import Path
from typing import Any

from numba.core.caching import UserProvidedCacheLocator


class BakedLocator(UserProvidedCacheLocator):  # type: ignore[misc]
    """``NUMBA_CACHE_DIR``, whether it can be written to or not; sources are told by content."""

    def ensure_cache_path(self) -> None:
        """Make the folder, if that can be; where it cannot, all is there or nothing is kept."""
        with contextlib.suppress(OSError):
            Path(self.get_cache_path()).mkdir(parents=True, exist_ok=True)

    def get_source_stamp(self) -> Any:
        """Of every file beside the kernel's: what it inlines from there is compiled into it."""
        digest = hashlib.sha256()
        for path in sorted(Path(self._py_file).parent.glob("*.py")):
            digest.update(path.read_bytes())
        return digest.hexdigest()
