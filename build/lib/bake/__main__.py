"""``preheat bake VERB``: the only place in ``bake`` that reads this process's environment."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from bake import deriving, fetching
from bake.checkpoint import verbs as checkpoints
from bake.oci import verbs as layouts
from bake.progress import bar
from bake.progress import shown as progress_of_phases
from bake.quantize import verbs as quantizing
from bake.vocabulary import verbs as vocabularies
from bake.weights import verbs as weights
from serve import __version__, baked
from serve.choice import choose_model
from serve.cli import positive, run_verb
from serve.errors import ConfigError
from serve.model import find_model
from serve.settings import Settings, read_settings
from serve.signature import trusted_keys
from serve.target import choose_target, probe_gpu
from serve.variant import load_variant

EXAMPLES = """examples:
  preheat bake cache seq8 seq8-best
  preheat bake explain-miss .cache/baked/cpu/tiny/seq8-best /tmp/factors
  preheat bake cache-verify seq8-best
  preheat bake cache-export seq8 seq8-best --out cache_import.tar.zst
  preheat bake cache-import cache_import.tar.zst --force
  preheat bake keygen --out ~/.preheat
  preheat bake sign .cache/baked/cpu/tiny/seq8-best --key ~/.preheat/preheat.key
  preheat bake fetch smollm2-135m
  preheat bake derive awq --model tiny
  preheat bake inspect model.gguf --tensors
  preheat bake convert model.gguf weights/mine
  preheat bake verify-checkpoint weights/mine --full
  preheat bake pack tiny --codec int5
  preheat bake verify .cache/blobs/tiny-int5
  preheat bake diff .cache/blobs/tiny-int5 .cache/blobs/tiny-q6_k
  preheat bake push .cache/blobs/tiny-int5 .cache/layout --tag int5
  preheat bake pull .cache/layout int5 --root /var/lib/preheat

Roots lie in PREHEAT_BAKED_ROOT/<target>/<model>/<variant>, blobs in PREHEAT_BLOB_ROOT/<name>.
Exit status 0 done, 1 failed, 2 usage or configuration.
"""
# What brings a package that is missing; all others come with "bake".
EXTRAS = dict.fromkeys(("blake3", "llvmlite", "numba", "numpy", "safetensors"), "blob")
ARCHIVE = Path("cache_import.tar.zst")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Exit status 0 done, 1 failed, 2 usage, 130 interrupted."""
    try:
        return run_verb(parser().parse_args(arguments))
    except ModuleNotFoundError as error:
        name = error.name or ""
        # A part of one of these, as numpy.typing, is not what a person installs.
        package = name.partition(".")[0]
        hint = f"pip install 'preheat[{EXTRAS.get(package, 'bake')}]'"
        missing = package if package in EXTRAS else name
        print(f"preheat: {missing} is not installed\nhint: {hint}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="preheat bake",
        description="Make, check and ship what a variant starts from.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"preheat {__version__}")
    verbs = top.add_subparsers(required=True, metavar="VERB")
    _cache_options(_verb(verbs, "cache", _cache, "bake compile caches, and prove that they hit"))
    _explain_options(_verb(verbs, "explain-miss", _explain, "name what differs between two keys"))
    _verify_options(_verb(verbs, "cache-verify", _verify, "check baked roots, file by file"))
    _export_options(_verb(verbs, "cache-export", _export, "pack baked roots into one archive"))
    _import_options(_verb(verbs, "cache-import", _import, "check an archive and put its roots in"))
    _keygen_options(_verb(verbs, "keygen", _keygen, "make a pair of keys to sign roots with"))
    _sign_options(_verb(verbs, "sign", _sign, "sign the manifest of a baked root"))
    checkpoints.add(partial(_verb, verbs))
    fetching.add(partial(_verb, verbs))
    deriving.add(partial(_verb, verbs))
    vocabularies.add(partial(_verb, verbs))
    quantizing.add(partial(_verb, verbs))
    weights.add(partial(_verb, verbs))
    layouts.add(partial(_verb, verbs))
    return top


def _verb(
    verbs: Any, name: str, run: Callable[[argparse.Namespace], int], sentence: str
) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = verbs.add_parser(name, help=sentence, description=sentence)
    made.add_argument("--json", action="store_true", help="for programs")
    made.set_defaults(verb=run)
    return made


def _axes(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("variants", nargs="+", metavar="VARIANT", help="folder of experiments/")
    verb.add_argument("--model", help="name or checkpoint folder (MODEL)")
    verb.add_argument("--target", help="cpu, a10g, … (TARGET); detected when not given")


def _settings(parsed: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """Settings from the environment, under what the command line says."""
    names = {"MODEL": "model", "TARGET": "target"}
    said = {name: getattr(parsed, option, None) for name, option in names.items()}
    return read_settings({**environ, **{k: v for k, v in said.items() if v is not None}})


def _roots(settings: Settings, variants: Sequence[str]) -> list[str]:
    """``<target>/<model>/<variant>`` of each, as a server with these settings would look for it."""
    target = choose_target(settings.target, probe_gpu(), settings.experiments)
    roots = []
    for name in dict.fromkeys(variants):
        variant = load_variant(name, settings.experiments)
        choice = choose_model(settings.model, target, [variant])
        model = find_model(choice.model, settings.experiments)
        roots.append(f"{target.name}/{model.name}/{variant.name}")
    return roots


def _cache_options(verb: argparse.ArgumentParser) -> None:
    _axes(verb)
    verb.add_argument("--present-as", metavar="NAME", help="an allow-listed sibling of this GPU")
    verb.add_argument("--verbose", action="store_true", help="the engine's own log too")


def _cache(parsed: argparse.Namespace) -> int:
    from bake.baking import bake_all

    level = logging.INFO if parsed.verbose else logging.CRITICAL
    logging.basicConfig(level=level, format="%(name)s | %(message)s")
    settings = _settings(parsed, os.environ)
    with progress_of_phases() as shown:
        reports = bake_all(settings, parsed.variants, shown, parsed.present_as or "")
    if parsed.json:
        print(json.dumps({"bakes": [asdict(report) for report in reports]}, indent=2))
        return 0
    print("\n".join(report.sentence() for report in reports))
    return 0


def _explain_options(verb: argparse.ArgumentParser) -> None:
    for name in ("a", "b"):
        verb.add_argument(
            name,
            type=Path,
            metavar=name.upper(),
            help="a baked root, a folder of recorded factors, or a cache root of vLLM's own",
        )


def _explain(parsed: argparse.Namespace) -> int:
    from bake import explain

    for folder in (parsed.a, parsed.b):
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder")
    found = explain.explain(explain.read(parsed.a), explain.read(parsed.b))
    print(explain.as_json(found) if parsed.json else explain.render(found))
    return 0 if found.equal else 1


def _verify_options(verb: argparse.ArgumentParser) -> None:
    _axes(verb)


def _verify(parsed: argparse.Namespace) -> int:
    settings = _settings(parsed, os.environ)
    keys = trusted_keys(settings.trusted_keys)
    found = [
        baked.inspect(settings.baked_root.absolute() / name, keys)
        for name in _roots(settings, parsed.variants)
    ]
    if parsed.json:
        print(json.dumps({"roots": [_described(one) for one in found]}, indent=2))
    else:
        for one in found:
            print("\n".join(_judged(one)))
    return 0 if all(isinstance(one, baked.Sound) for one in found) else 1


def _described(found: baked.Found) -> dict[str, Any]:
    sound = isinstance(found, baked.Sound)
    told: dict[str, Any] = {"root": str(found.root), "sound": sound, "reasons": list(_why(found))}
    if isinstance(found, baked.Sound):
        told |= {"files": found.files, "bytes": found.total_bytes}
        told |= {"seconds": round(found.seconds, 3), "signed_by": found.key}
    return told


def _judged(found: baked.Found) -> Iterator[str]:
    if isinstance(found, baked.Sound):
        by = f", signed by {found.key}" if found.key else ""
        yield f"{found.root}: sound: {found.files} files, {found.total_bytes} bytes{by}"
        return
    yield f"{found.root}: not to be used"
    yield from (f"  {reason}" for reason in _why(found))


def _why(found: baked.Found) -> tuple[str, ...]:
    if isinstance(found, baked.Absent):
        return ("there is no such root",)
    return found.reasons if isinstance(found, baked.Unfit) else ()


def _export_options(verb: argparse.ArgumentParser) -> None:
    _axes(verb)
    verb.add_argument("--out", type=Path, default=ARCHIVE, help=f"the archive ({ARCHIVE})")


def _export(parsed: argparse.Namespace) -> int:
    from bake.shipping import export

    settings = _settings(parsed, os.environ)
    names = _roots(settings, parsed.variants)
    with bar("packing", quiet=parsed.json) as shown:
        shipped = export(settings.baked_root.absolute(), names, parsed.out, shown)
    if parsed.json:
        print(json.dumps(vars(shipped) | {"file": str(shipped.file)}, indent=2))
        return 0
    print(
        f"wrote {shipped.file}: {len(shipped.roots)} roots, {shipped.files} files, "
        f"{shipped.unpacked} bytes in {shipped.size}\nsha256 {shipped.sha256}"
    )
    return 0


def _import_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("file", type=Path, metavar="FILE", help="made by cache-export")
    verb.add_argument("--force", action="store_true", help="replace roots that are there")
    verb.add_argument("--max-bytes", type=positive, help="most that it may unpack to (64 GiB)")


def _import(parsed: argparse.Namespace) -> int:
    from bake.archive import Limits
    from bake.shipping import Terms, receive

    settings = _settings(parsed, os.environ)
    keys = trusted_keys(settings.trusted_keys)
    limits = Limits(total_bytes=parsed.max_bytes) if parsed.max_bytes else Limits()
    terms = Terms(keys, parsed.force, limits)
    with bar("unpacking", quiet=parsed.json) as shown:
        arrived = receive(parsed.file, settings.baked_root.absolute(), terms, shown)
    if parsed.json:
        print(json.dumps(vars(arrived) | {"roots": [*map(str, arrived.roots)]}, indent=2))
        return 0
    print("\n".join([*arrived.done, *(f"{root}: sound, in place" for root in arrived.roots)]))
    if not keys:
        print("who made it was not asked: set PREHEAT_TRUSTED_KEYS, or trust where it came from")
    return 0


def _keygen_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where they go")


def _keygen(parsed: argparse.Namespace) -> int:
    from bake.signing import keygen

    private, public = keygen(parsed.out)
    if parsed.json:
        print(json.dumps({"private": str(private), "public": str(public)}))
        return 0
    print(f"private key: {private} (keep it where roots are signed, nowhere else)")
    print(f"public key:  {public} (servers: PREHEAT_TRUSTED_KEYS={public})")
    return 0


def _sign_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("root", type=Path, metavar="ROOT", help="folder of a baked root")
    verb.add_argument("--key", type=Path, required=True, metavar="FILE", help="the private key")


def _sign(parsed: argparse.Namespace) -> int:
    from bake.signing import sign

    name = sign(parsed.root, parsed.key)
    print(json.dumps({"root": str(parsed.root), "key": name}) if parsed.json else f"signed: {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
