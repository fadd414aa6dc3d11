"""Checkpoint → blob: what each tensor becomes, and one maker of a blob at a time."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bake import tree
from bake.errors import BakeError
from bake.weights import place
from bake.weights.checkpoint import Checkpoint, digests, open_checkpoint
from bake.weights.served import config_of
from blob import recipe, writer
from blob.manifest import Manifest
from blob.recipe import Recipe
from blob.store import Store
from blob.writer import About, Plain

CONFIG = "config.json"
ROOM = "make room, or choose another folder with --out"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Packed:
    """What was made. ``codecs`` counts tensors; ``notes`` tell what the recipe could not do."""

    folder: Path
    fingerprint: str
    tensors: int
    bytes: int
    stored_bytes: int
    codecs: dict[str, int]
    notes: tuple[str, ...]
    seconds: float


def pack(  # noqa: PLR0913 - what, how, where
    checkpoint: Path,
    wanted: Recipe,
    folder: Path,
    store: Store,
    progress: writer.Progress = writer.silent,
    *,
    force: bool = False,
) -> Packed:
    """Make the blob ``folder`` of a checkpoint, whole or not at all.

    :raises BakeError: the checkpoint cannot be packed, or something stands at ``folder``.
    :raises BlobError: a tensor that its codec cannot hold, or a disk that is full.
    """
    began = time.monotonic()
    recipe.check(wanted)
    # Before the whole checkpoint is hashed; and again when nobody else works there.
    place.check(folder, store.root, force=force)
    opened = open_checkpoint(checkpoint)
    plains, notes = chosen(opened, wanted)
    if not any(plain.choice.codec.name == wanted.codec for plain in plains):
        raise BakeError(f"{checkpoint}: no tensor that {wanted.codec} could hold", "see --targets")
    files: dict[str, Path | bytes] = {**opened.files, CONFIG: config_of(opened.config, plains)}
    about = About(wanted.describe(), digests(opened), files)
    try:
        with tree.locked(folder):
            tree.recover(folder)
            place.check(folder, store.root, force=force)
            part = tree.beside(folder, ".part")
            part.mkdir(parents=True)
            try:
                made = writer.write(part, plains, store, about, progress)
            except BaseException:
                tree.remove(part)
                raise
            tree.put_in_place(folder)
    except OSError as error:
        where = error.filename or folder
        raise BakeError(f"{where}: cannot be written: {error.strerror}", ROOM) from error
    return _report(folder, made, notes, time.monotonic() - began)


def chosen(opened: Checkpoint, wanted: Recipe) -> tuple[list[Plain], list[str]]:
    """Each tensor with its codec, and a line for each that did not get the recipe's."""
    plains, notes = [], []
    for name, one in sorted(opened.tensors.items()):
        choice = recipe.choose(name, one.array.shape, one.dtype, wanted)
        plains.append(Plain(name, one.dtype, one.array, choice))
        if choice.why:
            notes.append(f"{name}: {choice.why}")
    return plains, notes


def _report(folder: Path, made: Manifest, notes: Sequence[str], seconds: float) -> Packed:
    return Packed(
        folder,
        made.fingerprint,
        len(made.tensors),
        made.size,
        made.stored_size,
        dict(sorted(Counter(tensor.codec for tensor in made.tensors).items())),
        tuple(notes),
        round(seconds, 3),
    )
