"""Which folders of weights an image's variants serve, and whether they are still what is here.

An image says of each variant by which digest it holds its weights. A checkout that has the same
model says the same, or something was trained, fetched or derived anew since.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from bake.errors import BakeError
from bake.image import context
from bake.image.container import File, over
from blob.files import digest, replace
from serve.derivation import derived
from serve.errors import ConfigError
from serve.manifest import MAX_FILE_BYTES
from serve.model import ModelSource, find_model, known_models
from serve.origin import RECORD
from serve.settings import REPOSITORY, Settings
from serve.variant import load_variant

WEIGHTS = REPOSITORY / "weights"
# What was read before of files here: size, time of change, SHA-256.
NOTES = ".cache/image/digests.json"
# Packages that are never missing in a checkout that is whole.
OURS = ("bake", "blob", "serve")


def served(settings: Settings, source: ModelSource, names: Sequence[str]) -> dict[str, ModelSource]:
    """The folder that each of the variants serves of ``source``.

    :raises ConfigError: one that does not lie where an image takes weights from.
    """
    _check_place(source, WEIGHTS)
    found = {}
    for name in names:
        one = derived(load_variant(name, settings.experiments), source, settings.derived_root)
        _check_place(one, WEIGHTS if one is source else WEIGHTS / "derived")
        found[name] = one
    return found


def _check_place(one: ModelSource, top: Path) -> None:
    if not one.path.resolve().is_relative_to(top):
        raise ConfigError(
            f"model {one.name} lies in {one.path}: an image holds what lies in {top}",
            f"move or copy it to {top}",
        )


def stale(settings: Settings, source: ModelSource, name: str) -> str:
    """What is wrong with the folder that was derived for a variant; empty where it is what would be
    made now, where there is none, or nothing here to make one of.

    :raises ConfigError: the checkpoint is damaged.
    """
    try:
        from bake.current import is_current, wanted
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in OURS:
            raise
        # What could tell comes with what makes them.
        return ""
    one = wanted(load_variant(name, settings.experiments), source, settings.derived_root)
    if one is None or not (source.path.is_dir() and one.folder.is_dir()) or is_current(one):
        return ""
    return f"{one.folder}: made of other weights or by other steps than variant {name} wants now"


def unlike(settings: Settings, model: str, name: str, held: str) -> str:
    """In what the weights here are not those of digest ``held`` that an image has for a variant of
    ``model``, with what mends it; empty where they are, or nobody can tell.
    """
    if not held or model not in known_models(settings.experiments):
        return ""
    source = find_model(model, settings.experiments)
    mend = f"make build MODEL={model}"
    try:
        if why := stale(settings, source, name):
            return f"{why}: {mend}"
        folder = served(settings, source, [name])[name].path.resolve()
        if not folder.is_dir() or here(folder) == held:
            return ""
    except (BakeError, ConfigError) as error:
        return f"{error.what}: {mend}"
    return f"the image holds other weights than {folder}: {mend}"


def here(folder: Path) -> str:
    """``digest_of`` a folder of this checkout. A file of the size and time that it had when it was
    last read is not read again.

    :raises BakeError: there is nothing in it, or no image would take one of its files.
    """
    repository, name = WEIGHTS.parent, str(folder.relative_to(WEIGHTS))
    notes = _noted(repository / NOTES)
    files, before = [], dict(notes)
    for path, file in context.plain(context.model(repository, name)).items():
        about = file.stat()
        was = notes.get(path)
        if not was or was[:2] != (about.st_size, about.st_mtime_ns):
            sha256, size = digest(file, MAX_FILE_BYTES)
            notes[path] = size, about.st_mtime_ns, sha256
        files.append((path.removeprefix("weights/"), notes[path][2], about.st_size))
    if notes != before:
        notes = {path: was for path, was in notes.items() if (repository / path).is_file()}
        (repository / NOTES).parent.mkdir(parents=True, exist_ok=True)
        replace(repository / NOTES, json.dumps(notes, indent=0).encode(), 0o644)
    return digest_of(files, name)


def digest_of(files: Iterable[File], folder: str) -> str:
    """``sha256:…`` over those of ``files`` that lie in ``folder``, both named below ``weights/``.

    :raises BakeError: there are none.
    """
    top = f"{folder}/"
    # The record says when what was read, too, and how long it took: that is no weight.
    kept = [
        (path.removeprefix(top), sha256, size)
        for path, sha256, size in files
        if path.startswith(top) and path != f"{top}{RECORD}"
    ]
    if not kept:
        raise BakeError(f"no weights in {folder}")
    return over(kept)


def _noted(file: Path) -> dict[str, tuple[int, int, str]]:
    try:
        told = json.loads(file.read_bytes())
        return {str(n): (int(one[0]), int(one[1]), str(one[2])) for n, one in told.items()}
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        # It only saves reading.
        return {}
