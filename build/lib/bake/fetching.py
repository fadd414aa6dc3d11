"""``preheat bake fetch``: which model, what is shown meanwhile, what is told at the end."""

import argparse
import json
import os
from dataclasses import asdict
from functools import partial

from bake.fetch import fetch, is_here
from bake.progress import say, timed_bar
from blob.files import printable
from serve.choice import choose_model
from serve.cli import Add
from serve.model import ModelSource, find_model
from serve.settings import Settings, read_settings
from serve.target import choose_target, probe_gpu
from serve.variant import known_variants, load_variant


def add(verb: Add) -> None:
    """Add the verb to a command line."""
    made = verb("fetch", _fetch, "put a model that a package has into weights/, as it is served")
    made.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="name in experiments/models (MODEL); the one that VARIANT and TARGET take if none",
    )
    made.add_argument(
        "--image",
        nargs="*",
        metavar="VARIANT",
        help="the one that an image of these variants takes; of all there are, if none is named",
    )
    made.add_argument("--force", action="store_true", help="fetch it again, and replace it")
    made.add_argument(
        "--needed", action="store_true", help="print its name if it is not here; fetch nothing"
    )


def _fetch(parsed: argparse.Namespace) -> int:
    source = _source(parsed, read_settings(os.environ))
    if parsed.needed:
        needed = source.name if source.package and not is_here(source) else ""
        print(json.dumps({"needed": needed or None}) if parsed.json else needed)
        return 0
    from bake.baking import terminated_as_interrupted

    with terminated_as_interrupted():
        steps = partial(timed_bar, quiet=parsed.json)
        done = fetch(source, os.environ, steps, say, force=parsed.force)
    if parsed.json:
        print(json.dumps(asdict(done) | {"folder": str(done.folder)}))
        return 0
    folder = printable(done.folder, 4096)
    if not done.new:
        print(f"{folder}: there already, {done.bytes} bytes")
    else:
        print(f"wrote {folder}: {done.bytes} bytes of weights, {done.seconds:.1f} s")
        print(f"serve it: make serve MODEL={source.name}")
    return 0


def _source(parsed: argparse.Namespace, settings: Settings) -> ModelSource:
    """What is named, or what a start or a build with these settings would take.

    :raises ConfigError: a name that does not exist.
    """
    if parsed.model:
        return find_model(parsed.model, settings.experiments)
    names = [settings.variant]
    if parsed.image is not None:
        names = parsed.image or known_variants(settings.experiments)
    variants = [load_variant(name, settings.experiments) for name in names]
    target = choose_target(settings.target, probe_gpu(), settings.experiments)
    choice = choose_model(settings.model, target, variants)
    return find_model(choice.model, settings.experiments)
