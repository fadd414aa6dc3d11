"""A baked root without its autotuned winners, for a GPU that is not the one they were timed on.

Neither Triton nor Inductor puts the GPU's name into the key of a winner, so a sibling that hits
the baked graphs takes over the winners too: right results, perhaps not its own best tiles. This
copies a root without them; the next start times them again and writes them into the copy.

Owns which files are winners. Pure file work: knows nothing of manifests, and a copy has none.

Cannot be left out: a kernel that a later graph of the same bake shares with an earlier, already
timed one is stored inside the AOT artifact with its one winning configuration.
"""

import re
import shutil
from pathlib import Path, PurePath

from serve import manifest

SHA256 = re.compile(r"[0-9a-f]{64}")


def is_winner(path: PurePath) -> bool:
    """Whether a file of a cache holds autotuning results and nothing else.

    - Triton: ``<kernel>.autotune.json``, timings of an ``@autotune`` kernel.
    - Inductor: ``<hash>.best_config``, a generated kernel's winner; ``cache/<sha256>``, the
      timings of ``max_autotune``, a file named by the hash of the system.
    - FlashInfer, as vLLM keeps it: ``autotune_configs.json``.
    """
    if path.name.endswith((".autotune.json", ".best_config")):
        return True
    if path.name == "autotune_configs.json":
        return True
    return path.parent.name == "cache" and SHA256.fullmatch(path.name) is not None


def copy_without_winners(root: Path, to: Path) -> list[PurePath]:
    """Copy ``root`` to ``to``, writable, and return the winners left out, relative and sorted.

    ``root`` is left as it is and is expected to be verified. Interrupted, it leaves what it has
    copied: give it a new folder each time.

    :raises FileExistsError: ``to`` exists.
    """
    to.mkdir(parents=True)
    left_out: list[PurePath] = []
    for source in sorted(root.rglob("*")):
        path = source.relative_to(root)
        if source.is_dir():
            (to / path).mkdir()
        elif is_winner(path):
            left_out.append(path)
        # The manifest and its signature vouch for the whole root, which the copy is not.
        elif str(path) not in manifest.OWN:
            # Not copy2: a baked root is read-only, the copy is to be written to.
            shutil.copyfile(source, to / path)
    return left_out
