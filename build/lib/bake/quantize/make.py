"""A checkpoint of plain weights → a folder of four-bit ones, whole or not at all.

Two passes: what AWQ looks for is found layer by layer, and is a few vectors; then every tensor is
read, changed and written, one at a time. Memory is that of one layer and the texts' hidden states,
then that of the largest tensor.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bake import tree
from bake.checkpoint import standing, whole
from bake.checkpoint.along import along
from bake.checkpoint.arrays import array
from bake.checkpoint.folder import (
    CONFIG,
    MAX_FILE_BYTES,
    Located,
    find,
    located,
    open_shards,
    read_whole,
)
from bake.checkpoint.settings import tied
from bake.checkpoint.writing import (
    INDEX,
    SHARD_BYTES,
    Buffers,
    Planned,
    index_of,
    nbytes,
    planned,
    write,
)
from bake.errors import BakeError, Malformed
from bake.progress import Shown, silent
from bake.quantize import families, scales, settings
from bake.quantize.folds import Folds, floats
from bake.quantize.linears import EMBEDDING, HEAD, Selection, Stored, select
from bake.quantize.outputs import Plan, finite
from bake.quantize.recipe import Recipe, check
from bake.quantize.report import NAME, Report, Searched
from bake.weights.checkpoint import digests, open_checkpoint
from blob.codecs import Floats
from blob.dtypes import WIDTH
from blob.files import replace
from blob.rows import cores

# Of the numbers that no output is stored as: each says its own type.
DTYPE = "BF16"


@dataclass(frozen=True)
class Source:
    """A checkpoint that may be quantized."""

    folder: Path
    config: Mapping[str, Any]
    there: Located
    files: Mapping[str, Path]
    digests: Mapping[str, str]

    @property
    def stored(self) -> dict[str, Stored]:
        """What its headers say."""
        return {name: Stored(t.dtype, t.shape) for name, (_, t) in self.there.items()}

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        told = tied(self.config)
        # As transformers has it where a config says nothing, and there is no head.
        return HEAD not in self.there if told is None else told

    def read(self, name: str, rows: NDArray[np.int64] | None = None) -> Floats:
        """One tensor as float32, or some of its rows.

        :raises Malformed: it is not there, or holds what is no number.
        """
        # Of a family whose tensors were checked all are; others are only known to be wanted now.
        if name not in self.there:
            raise Malformed(str(self.folder), f"{name} is missing", hint=whole.INCOMPLETE)
        shard, tensor = self.there[name]
        shard.source.check()
        stored = array(shard.source, tensor)
        values = finite(floats(stored if rows is None else stored[rows], tensor.dtype), name)
        # What was written meanwhile is no weight of anybody's.
        shard.source.check()
        shard.source.forget(tensor.offset, tensor.offset + tensor.nbytes)
        return values


def quantize(  # noqa: PLR0913 - what, where, and how
    source: Path,
    folder: Path,
    recipe: Recipe,
    corpus: Path,
    shown: Shown = silent,
    *,
    threads: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Report:
    """Make ``folder`` of the checkpoint ``source``. ``corpus`` is read by AWQ alone. ``shown`` is
    told bytes that are done, of all. ``threads`` change no byte.

    :raises Malformed: a file is not what its format says, tensors are not what the config says, or
        a weight is no number.
    :raises Unsupported: AWQ does not know the family.
    :raises BakeError: something stands at ``folder``, ``source`` is quantized, a group does not
        divide a matrix of the MLP, or the disk is full.
    """
    check(recipe)
    standing.check_free(folder, source)
    opened = _opened(source)
    selection = select(opened.stored, recipe, tied=opened.tied)
    workers = threads or cores()
    seconds: dict[str, float] = {}
    told = _Told(opened, recipe, selection, shown)
    began = time.monotonic()
    folds, searched, about = _folds(told, corpus, workers)
    seconds["search"] = round(time.monotonic() - began, 3)
    plan = Plan(opened.stored, selection, folds, recipe.group_size)
    files = planned(plan.outputs, DTYPE, shard_bytes)
    try:
        with tree.locked(folder):
            standing.free(folder, source)
            part = tree.beside(folder, ".part")
            part.mkdir(parents=True)
            _write(part, files, opened, told, workers)
            report = _report(folder, told, plan, searched, about, seconds, began)
            _finish(part, files, told, report)
            tree.put_in_place(folder)
    except OSError as error:
        raise standing.unwritten(error, folder) from error
    return report


class _Told:
    """What is done, and how far it is: bytes that are read by the search, then bytes written."""

    def __init__(self, source: Source, recipe: Recipe, selection: Selection, shown: Shown) -> None:
        self.source, self.recipe, self.selection = source, recipe, selection
        self._shown = shown
        self._bytes = sum(tensor.nbytes for _, tensor in source.there.values())
        self._total = self._bytes * (2 if recipe.awq else 1)
        self._done = 0

    def add(self, done: int) -> None:
        """So many more."""
        self._done = min(self._done + done, self._total)
        self._shown(self._done, self._total)

    def layer(self, prefix: str) -> None:
        """A layer was looked at."""
        there = self.source.there.items()
        self.add(sum(t.nbytes for name, (_, t) in there if name.startswith(f"{prefix}.")))


def _opened(source: Path) -> Source:
    checkpoint = open_checkpoint(source)
    found = find(source)
    there = located(open_shards(found))
    whole.check_stored(source, checkpoint.config, there)
    return Source(source, checkpoint.config, there, found.files, digests(checkpoint))


def _folds(told: _Told, corpus: Path, workers: int) -> tuple[Folds, list[Searched], dict[str, Any]]:
    if not told.recipe.awq:
        return Folds(), [], {}
    source = told.source
    family = families.family_of(source.config)
    if not any(EMBEDDING.match(name) for name in source.there):
        raise BakeError(f"{source.folder}: no embed_tokens.weight", "say --scheme rtn-w4a16")
    shapes = {name: stored.shape for name, stored in source.stored.items()}
    return scales.find(
        source.folder,
        shapes,
        source.read,
        family,
        told.selection.chosen,
        told.recipe,
        corpus,
        workers,
        told.layer,
    )


def _write(part: Path, files: Sequence[Planned], source: Source, told: _Told, threads: int) -> None:
    outputs = [output for file in files for output in file.outputs]
    with Buffers(max(nbytes(output, DTYPE) for output in outputs)) as buffers:
        for file in files:
            for output, empty in write(part, file, DTYPE, buffers):
                shard, tensor = source.there[output.inputs[0]]
                shard.source.check()
                output.fill([array(shard.source, tensor)], empty, threads)
                shard.source.check()
                shard.source.forget(tensor.offset, tensor.offset + tensor.nbytes)
                told.add(empty.nbytes)


def _report(  # noqa: PLR0913 - everything that is told
    folder: Path,
    told: _Told,
    plan: Plan,
    searched: Sequence[Searched],
    about: Mapping[str, Any],
    seconds: dict[str, float],
    began: float,
) -> Report:
    stored, selection = told.source.stored, told.selection
    after = {output.name: nbytes(output, DTYPE) for output in plan.outputs}
    seconds["all"] = round(time.monotonic() - began, 3)
    return Report(
        folder,
        told.recipe.describe(),
        told.source.digests,
        len(after),
        sum(prod(one.shape) * WIDTH[one.dtype] for one in stored.values()),
        sum(after.values()),
        prod(stored[HEAD].shape) * WIDTH[stored[HEAD].dtype] if HEAD in stored else 0,
        sum(size for name, size in after.items() if name.startswith("lm_head.")),
        dict(sorted(plan.errors.items())),
        dict(sorted(selection.left.items())),
        tuple(searched),
        about,
        seconds,
    )


def _finish(part: Path, files: Sequence[Planned], told: _Told, report: Report) -> None:
    config = settings.config(told.source.config, told.recipe, told.selection)
    files_along = along(told.source.files).items()
    made = {name: read_whole(path, MAX_FILE_BYTES) for name, path in files_along}
    made[CONFIG] = (json.dumps(config, indent=2) + "\n").encode()
    made[NAME] = report.file()
    if len(files) > 1:
        made[INDEX] = index_of(files)
    for name, content in made.items():
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        replace(part / name, content, 0o644)
