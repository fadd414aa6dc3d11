"""Lets Inductor live on a cache that it cannot write to, and leaves the compiler alone.

An engine that serves from a baked root (``VLLM_FORCE_AOT_LOAD=1``) finds every library there.
Torch 2.13 asks for more before it looks: a lock file beside each library, which a read-only root
refuses ("Failed to reload cache entry from disk"), and a large precompiled header in the
temporary folder, made by g++ and for nothing, as there is nothing left to compile. So locks are
taken in the temporary folder and the header is left out; should something be compiled after all,
it is compiled without. No cache key holds either.

Nor need it be compiled: vLLM compiles some small functions at the request that first needs them,
and the bake may have sent none such. Without a compiler that would end the engine, and a client
could end it. So they are run as Python then, which Dynamo logs; only while a bake is verified,
it ends the engine, or the proof would be none.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

from serve.plugin import factors

VARIABLE = "VLLM_FORCE_AOT_LOAD"


def needed() -> bool:
    """Whether this engine must load what it runs, and Inductor is not told yet."""
    if not forced():
        return False
    from torch._inductor import codecache

    return codecache.get_lock_dir is not lock_folder


def forced() -> bool:
    """Whether this engine must load what it runs."""
    return os.environ.get(VARIABLE, "0") not in ("", "0")


def apply() -> None:
    """Replace the two functions where Inductor looks them up, and have Dynamo bear with it."""
    from torch._dynamo import config
    from torch._inductor import codecache

    codecache.get_lock_dir = lock_folder
    codecache._precompile_header = no_header
    # Whoever verifies has the factors recorded; whoever serves has not.
    if not os.environ.get(factors.VARIABLE):
        config.suppress_errors = True


def lock_folder() -> str:
    """Where this user's engines take their locks."""
    folder = Path(tempfile.gettempdir()) / f"preheat-locks-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    # Opening a lock truncates it: not through a folder in which somebody else laid out links.
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} is somebody else's; remove it, or set TMPDIR")
    return str(folder)


def no_header(*_: Any, **__: Any) -> None:
    """Stands in for ``_precompile_header``: compile without one."""
