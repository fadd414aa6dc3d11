"""``preheat bake derive``: which variants, what is shown meanwhile, what is told at the end."""

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from bake.progress import say, timed_bar
from blob.files import printable
from serve.choice import choose_model
from serve.cli import Add
from serve.derivation import derivation
from serve.model import ModelSource, find_model
from serve.settings import Settings, read_settings
from serve.target import choose_target, probe_gpu
from serve.variant import Variant, known_variants, load_variant

if TYPE_CHECKING:
    from bake.current import Wanted
    from bake.derive import Derived

EXAMPLES = """examples:
  preheat bake derive awq --model tiny
  preheat bake derive awq seq8-stacked --force
  preheat bake derive --image --needed --json      which are not here, of all that there are
"""


def add(verb: Add) -> None:
    """Add the verb to a command line."""
    made = verb("derive", _derive, "make the weights that variants serve of a model")
    made.epilog, made.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    made.add_argument("variants", nargs="*", metavar="VARIANT", help="folder of experiments/")
    made.add_argument("--model", help="name or checkpoint folder (MODEL)")
    made.add_argument(
        "--image",
        action="store_true",
        help="with one model for all of them; all there are, if none",
    )
    made.add_argument("--force", action="store_true", help="make them again, and replace them")
    made.add_argument(
        "--needed", action="store_true", help="print those that are not here; make nothing"
    )


def _derive(parsed: argparse.Namespace) -> int:
    settings = read_settings(os.environ)
    if parsed.model:
        settings = settings.model_copy(update={"model": parsed.model})
    named = list(_derived(settings, parsed.variants, image=parsed.image))
    if parsed.needed:
        needed = _needed(settings, named)
        print(json.dumps({"needed": needed}) if parsed.json else " ".join(needed))
        return 0
    every = _wanted(settings, named)
    from bake.baking import terminated_as_interrupted

    with terminated_as_interrupted():
        done = [_one(one, parsed) for one in every]
    if parsed.json:
        shown = [asdict(d) | {"folder": str(d.folder)} for d in done]
        print(json.dumps({"derived": shown}, indent=1, default=str))
    elif not done:
        print("nothing to make: these variants serve the model's own weights")
    return 0


def _one(one: "Wanted", parsed: argparse.Namespace) -> "Derived":
    from bake.derive import derive

    done = derive(one, partial(timed_bar, quiet=parsed.json), say, force=parsed.force)
    if not parsed.json:
        folder = printable(done.folder, 4096)
        word = f"wrote {folder}" if done.new else f"{folder}: there already"
        print(f"{word}: {done.bytes} bytes of weights, {done.seconds:.1f} s")
    return done


def _derived(
    settings: Settings, names: Sequence[str], *, image: bool
) -> Iterator[tuple[Variant, ModelSource]]:
    """Variants that have something made of their model: of one model for an image."""
    names = list(names) or (known_variants(settings.experiments) if image else [settings.variant])
    variants = [load_variant(name, settings.experiments) for name in dict.fromkeys(names)]
    target = choose_target(settings.target, probe_gpu(), settings.experiments)
    for variant in variants:
        choice = choose_model(settings.model, target, variants if image else [variant])
        source = find_model(choice.model, settings.experiments)
        if derivation(variant, source):
            yield variant, source


def _needed(settings: Settings, named: Sequence[tuple[Variant, ModelSource]]) -> list[str]:
    """Names of those that are not there, or stale."""
    try:
        from bake.current import is_current
    except ModuleNotFoundError:
        # What could tell comes with what makes them, which then looks again.
        return [variant.name for variant, _ in named]
    return [one.variant for one in _wanted(settings, named) if not is_current(one)]


def _wanted(settings: Settings, named: Sequence[tuple[Variant, ModelSource]]) -> list["Wanted"]:
    from bake.current import wanted

    found = (wanted(variant, source, settings.derived_root) for variant, source in named)
    return [one for one in found if one]
