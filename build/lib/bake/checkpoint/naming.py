"""Names in archives and in pickles: anybody's texts, which may come near a path or a terminal.

safetensors and GGUF take fewer (``blob.header.check_names``). Here names may have folders, as NumPy
and JAX write them, but no way out of one.
"""

import re
from collections.abc import Collection

from bake.errors import Malformed

# What commands a terminal.
CONTROL = re.compile(r"[\x01-\x1f\x7f-\x9f]")
# In names with a NUL before, between and after them: parts that are empty, "." or "..", and
# another system's slash. Looked for one by one, a tenth of what a pattern of all would take.
PARTS = tuple(f"{a}{dots}{b}" for a in "/\0" for dots in (".", "..") for b in "/\0")
WRONG = ("\\", "//", "\0/", "\0\0", *PARTS)


def strange(names: Collection[str]) -> str | None:
    """The first that is empty, or leads out of a folder. One may end with a slash, as folders do
    in archives.
    """
    joined = "\0".join(names)
    if not names or (joined.count("\0") == len(names) - 1 and _good(joined)):
        return None
    return next((name for name in names if "\0" in name or not _good(name)), "")


def _good(joined: str) -> bool:
    framed = f"\0{joined}\0"
    return not any(wrong in framed for wrong in WRONG) and not CONTROL.search(joined)


def check_tensors(names: Collection[str], where: str) -> None:
    """:raises Malformed: one is empty, is a folder's, or leads out of one."""
    bad = strange(names)
    if bad is None and "/\0" in "\0".join((*names, "")):
        bad = next(name for name in names if name.endswith("/"))
    if bad is not None:
        raise Malformed(where, f"a tensor is named {bad[:80]!r}")
