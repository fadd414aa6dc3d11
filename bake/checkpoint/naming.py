"""Names in archives and in pickles: anybody's texts, which may come near a path or a terminal.

safetensors and GGUF take fewer (``blob.header.check_names``). Here names may have folders, as NumPy
and JAX write them, but no way out of one.
"""

import re
from collections.abc import Collection

from bake.errors import Malformed

# In names joined by NUL: what commands a terminal, and parts that are empty, "." or "..".
BAD = re.compile(r"[\x01-\x1f\x7f-\x9f\\]|(?:^|\0)/|//|(?:^|[/\0])\.\.?(?:$|[/\0])|\0\0|^\0|\0$|^$")


def strange(names: Collection[str]) -> str | None:
    """The first that is empty, or leads out of a folder. One may end with a slash, as folders do
    in archives.
    """
    joined = "\0".join(names)
    if not names or (joined.count("\0") == len(names) - 1 and not BAD.search(joined)):
        return None
    return next((name for name in names if "\0" in name or BAD.search(name)), "")


def check_tensors(names: Collection[str], where: str) -> None:
    """:raises Malformed: one is empty, is a folder's, or leads out of one."""
    bad = strange(names)
    if bad is None and "/\0" in "\0".join((*names, "")):
        bad = next(name for name in names if name.endswith("/"))
    if bad is not None:
        raise Malformed(where, f"a tensor is named {bad[:80]!r}")
