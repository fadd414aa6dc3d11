"""``preheat image VERB``: the appliance as a container image."""

import argparse
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from bake import shipping
from bake.archive import Limits
from bake.baking import terminated_as_interrupted
from bake.errors import BakeError
from bake.progress import Timer, shown
from bake.shipping import Terms
from serve import __version__
from serve.choice import Choice, choose_model
from serve.cli import run_verb
from serve.errors import ConfigError
from serve.model import find_model, load_model
from serve.settings import REPOSITORY, Settings, read_settings
from serve.signature import trusted_keys
from serve.target import Target, choose_target, probe_gpu
from serve.variant import known_variants, load_variant

EXAMPLES = """examples:
  preheat image build                          every variant, of the model and target that are here
  preheat image build seq8-best --target a10g
  preheat image verify seq8-best
  preheat image export --out cache_import.tar.zst
  preheat image import cache_import.tar.zst    the same image on a machine without the GPU
  preheat image run seq8-best --port 8001
  preheat image bake /srv/models/tiny-raw seq8-best   for weights that are mounted, not built in

IMAGE names the image (preheat), BASE_IMAGE what it stands on, BUILD_NETWORK the network that
builds get wheels by; PIP_INDEX_URL, PIP_EXTRA_INDEX_URL and PIP_FIND_LINKS say where from.
Exit status 0 done, 1 failed, 2 usage or configuration.
"""
INSTALL = "pip install 'preheat[image]'"
BASE = "python:3.11-slim-bookworm"
# A host and its port, folders, the name, a tag.
PART = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
NAME = re.compile(
    rf"(?:[a-zA-Z0-9.-]+(?::[0-9]+)?/)?{PART}(?:/{PART})*(?::[A-Za-z0-9_][\w.-]{{0,127}})?"
)
ARCHIVE = Path("cache_import.tar.zst")
# As the Helm chart has it.
MOUNT = "/opt/preheat/blobs"
# Before any key is asked for: caches of all variants are megabytes on a CPU, and a GPU's may be
# hundreds of times as large.
LIMITS = Limits(total_bytes=16 * 1024**3)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Exit status 0 done, 1 failed, 2 usage, 130 interrupted."""
    try:
        with terminated_as_interrupted():
            return run_verb(parser().parse_args(arguments))
    except ModuleNotFoundError as error:
        print(f"preheat: {error.name} is not installed\nhint: {INSTALL}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="preheat image",
        description="Build, verify and run the appliance as a container image.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"preheat {__version__}")
    verbs = top.add_subparsers(required=True, metavar="VERB")
    build = _verb(verbs, "build", _build, "build, bake on the device, verify, tag")
    build.add_argument("variants", nargs="*", metavar="VARIANT", help="all of them if none")
    taken = _verb(verbs, "import", _import, "build with caches that were baked elsewhere")
    taken.add_argument("file", type=Path, metavar="FILE", help="made by export")
    export = _verb(verbs, "export", _export, "pack the baked caches of an image into an archive")
    export.add_argument("--out", type=Path, default=ARCHIVE, help=f"the archive ({ARCHIVE})")
    verify = _verb(verbs, "verify", _verify, "prove an image: read-only, offline, nothing compiled")
    verify.add_argument("variants", nargs="*", metavar="VARIANT", help="all of its own if none")
    bake = _verb(verbs, "bake", _bake, "bake for weights that are mounted, beside them")
    bake.add_argument("folder", type=Path, help="a raw blob or a checkpoint; its parent is mounted")
    bake.add_argument("variants", nargs="+", metavar="VARIANT", help="folders of experiments/")
    bake.add_argument("--mount", default=MOUNT, help=f"where containers have that parent ({MOUNT})")
    _verb(verbs, "layers", _layers, "what it weighs, layer by layer")
    for name, act, sentence in (
        ("runtime", _runtime, "print 'docker' or 'local': what `make serve` will take, and why"),
        ("run", _run, "serve from the image"),
    ):
        made = _verb(verbs, name, act, sentence)
        made.add_argument("variant", nargs="?", help="folder of experiments/ (VARIANT)")
        made.add_argument("--port", help="TCP port of this machine (PORT)")
    for verb in verbs.choices.values():
        verb.add_argument("--image", help="its name, or name:tag where one is there (IMAGE)")
        verb.add_argument("--model", help="folder of weights/ (MODEL)")
        verb.add_argument("--target", help="cpu, a10g, … (TARGET); detected when not given")
    return top


def _verb(
    verbs: Any, name: str, run: Callable[[argparse.Namespace], int], sentence: str
) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = verbs.add_parser(name, help=sentence, description=sentence)
    made.add_argument("--json", action="store_true", help="for programs")
    made.set_defaults(verb=run)
    return made


def _settings(parsed: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """Settings from the environment, under what the command line says."""
    names = {"VARIANT": "variant", "MODEL": "model", "TARGET": "target", "PORT": "port"}
    said = {name: getattr(parsed, option, None) for name, option in names.items()}
    return read_settings({**environ, **{k: v for k, v in said.items() if v is not None}})


def _target(settings: Settings) -> Target:
    return choose_target(settings.target, probe_gpu(), settings.experiments)


def _choice(settings: Settings, target: Target, variants: Sequence[str]) -> Choice:
    """The one model that an image of ``variants`` holds; all there are, if none is named.

    :raises ConfigError: a variant that does not exist.
    """
    names = variants or known_variants(settings.experiments)
    loaded = [load_variant(name, settings.experiments) for name in names]
    return choose_model(settings.model, target, loaded)


def _wanted(parsed: argparse.Namespace, variants: Sequence[str]) -> Any:
    """What to build, every word of it known to exist, and every weight to be what it should be.

    :raises ConfigError: one that is not.
    """
    from bake.image import weights
    from bake.image.make import Wanted

    settings = _settings(parsed, os.environ)
    target = _target(settings)
    names = list(dict.fromkeys(variants or known_variants(settings.experiments)))
    choice = _choice(settings, target, names)
    source = find_model(choice.model, settings.experiments)
    served = weights.served(settings, source, names)
    sizes = {one.path: load_model(one).weight_bytes for one in served.values()}
    for name, one in served.items():
        if why := weights.stale(settings, source, name):
            raise ConfigError(why, f"make it anew: {one.get}")
    return Wanted(
        repository=REPOSITORY,
        name=_untagged(parsed),
        model=source.name,
        own=str(source.path.resolve().relative_to(weights.WEIGHTS)),
        weights={
            n: str(one.path.resolve().relative_to(weights.WEIGHTS)) for n, one in served.items()
        },
        why=choice.why,
        target=target,
        variants=tuple(names),
        base=os.environ.get("BASE_IMAGE") or BASE,
        weight_bytes=sum(sizes.values()),
        network=os.environ.get("BUILD_NETWORK", ""),
    )


def _name(parsed: argparse.Namespace) -> str:
    """The image's name, less a tag.

    :raises ConfigError: it is none that an engine would take.
    """
    name = parsed.image or os.environ.get("IMAGE") or "preheat"
    if not NAME.fullmatch(name):
        raise ConfigError(f"IMAGE={name!r} is no name of an image")
    return str(name)


def _untagged(parsed: argparse.Namespace) -> str:
    """The image's name, which must be without a tag.

    :raises ConfigError: as ``_name``; or it has one.
    """
    if ":" in (image := _name(parsed)).rpartition("/")[2]:
        raise ConfigError(
            f"IMAGE={image!r}: a build makes the tag itself, of version, device and model",
            f"say IMAGE={image.rpartition(':')[0]}, and tag what was built: docker tag",
        )
    return image


def _tagged(parsed: argparse.Namespace, variants: Sequence[str] = ()) -> str:
    """The tag to look for: as given, or the one that a build of these settings has."""
    from bake.image.make import tag

    name = _name(parsed)
    if ":" in name.rpartition("/")[2]:
        return name
    settings = _settings(parsed, os.environ)
    target = _target(settings)
    return tag(name, target.device, Path(_choice(settings, target, variants).model).name)


def _build(parsed: argparse.Namespace) -> int:
    return _make(parsed, _wanted(parsed, parsed.variants))


def _import(parsed: argparse.Namespace) -> int:
    from dataclasses import replace

    keys = trusted_keys(_settings(parsed, os.environ).trusted_keys)
    if not parsed.file.is_file():
        raise BakeError(f"{parsed.file}: no such file", "make build-export where it was baked")
    _untagged(parsed)
    terms = Terms(keys, force=True, limits=LIMITS)
    # Of the weights, those that its variants serve, and no others: it says which.
    variants = _held(parsed, parsed.file, terms.limits)
    return _make(
        parsed, replace(_wanted(parsed, variants), archive=parsed.file.absolute(), terms=terms)
    )


def _held(parsed: argparse.Namespace, file: Path, limits: Limits) -> list[str]:
    """The variants of an archive of baked caches.

    :raises BakeError: it is none, or of another target or model than is wanted.
    """
    from bake.image.make import check_names

    with shown() as progress, Timer(progress).phase(f"read {file.name}"):
        names = shipping.names(file, limits)
    settings = _settings(parsed, os.environ)
    known = known_variants(settings.experiments)
    variants = [name.rpartition("/")[2] for name in names]
    target = _target(settings)
    # One that is unknown here is refused below.
    choice = _choice(settings, target, [name for name in variants if name in known])
    model = find_model(choice.model, settings.experiments).name
    check_names(file, names, f"{target.name}/{model}/<variant>", known)
    return variants


def _make(parsed: argparse.Namespace, wanted: Any) -> int:
    from bake.image import daemon, make, report

    with daemon.engine() as client, shown() as progress:
        progress.say(f"model {wanted.model}: {wanted.why}")
        made = make.make(client, wanted, Timer(progress))
        layers = report.layers(client, made.image)
    if parsed.json:
        told = asdict(made) | {"layers": [asdict(layer) for layer in layers]}
        print(json.dumps(told, indent=2))
        return 0
    print(report.table(layers))
    for verified in made.verified:
        print(verified.sentence())
    print(f"{made.tag}: {made.size / 1e6:.0f} MB, {made.image}")
    return 0


def _export(parsed: argparse.Namespace) -> int:
    from bake.image import bakery, container, daemon, verify
    from bake.shipping import export

    image = _tagged(parsed)
    with daemon.engine() as client, tempfile.TemporaryDirectory(prefix="preheat-") as folder:
        holds = verify.check_image(client, image)
        below = Path(folder)
        names = [holds.root(variant) for variant in holds.variants]
        with container.container(client, image) as one:
            for name in names:
                (below / name).parent.mkdir(parents=True, exist_ok=True)
                bakery.receive(one, f"{bakery.IN_IMAGE}/{name}", below / name)
        shipped = export(below, names, parsed.out)
    if parsed.json:
        print(json.dumps(vars(shipped) | {"file": str(shipped.file)}, indent=2))
        return 0
    print(f"wrote {shipped.file}: {', '.join(shipped.roots)}; {shipped.size} bytes")
    print(f"sha256 {shipped.sha256}")
    return 0


def _verify(parsed: argparse.Namespace) -> int:
    from bake.image import daemon, report, verify

    image = _tagged(parsed, parsed.variants)
    with daemon.engine() as client, shown() as progress:
        holds = verify.check_image(client, image)
        daemon.check_device(daemon.facts(client), holds.device)
        variants = list(dict.fromkeys(parsed.variants or holds.variants))
        done = verify.verify(client, image, holds, variants, progress)
        layers = report.layers(client, image)
    size = sum(layer.size for layer in layers)
    if parsed.json:
        print(
            json.dumps({"image": image, "size": size, "verified": [*map(asdict, done)]}, indent=2)
        )
        return 0
    print("\n".join(one.sentence() for one in done))
    print(f"{image}: {size / 1e6:.0f} MB, weights and caches as they were built")
    return 0


def _bake(parsed: argparse.Namespace) -> int:
    from bake.image import daemon, mounted

    wanted = _wanted(parsed, parsed.variants)
    given = mounted.check(parsed.folder, parsed.mount, _settings(parsed, os.environ).experiments)
    with daemon.engine() as client, shown() as progress:
        roots = mounted.bake(client, wanted, given, Timer(progress))
    if parsed.json:
        told = {"roots": [*map(str, roots)], "folder": str(given.folder), "model": given.served}
        print(json.dumps(told, indent=2))
        return 0
    print("\n".join(f"wrote {root}" for root in roots))
    return 0


def _layers(parsed: argparse.Namespace) -> int:
    from bake.image import daemon, report

    with daemon.engine() as client:
        layers = report.layers(client, _tagged(parsed))
    print(json.dumps([*map(asdict, layers)], indent=2) if parsed.json else report.table(layers))
    return 0


def _asked(parsed: argparse.Namespace) -> Any:
    from bake.image.run import Asked

    settings = _settings(parsed, os.environ)
    load_variant(settings.variant, settings.experiments)
    # Named, or the one that the target would take; a folder is known by its path only.
    return Asked(
        settings.variant, settings.model or "", settings.target or "", settings.host, settings.port
    )


def _chosen(parsed: argparse.Namespace) -> tuple[Any, bool]:
    """What serves, and whether the engine's containers have a network of their own."""
    from bake.image import run

    runtime = run.parse(os.environ.get("RUNTIME", ""))
    asked = _asked(parsed)
    image = _tagged(parsed, [asked.variant])
    labels, why, bridged = None, "", True
    if runtime != "local":
        try:
            labels, bridged = _found(image)
        except BakeError as error:
            why = error.what
        except ModuleNotFoundError as error:
            why = f"the package {error.name} is not installed"
    settings = _settings(parsed, os.environ)
    return run.choose(
        runtime, image, labels, why, asked, partial(_unlike, settings, asked)
    ), bridged


def _unlike(settings: Settings, asked: Any, holds: Any) -> str:
    """In what the image's weights are not those that would be served from here."""
    from bake.image import weights

    return weights.unlike(settings, holds.model, asked.variant, holds.served.get(asked.variant, ""))


def _found(image: str) -> tuple[dict[str, str], bool]:
    """The labels of an image, and whether the engine's containers have a network of their own.

    :raises BakeError: no engine answers, or it has no such image.
    """
    from docker.errors import ImageNotFound

    from bake.image import daemon

    with daemon.engine() as client:
        try:
            found: dict[str, str] = client.images.get(image).labels
        except ImageNotFound as error:
            raise BakeError(f"no image {image}") from error
        return found, daemon.facts(client).bridged


def _runtime(parsed: argparse.Namespace) -> int:
    from bake.image.run import Local

    chosen, _ = _chosen(parsed)
    local = isinstance(chosen, Local)
    said = f"local ({chosen.reason})" if local else f"docker, image {chosen.name}"
    print(f"preheat: runtime {said}", file=sys.stderr)
    word = "local" if local else "docker"
    print(json.dumps({"runtime": word, "said": said}) if parsed.json else word)
    return 0


def _run(parsed: argparse.Namespace) -> int:
    from bake.image import run

    os.environ["RUNTIME"] = "docker"
    # The command would follow a context of its own: it must be the engine that was asked.
    os.environ.setdefault("DOCKER_HOST", "unix:///var/run/docker.sock")
    keys = Path(os.environ.get("PREHEAT_TRUSTED_KEYS") or "/")
    if keys.is_file():
        # A file of this machine is none of the container's; the keys themselves are short.
        trusted_keys(str(keys))
        lines = [line.strip() for line in keys.read_text(encoding="utf-8").splitlines()]
        given = [line for line in lines if line and not line.startswith("#")]
        os.environ["PREHEAT_TRUSTED_KEYS"] = ",".join(given)
    chosen, bridged = _chosen(parsed)
    keys_file = os.environ.get("PREHEAT_KEYS_FILE")
    words = run.argv(
        chosen,
        _asked(parsed),
        bridged=bridged,
        passed=run.passed(os.environ),
        keys_file=Path(keys_file).absolute() if keys_file else None,
    )
    if parsed.json:
        print(json.dumps(words))
        return 0
    print(f"preheat: {shlex.join(words)}", file=sys.stderr, flush=True)
    try:
        os.execvp(words[0], words)
    except OSError as error:
        raise BakeError(
            f"no docker command: {error.strerror}", "install it, or say RUNTIME=local"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
