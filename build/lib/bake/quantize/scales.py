"""AWQ over a whole model: each layer is run, looked at, and its scales are kept. A few vectors."""

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from bake.quantize import calibration, corpus, families, search
from bake.quantize.families import Family, Pair
from bake.quantize.folds import Folds
from bake.quantize.recipe import Recipe
from bake.quantize.report import Searched

Shapes = Mapping[str, tuple[int, ...]]


def find(  # noqa: PLR0913 - a model, a recipe, and what to look at
    folder: Path,
    shapes: Shapes,
    read: calibration.Read,
    family: Family,
    chosen: Collection[str],
    recipe: Recipe,
    text: Path,
    workers: int,
    step: Callable[[str], None],
) -> tuple[Folds, list[Searched], dict[str, Any]]:
    """Scales for all ``chosen`` weights, how they were found, and on what. ``step`` is told each
    layer that is done.

    :raises BakeError: no corpus, or a model that cannot be run.
    """
    chosen = frozenset(chosen)
    tokens = corpus.windows(corpus.texts(text), folder / "tokenizer.json", recipe)
    by_layer = families.pairs(shapes, family, chosen)
    folds, told = Folds(), []
    model = calibration.Model(folder, shapes, read)
    with calibration.pool(workers) as pool:
        hidden = model.hidden(tokens)
        for at, prefix in enumerate(model.prefixes):
            pairs = by_layer.get(prefix, [])
            if any(later in by_layer for later in model.prefixes[at:]):
                watched = [_first(pair, chosen) for pair in pairs]
                met = model.run(at, hidden, watched, pool, workers)
                for pair in pairs:
                    inputs = met.pop(_first(pair, chosen))
                    told.append(_searched(pair, inputs, folds, read, family, chosen, recipe, pool))
                model.forget(at)
            step(prefix)
    about = {"samples": len(tokens), "sequence": recipe.sequence, "tokens": int(tokens.size)}
    return folds, told, about


def _first(pair: Pair, chosen: Collection[str]) -> str:
    """The matrix whose input is watched: all readers have the same."""
    return next(name for name in pair.readers if name in chosen)


def _searched(  # noqa: PLR0913 - one pair, and all that is known
    pair: Pair,
    inputs: search.Inputs,
    folds: Folds,
    read: calibration.Read,
    family: Family,
    chosen: Collection[str],
    recipe: Recipe,
    pool: Executor,
) -> Searched:
    packed = tuple(name for name in pair.readers if name in chosen)
    weights = [folds.of(name, read(name)) for name in packed]
    norm = read(pair.before) if pair.norm else None
    best = search.best(pair, weights, norm, family.offset, inputs, recipe.group_size, pool)
    for name in pair.readers:
        folds.columns[name] = best.scales
    if best.stored is not None:
        folds.replaced[pair.before] = best.stored
    else:
        folds.rows[pair.before] = best.scales
        folds.rows[pair.before.removesuffix("weight") + "bias"] = best.scales
    return Searched(
        pair.before, packed, round(best.ratio, 6), best.duo, best.rounded_error, best.error
    )
