"""``preheat bake inspect | convert | verify-checkpoint``: the verbs on checkpoints."""

import argparse
import json
import re
import stat
from dataclasses import asdict
from pathlib import Path

from bake.errors import BakeError
from bake.progress import bar
from blob.files import printable
from serve.cli import Add, positive

# A path has lost the second slash.
ADDRESS = re.compile(r"(https?):/", re.IGNORECASE)
KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def add(verb: Add) -> None:
    """Add the verbs to a command line."""
    _inspect_options(verb("inspect", _inspect, "tell what a checkpoint is, from its headers alone"))
    _convert_options(verb("convert", _convert, "make a plain Hugging Face folder of a checkpoint"))
    _verify_options(
        verb("verify-checkpoint", _verify, "ask whether a checkpoint is whole and fits together")
    )


def _inspect_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("path", metavar="PATH", help="a file, a folder, or an http(s) address")
    verb.add_argument("--tensors", action="store_true", help="every tensor, too")


def _inspect(parsed: argparse.Namespace) -> int:
    from bake.checkpoint import table
    from bake.checkpoint.inspect import inspect, is_address

    found = inspect(parsed.path if is_address(parsed.path) else _local(Path(parsed.path)))
    if parsed.json:
        told = table.as_json(found, tensors=parsed.tensors)
        print(json.dumps(told, indent=2, allow_nan=False))
        return 0
    print("\n".join(table.inspected(found, tensors=parsed.tensors)))
    return 0


def _local(path: Path) -> Path:
    """``path``, if it may be a checkpoint; whether it is there, its reader says.

    :raises BakeError: it is an address, a pipe or a device.
    """
    if ADDRESS.match(str(path)):
        # Without what may be a token.
        address = ADDRESS.sub(r"\1://", str(path)).partition("?")[0]
        raise BakeError(
            f"{address}: is an address: only inspect reads those",
            "download the file, then give where it lies",
        )
    try:
        mode = path.stat().st_mode
    except OSError:
        return path
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        kind = KINDS.get(stat.S_IFMT(mode), "something else")
        raise BakeError(
            f"{path}: is neither a plain file nor a folder, but {kind}",
            "give a file of weights or a folder: formats are read by range, not from a stream",
        )
    return path


def _convert_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("src", type=Path, metavar="SRC", help="a file or a folder")
    verb.add_argument("dst", type=Path, metavar="DST", help="the folder to make")
    verb.add_argument("--dtype", choices=("bf16", "f32"), default="bf16", help="of all numbers")
    verb.add_argument(
        "--config", type=Path, metavar="FILE", help="config.json, where SRC has none beside it"
    )
    verb.add_argument("--shard-bytes", type=positive, metavar="N", help="most in a file (2 GiB)")
    verb.add_argument("--force", action="store_true", help="replace what a conversion made")


def _convert(parsed: argparse.Namespace) -> int:
    from bake.checkpoint.convert import convert
    from bake.checkpoint.table import PATH
    from bake.checkpoint.writing import SHARD_BYTES

    _local(parsed.src)
    with bar("converting", quiet=parsed.json) as shown:
        made = convert(
            parsed.src,
            parsed.dst.absolute(),
            parsed.dtype.upper(),
            shown,
            config=parsed.config,
            force=parsed.force,
            shard_bytes=parsed.shard_bytes or SHARD_BYTES,
        )
    if parsed.json:
        print(json.dumps({**asdict(made), "folder": str(made.folder)}, indent=2))
        return 0
    wrote = f"{made.tensors} tensors, {made.bytes} bytes, {made.seconds:.1f} s"
    print(f"wrote {printable(made.folder, PATH)}: {wrote}")
    if made.resumed:
        print(f"{made.resumed} of {made.files} files were done by an earlier run")
    if made.dropped:
        print(f"left out: {len(made.dropped)} tensors that plain weights have no use for")
    print(f"serve it: make serve MODEL={printable(parsed.dst, PATH)}")
    return 0


def _verify_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("path", type=Path, metavar="DIR", help="a checkpoint folder, or one file")
    verb.add_argument("--full", action="store_true", help="read every number, not a sample")
    verb.add_argument("--digests", type=Path, metavar="FILE", help="what sha256sum wrote")


def _verify(parsed: argparse.Namespace) -> int:
    from bake.checkpoint import table
    from bake.checkpoint.verify import read_digests, verify

    _local(parsed.path)
    digests = read_digests(parsed.digests) if parsed.digests else None
    with bar("reading", quiet=parsed.json) as shown:
        report = verify(parsed.path, full=parsed.full, digests=digests, progress=shown)
    if parsed.json:
        checks = [asdict(check) for check in report.checks]
        print(json.dumps({"path": str(report.path), "sound": report.sound, "checks": checks}))
    else:
        print("\n".join(table.verified(report)))
    return 0 if report.sound else 1
