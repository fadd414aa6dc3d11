"""A model of fewer tokens, by its own tokenizer: the rows that go are those that are hardly used.

```
counts ─► keep (bytes, specials, named ids, then by use; each with its ancestors) ─► ids
                                     ids ─► tables, tokenizer.json, configs, vocab_map.json
```
"""

from pathlib import Path
from typing import TYPE_CHECKING

from bake.progress import Shown, silent

if TYPE_CHECKING:
    from bake.vocabulary.pruning import Report


def prune(
    source: Path,
    folder: Path,
    counts: Path,
    size: int,
    shown: Shown = silent,
) -> "Report":
    """Make ``folder``, of ``source`` with ``size`` tokens; see ``pruning.prune``."""
    # NumPy comes with an extra; the command line is there without.
    from bake.vocabulary.pruning import prune as made

    return made(source, folder, counts, size, shown)
