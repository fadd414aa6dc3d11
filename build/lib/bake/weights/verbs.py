"""``preheat bake pack | verify | diff | export | import | shard | sweep``: the verbs on blobs."""

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bake.errors import BakeError
from bake.progress import Timer, bar
from bake.progress import shown as progress_of_phases
from blob import manifest
from blob.errors import BlobError
from blob.names import CODECS, GROUPS, Targets
from serve.cli import Add, positive
from serve.errors import ConfigError
from serve.model import find_model
from serve.settings import Settings, read_settings

STORE = "store"


def add(verb: Add) -> None:
    """Add the verbs to a command line."""
    _pack_options(verb("pack", _pack, "quantize a checkpoint into a blob"))
    _verify_options(verb("verify", _verify, "prove blobs: every file, every tensor"))
    _diff_options(verb("diff", _diff, "what differs between two blobs, by tensor"))
    _export_options(verb("export", _export, "prove a blob and put it into one archive"))
    _import_options(verb("import", _import, "prove an archive's blob and put it in"))
    _shard_options(verb("shard", _shard, "slice a model for the ranks of tensor parallelism"))
    _sweep_options(verb("sweep", _sweep, "remove what no blob uses from the store"))


def _pack_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", metavar="MODEL", help="name in experiments/models, or a folder")
    verb.add_argument("--codec", required=True, choices=CODECS, metavar="CODEC", help=_codecs())
    groups = ", ".join(f"{codec} {size}" for codec, size in GROUPS.items())
    verb.add_argument(
        "--group", type=int, metavar="N", help=f"weights that share a scale ({groups})"
    )
    verb.add_argument(
        "--targets",
        choices=("mlp", "linears", "all"),
        help="which matrices: the MLP's (int4), all linears (the others), or the head too",
    )
    verb.add_argument("--out", type=Path, metavar="FOLDER", help="the blob (<model>-<codec>)")
    verb.add_argument("--force", action="store_true", help="replace a blob that is there")
    _store_option(verb)


def _codecs() -> str:
    return "one of " + ", ".join(CODECS)


def _store_option(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--store", type=Path, metavar="FOLDER", help="where blobs share files")


def _settings() -> Settings:
    return read_settings(os.environ)


def _store(parsed: argparse.Namespace, settings: Settings) -> Any:
    from blob.store import Store

    return Store((parsed.store or settings.blob_root / STORE).absolute())


def _pack(parsed: argparse.Namespace) -> int:
    from bake.weights.pack import pack
    from blob.recipe import Recipe

    settings = _settings()
    source = find_model(parsed.model, settings.experiments)
    targets: Targets = parsed.targets or ("mlp" if parsed.codec == "int4" else "linears")
    wanted = Recipe(parsed.codec, parsed.group, targets)
    out = parsed.out or settings.blob_root / f"{source.name}-{parsed.codec}"
    with bar("packing", quiet=parsed.json) as shown:
        store = _store(parsed, settings)
        made = pack(source.path, wanted, out.absolute(), store, shown, force=parsed.force)
    if parsed.json:
        print(json.dumps({**asdict(made), "folder": str(made.folder)}, indent=2))
        return 0
    counted = ", ".join(f"{count} {codec}" for codec, count in made.codecs.items())
    print(f"wrote {made.folder}: {made.tensors} tensors ({counted})")
    ratio = made.stored_bytes / made.bytes if made.bytes else 1
    print(f"{made.bytes} bytes in {made.stored_bytes} ({ratio:.1%}), {made.seconds:.1f} s")
    print(f"fingerprint {made.fingerprint}")
    for note in made.notes:
        print(f"note: {note}")
    print(f"serve it: make serve MODEL={made.folder}")
    return 0


def _verify_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("blobs", nargs="+", type=Path, metavar="BLOB", help="folder of a blob")


def _verify(parsed: argparse.Namespace) -> int:
    from blob.verify import Fault, verify

    told = []
    for folder in parsed.blobs:
        try:
            with bar("proving", quiet=parsed.json) as shown:
                faults = verify(folder, shown)
        except BlobError as error:
            # What is no blob, or a newer one, does not keep the others from being looked at.
            where, _, detail = error.what.removeprefix(f"{folder}/").partition(": ")
            faults = [Fault(where, f"{detail}; {error.hint}" if error.hint else detail)]
        told.append((folder, faults))
    if parsed.json:
        blobs = [
            {"blob": str(folder), "sound": not faults, "faults": [asdict(f) for f in faults]}
            for folder, faults in told
        ]
        print(json.dumps({"blobs": blobs}, indent=2))
    else:
        for folder, faults in told:
            print("\n".join([_sound(folder)] if not faults else [f"{folder}: not to be used"]))
            print("".join(f"  {fault}\n" for fault in faults), end="")
    return 1 if any(faults for _, faults in told) else 0


def _sound(folder: Path) -> str:
    stood = manifest.read(folder)
    return f"{folder}: sound: {len(stood.tensors)} tensors, fingerprint {stood.fingerprint}"


def _diff_options(verb: argparse.ArgumentParser) -> None:
    for name in ("a", "b"):
        verb.add_argument(name, type=Path, metavar=name.upper(), help="folder of a blob")


def _diff(parsed: argparse.Namespace) -> int:
    from blob.verify import diff

    changes = diff(manifest.read(parsed.a), manifest.read(parsed.b))
    if parsed.json:
        print(json.dumps({"changes": [asdict(change) for change in changes]}, indent=2))
    else:
        print("\n".join(map(str, changes)) or "the same")
    return 1 if changes else 0


def _export_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("blob", type=Path, metavar="BLOB", help="folder of a blob")
    verb.add_argument("--out", type=Path, metavar="FILE", help="the archive (<blob>.tar.zst)")


def _export(parsed: argparse.Namespace) -> int:
    from bake.weights.shipping import export

    folder = parsed.blob.resolve()
    out = parsed.out or Path(f"{folder.name}.tar.zst")
    with bar("packing", quiet=parsed.json) as shown:
        shipped = export(folder, out, shown)
    if parsed.json:
        print(json.dumps({**asdict(shipped), "file": str(shipped.file)}, indent=2))
        return 0
    print(
        f"wrote {shipped.file}: {shipped.files} files, {shipped.unpacked} in {shipped.size} bytes"
    )
    print(f"sha256 {shipped.sha256}")
    return 0


def _import_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("file", type=Path, metavar="FILE", help="made by export")
    verb.add_argument("--root", type=Path, metavar="FOLDER", help="where it goes")
    verb.add_argument("--force", action="store_true", help="replace a blob that is there")
    verb.add_argument(
        "--max-bytes", type=positive, metavar="N", help="most that it may unpack to (64 GiB)"
    )
    _store_option(verb)


def _import(parsed: argparse.Namespace) -> int:
    from bake.archive import Limits
    from bake.shipping import Terms
    from bake.weights.shipping import receive

    settings = _settings()
    root = (parsed.root or settings.blob_root).absolute()
    with bar("unpacking", quiet=parsed.json) as shown:
        limits = Limits(total_bytes=parsed.max_bytes) if parsed.max_bytes else Limits()
        terms = Terms(force=parsed.force, limits=limits)
        arrived = receive(parsed.file, root, _store(parsed, settings), terms, shown)
    if parsed.json:
        print(json.dumps({**asdict(arrived), "roots": [*map(str, arrived.roots)]}, indent=2))
        return 0
    print("\n".join([*arrived.done, *(_sound(folder) for folder in arrived.roots)]))
    return 0


def _shard_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", metavar="MODEL", help="name, folder of a checkpoint or of a blob")
    verb.add_argument("--tp", type=int, required=True, metavar="N", help="ranks to slice for")
    codec = verb.add_argument("--codec", choices=CODECS, default="raw", metavar="CODEC")
    codec.help = "how slices are stored (raw: exactly what was loaded)"
    verb.add_argument("--out", type=Path, metavar="FOLDER", help="what it makes (<model>-tp<N>)")
    _store_option(verb)


def _shard(parsed: argparse.Namespace) -> int:
    from bake.weights.shard import Worker, shard
    from serve.plan import make_plan

    if parsed.tp < 2:
        raise ConfigError(f"--tp {parsed.tp}: a model is sliced for two ranks or more")
    settings = read_settings({**os.environ, "MODEL": parsed.model})
    plan = make_plan(settings, Path(sys.executable), Path("unused.sock")).within(os.environ)
    if plan.model.blob and plan.model.blob.world > 1:
        raise ConfigError(f"{plan.model.path}: holds slices already", "slice the whole model")
    out = (parsed.out or settings.blob_root / f"{plan.model.name}-tp{parsed.tp}").absolute()
    store = _store(parsed, settings).root
    worker = Worker(Path(sys.executable), plan.command.env)
    with progress_of_phases() as shown, Timer(shown).phase(f"slice for {parsed.tp} ranks"):
        made = shard(plan.model, parsed.tp, parsed.codec, out, store, worker)
    if parsed.json:
        print(json.dumps({**asdict(made), "folder": str(made.folder)}, indent=2))
        return 0
    each = ", ".join(str(size) for size in made.bytes)
    print(f"wrote {made.folder}: {made.world} ranks of {each} bytes, {made.seconds:.1f} s")
    print(f"serve it: make serve MODEL={made.folder}")
    return 0


def _sweep_options(verb: argparse.ArgumentParser) -> None:
    _store_option(verb)


def _sweep(parsed: argparse.Namespace) -> int:
    store = _store(parsed, _settings())
    if not store.root.is_dir():
        raise BakeError(f"{store.root}: no store", "pack a blob first, or say --store")
    freed = store.sweep()
    print(json.dumps({"freed": freed}) if parsed.json else f"{store.root}: freed {freed} bytes")
    return 0
