"""Asks the kernel to read a checkpoint while Python still imports.

The disk is idle for the seconds that a start spends on modules, and the weights are wanted right
after. A hint, nothing else: the pages come into the cache that the engine then maps, and go first
when memory is short.
"""

import os
from pathlib import Path


def read_ahead(folder: Path) -> None:
    """Begin to read every shard in ``folder``, in order. May block while the disk is busy."""
    for shard in sorted(folder.glob("*.safetensors")):
        descriptor = os.open(shard, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)
