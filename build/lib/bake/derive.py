"""Makes the weights that a variant serves of a model: swap the MTP head, prune, quantize.

    weights/derived/<model>/<slug>/    a servable folder, and derived.json, which tells what of

Each step reads one folder and writes the next. The order is the one that costs nothing: a head is
trained beside a vocabulary it does not hold, and quantizing comes last, because nothing reads
packed weights again. Whether one has to be made is ``bake.current``'s to say.
"""

import errno
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bake import tree
from bake.current import Wanted, digests, fits, record
from bake.errors import BakeError
from bake.progress import Shown
from serve.errors import ConfigError
from serve.model import load_model
from serve.origin import RECORD

HOW = {
    "head": "make it: python -m scripts.redistill_mtp {model}",
    "counts": "make it: python -m scripts.analyze_vocab {model}",
    "corpus": "make it: python -m scripts.build_calibration_corpus",
}
ROOT = "set PREHEAT_DERIVED_ROOT to a folder that you may write to"
Steps = Callable[[str], Any]


@dataclass(frozen=True)
class Derived:
    """``new`` tells whether it was made now; ``reports`` what each step says of itself."""

    folder: Path
    new: bool
    bytes: int
    seconds: float
    reports: Mapping[str, Any]


def derive(
    one: Wanted, steps: Steps, say: Callable[[str], None], *, force: bool = False
) -> Derived:
    """Make it, unless it is current.

    :raises ServeError: the checkpoint or something beside it is not there, or a step refuses.
        What stood there still does.
    """
    _check(one)
    try:
        with tree.locked(one.folder):
            for line in tree.recover(one.folder):
                say(line)
            return _current(one, force=force) or _anew(one, steps)
    except OSError as error:
        where = error.filename or one.folder
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise BakeError(
            f"{where}: {error.strerror}",
            f"nothing was made; {'make room' if full else ROOT}, then derive again",
        ) from error


def _current(one: Wanted, *, force: bool) -> Derived | None:
    """What is there, if it may stay."""
    began = time.monotonic()
    if force or not fits(one):
        return None
    reports = json.loads((one.folder / RECORD).read_bytes())["reports"]
    return _done(one, one.folder, began, reports, new=False)


def _anew(one: Wanted, steps: Steps) -> Derived:
    """Every step, and what was made in its place; nothing of it where one fails."""
    began = time.monotonic()
    with steps("reading what it is made of") as shown:
        inputs = digests(one, shown)
    try:
        made, reports = _make(one, steps)
        # Before it takes the place of one that serves.
        done = _done(one, made, began, reports, new=True)
        record(one, made, inputs, reports)
        tree.put_in_place(one.folder, made)
    finally:
        tree.remove(tree.beside(one.folder, ".part"))
    return done


def _check(one: Wanted) -> None:
    load_model(one.source)
    for what, path in one.beside.items():
        if not path.is_file():
            raise ConfigError(
                f"{path}: is not there, and variant {one.variant} of model {one.source.name} "
                f"needs it ({what})",
                HOW[what].format(model=one.source.name),
            )


def _make(one: Wanted, steps: Steps) -> tuple[Path, dict[str, Any]]:
    """Every step, from folder to folder; none but the last stays longer than it is read."""
    work = tree.beside(one.folder, ".part")
    work.mkdir()
    reports: dict[str, Any] = {}
    here = one.source.path
    for number, (name, step) in enumerate(_steps(one)):
        there = work / str(number)
        with steps(name) as shown:
            reports[name] = step(here, there, shown)
        if number:
            tree.remove(here)
        here = there
    return here, reports


def _steps(one: Wanted) -> Iterator[tuple[str, Callable[[Path, Path, Shown], Any]]]:
    """Name and function of each step that is taken, in order."""
    recipe, beside = one.recipe, one.beside
    if recipe.mtp_head:
        yield "swapping the MTP head", lambda src, dst, _: _swap(src, dst, beside["head"])
    if size := recipe.vocab_size:
        yield (
            f"pruning to {size} tokens",
            lambda src, dst, shown: _prune(src, dst, beside["counts"], size, shown),
        )
    if recipe.quantize or recipe.lm_head:
        yield (
            f"quantizing ({recipe.quantize or 'lm_head'})",
            lambda src, dst, shown: _quantize(src, dst, one, shown),
        )


def _swap(src: Path, dst: Path, head: Path) -> Any:
    from bake.heads import swap

    return swap(src, dst, head).describe()


def _prune(src: Path, dst: Path, counts: Path, size: int, shown: Shown) -> Any:
    from bake.vocabulary import prune

    return asdict(prune(src, dst, counts, size, shown))


def _quantize(src: Path, dst: Path, one: Wanted, shown: Shown) -> Any:
    from bake.quantize import Recipe, quantize

    recipe = Recipe(
        weights=one.recipe.quantize or "none",
        targets=one.recipe.targets,
        group_size=one.recipe.group_size,
        lm_head=bool(one.recipe.lm_head),
    )
    return asdict(quantize(src, dst, recipe, one.inputs.corpus, shown))


def _done(
    one: Wanted, folder: Path, began: float, reports: Mapping[str, Any], *, new: bool
) -> Derived:
    size = load_model(one.source.model_copy(update={"path": folder})).weight_bytes
    return Derived(one.folder, new, size, round(time.monotonic() - began, 3), reports)
