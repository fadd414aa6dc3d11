"""Looks for autotuned winners in the compile cache in use, not where they lay at the bake.

A Triton kernel inside an AOT artifact carries its source's path of the bake, and torch 2.13 looks
for the winner beside *that* path, and writes a new one there. A root moved since would be timed
anew at every start, and a copy made to be timed anew (``serve.retune``) would find the original's
winners. The last two parts of the path are its place in any cache, as torch's own
``AutotuneCacheArtifact`` has it.
"""

import os
from pathlib import Path
from typing import Any

MARK = "preheat_wraps"


def needed() -> bool:
    """Whether this build can run Triton kernels and is not wrapped yet."""
    import torch

    if torch.version.cuda is None:
        return False
    return not hasattr(_cache_class().create, MARK)


def apply() -> None:
    """Wrap both ways by which a path comes in: looking a winner up, and unpickling a kernel."""
    kind = _cache_class()
    create, restore = kind.create, kind.__setstate__

    def create_here(inductor_meta: Any, filename: str, configs_hash: str) -> Any:
        return create(inductor_meta, rebased(filename), configs_hash)

    def restore_here(self: Any, state: dict[str, Any]) -> None:
        restore(self, state)
        if self.local_cache is not None:
            cache, path = self.local_cache
            self.local_cache = (cache, rebased(path))

    setattr(create_here, MARK, create)
    kind.create = staticmethod(create_here)
    kind.__setstate__ = restore_here


def rebased(path: str) -> str:
    """``…/ab/name`` in the cache directory in use; anything else as it is."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    *_, folder, name = Path(path).parts
    # Inductor's folders are two characters of a hash.
    return os.path.join(cache_dir(), folder, name) if len(folder) == 2 else path  # noqa: PTH118


def _cache_class() -> Any:
    from torch._inductor.runtime.autotune_cache import AutotuneCache

    return AutotuneCache
