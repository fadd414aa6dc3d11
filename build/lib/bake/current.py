"""Whether a derived folder is what its variant needs now: made of what is there, by today's steps.

    weights/derived/<model>/<slug>/derived.json    what went in, what came out, who made it

What went in is listed by digest, so that another checkpoint under the same name, a new corpus or a
new head is noticed; what came out by size, so that a file which a disk lost is.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bake import tree
from bake.checkpoint.along import along
from bake.checkpoint.folder import find
from bake.errors import BakeError
from bake.heads import LARGEST
from bake.progress import Shown
from blob.files import digest, replace
from serve.derivation import Derivation, derivation, folder_of
from serve.model import ModelSource
from serve.origin import OWN, RECORD
from serve.plan import versions
from serve.settings import REPOSITORY
from serve.variant import Variant

SCHEMA = 2
# Whose code makes which step: another may make other bytes of the same.
MAKERS: Mapping[str, tuple[str, ...]] = {
    "swap": ("heads.py",),
    "prune": ("vocabulary/*.py",),
    "quantize": ("quantize/*.py",),
}
# What of it decides no byte: words, other tools, and what only hands over.
TALK = ("__init__.py", "verbs.py", "peer.py", "llm_compressor.py")


@dataclass(frozen=True)
class Inputs:
    """Where a derivation takes what it needs beside the checkpoint."""

    heads: Path = REPOSITORY / "weights" / "heads"
    vocabularies: Path = REPOSITORY / "experiments" / "vocabularies"
    corpus: Path = REPOSITORY / "experiments" / "calibration" / "corpus.jsonl"


@dataclass(frozen=True)
class Wanted:
    """One derivation of one model, and where it will lie."""

    variant: str
    source: ModelSource
    recipe: Derivation
    folder: Path
    inputs: Inputs

    @property
    def beside(self) -> dict[str, Path]:
        """What its steps read beside the checkpoint, by what it is."""
        files = {}
        if self.recipe.mtp_head:
            files["head"] = self.inputs.heads / f"{self.source.name}.safetensors"
        if self.recipe.vocab_size:
            files["counts"] = self.inputs.vocabularies / f"{self.source.name}.json"
        if self.recipe.quantize.startswith("awq"):
            files["corpus"] = self.inputs.corpus
        return files


def wanted(
    variant: Variant, source: ModelSource, root: Path, inputs: Inputs | None = None
) -> Wanted | None:
    """What ``variant`` needs made of ``source`` below ``root``; None when nothing is."""
    recipe = derivation(variant, source)
    if recipe is None:
        return None
    folder = folder_of(recipe, source, root)
    return Wanted(variant.name, source, recipe, folder, inputs or Inputs())


def is_current(one: Wanted) -> bool:
    """Whether it is there and whole, made by the steps of today of what is there now.

    Files are told by size and time, as make does, and by content where only the time is another,
    as a checkout leaves it: what was found the same is noted, so that nobody reads it again.
    """
    try:
        with tree.locked(one.folder) if one.folder.exists() else nullcontext():
            return fits(one)
    except (BakeError, OSError):
        # It lies where nothing can be noted, or somebody makes it just now. Then a folder that is
        # being put in place may be read half: not current is the right answer, they make it anew.
        return fits(one, note=False)


def fits(one: Wanted, *, note: bool = True) -> bool:
    """``is_current``, under the lock; ``note``: unless nothing may be written."""
    try:
        told = json.loads((one.folder / RECORD).read_bytes())
        was, now = told["inputs"], _files(one)
        times = {name: path.stat().st_mtime_ns for name, path in now.items()}
        current = (
            told["schema"] == SCHEMA
            and told["makers"] == makers(one.recipe)
            and told["outputs"] == _sizes(one.folder)
            and was.keys() == now.keys()
            and all(_same(path, was[name]) for name, path in now.items())
        )
        if current and note and any(was[name]["mtime_ns"] != at for name, at in times.items()):
            told["inputs"] = {name: was[name] | {"mtime_ns": at} for name, at in times.items()}
            _write(one.folder, told)
        return current
    except (BakeError, OSError, ValueError, KeyError, TypeError, AttributeError):
        # Not there, or not what a derivation leaves: both are made anew.
        return False


def makers(recipe: Derivation) -> dict[str, str]:
    """SHA-256 over the sources of each step that is taken."""
    taken = {
        "swap": recipe.mtp_head,
        "prune": recipe.vocab_size,
        "quantize": recipe.quantize or recipe.lm_head,
    }
    return {step: _sources(MAKERS[step]) for step, asked in taken.items() if asked}


def _sources(patterns: Iterable[str]) -> str:
    here = Path(__file__).parent
    files = sorted({one for pattern in patterns for one in here.glob(pattern)})
    kept = [one for one in files if one.name not in TALK]
    told = "".join(f"{one.relative_to(here)} {digest(one, LARGEST)[0]}\n" for one in kept)
    return hashlib.sha256(told.encode()).hexdigest()


def record(one: Wanted, made: Path, inputs: Mapping[str, Any], reports: Mapping[str, Any]) -> None:
    """Write into ``made`` what went in (``inputs``, as ``digests`` gives them), what came out, who
    made it, and what each step reported.

    :raises OSError: it cannot be written, or what was made cannot be read.
    """
    told = {
        "schema": SCHEMA,
        "model": one.source.name,
        "recipe": asdict(one.recipe),
        "makers": makers(one.recipe),
        "inputs": inputs,
        "outputs": _sizes(made),
        "versions": versions(),
        "reports": reports,
    }
    _write(made, told)


def _write(folder: Path, told: Mapping[str, Any]) -> None:
    replace(folder / RECORD, (json.dumps(told, indent=1, default=str) + "\n").encode(), 0o644)


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file of what was made, but of the record."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and path.name != RECORD)
    return {path.name: path.stat().st_size for path in files}


def _files(one: Wanted) -> dict[str, Path]:
    """Everything it is made of: weights and what goes along with them, and what is beside."""
    found = find(one.source.path)
    own = {path.name: path for path in found.weights} | along(found.files)
    if found.index:
        own[found.index] = one.source.path / found.index
    resolved = {f"{OWN}{name}": path.resolve() for name, path in sorted(own.items())}
    return resolved | one.beside


def digests(one: Wanted, shown: Shown) -> dict[str, dict[str, Any]]:
    """Size, time and SHA-256 of each file that goes in; ``shown`` is told bytes."""
    files = _files(one)
    total, done, found = sum(p.stat().st_size for p in files.values()), 0, {}
    for name, path in files.items():
        about = path.stat()
        sha256, size = digest(path, LARGEST)
        found[name] = {"bytes": size, "mtime_ns": about.st_mtime_ns, "sha256": sha256}
        done += size
        shown(done, total)
    return found


def _same(path: Path, was: Mapping[str, Any]) -> bool:
    about = path.stat()
    if about.st_size != was["bytes"]:
        return False
    return bool(about.st_mtime_ns == was["mtime_ns"]) or _same_bytes(path, was["sha256"])


def _same_bytes(path: Path, sha256: str) -> bool:
    return digest(path, LARGEST)[0] == sha256
