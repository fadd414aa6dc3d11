"""``preheat bake push | pull | tags``: blobs and baked roots in an OCI layout."""

import argparse
import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bake.errors import BakeError
from bake.progress import bar
from bake.weights.verbs import STORE
from blob.files import printable
from serve.cli import Add, positive
from serve.errors import ConfigError
from serve.settings import read_settings
from serve.signature import trusted_keys


def add(verb: Add) -> None:
    """Add the verbs to a command line."""
    _push_options(verb("push", _push, "add a blob or a baked root to an OCI layout"))
    _pull_options(verb("pull", _pull, "make what a tag of an OCI layout names"))
    _tags_options(verb("tags", _tags, "what an OCI layout holds, and how much of it is shared"))


def _push_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", type=Path, metavar="FOLDER", help="a blob, or a baked root")
    verb.add_argument("layout", type=Path, metavar="LAYOUT", help="folder; made when not there")
    verb.add_argument("--tag", type=_tag, help="what it is called there (the folder's name)")


def _push(parsed: argparse.Namespace) -> int:
    from bake.oci.carry import push
    from bake.oci.layout import TAG, Layout

    tag = parsed.tag or parsed.folder.resolve().name
    if not re.fullmatch(TAG, tag):
        raise ConfigError(f"{tag!r}, the folder's name, is no tag", "say --tag")
    with bar("pushing", quiet=parsed.json) as shown:
        put = push(parsed.folder, Layout(parsed.layout.absolute()), tag, shown)
    if parsed.json:
        print(json.dumps({"tag": tag, **asdict(put)}, indent=2))
        return 0
    print(f"{tag}: {put.digest}")
    print(f"{put.new_bytes} bytes were new of {put.size}")
    return 0


def _pull_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("layout", type=Path, metavar="LAYOUT", help="folder of the layout")
    verb.add_argument("tag", metavar="TAG", type=_tag, help="what was pushed")
    verb.add_argument("--name", help="of the blob that it becomes (the tag)")
    verb.add_argument("--root", type=Path, metavar="FOLDER", help="where blobs, or roots, go")
    verb.add_argument("--store", type=Path, metavar="FOLDER", help="where blobs share files")
    verb.add_argument("--force", action="store_true", help="replace what is there")
    verb.add_argument(
        "--max-bytes", type=positive, metavar="N", help="most that it may be of (64 GiB)"
    )


def _pull(parsed: argparse.Namespace) -> int:
    from bake.archive import Limits
    from bake.oci.carry import Place, pull
    from bake.oci.layout import Layout
    from bake.shipping import Terms
    from blob.store import Store

    settings = read_settings(os.environ)
    blobs = (parsed.root or settings.blob_root).absolute()
    limits = Limits(total_bytes=parsed.max_bytes) if parsed.max_bytes else Limits()
    where = Place(
        blobs,
        Store((parsed.store or blobs / STORE).absolute()),
        (parsed.root or settings.baked_root).absolute(),
        Terms(keys=trusted_keys(settings.trusted_keys), force=parsed.force, limits=limits),
    )
    with bar("pulling", quiet=parsed.json) as shown:
        made = pull(Layout(parsed.layout.absolute()), parsed.tag, where, parsed.name or "", shown)
    if parsed.json:
        print(json.dumps({**asdict(made), "folder": str(made.folder)}, indent=2))
        return 0
    print(f"wrote {made.folder}: {made.files} files")
    print(f"{made.fetched_bytes} bytes were fetched of {made.size}")
    return 0


def _tags_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("layout", type=Path, metavar="LAYOUT", help="folder of the layout")


def _tags(parsed: argparse.Namespace) -> int:
    from bake.oci.layout import Layout

    layout = Layout(parsed.layout.absolute())
    seen: dict[str, int] = {}
    rows: list[dict[str, Any]] = []
    for tag in layout.tags():
        try:
            artifact = layout.artifact(tag)
        except BakeError:
            # A container image, an index of several: there, and not ours.
            continue
        new = {one.sha256: one.size for one in artifact.layers if one.sha256 not in seen}
        seen |= new
        rows.append(
            {
                "tag": tag,
                "digest": layout.descriptor(tag).digest,
                "type": printable(artifact.kind),
                "files": len(artifact.layers),
                "size": artifact.size,
                "not_in_those_above": sum(new.values()),
            }
        )
    whole = {"bytes": sum(seen.values()), "bytes_apart": sum(row["size"] for row in rows)}
    if parsed.json:
        print(json.dumps({"tags": rows, **whole}, indent=2))
        return 0
    for row in rows:
        kind = row["type"].removeprefix("application/vnd.preheat.")
        print(f"{row['tag']:24} {kind:10} {row['size']:>14} {row['not_in_those_above']:>14}")
    print(f"{'together':24} {'':10} {whole['bytes_apart']:>14} {whole['bytes']:>14}")
    return 0


def _tag(text: str) -> str:
    from bake.oci.layout import TAG

    if not re.fullmatch(TAG, text):
        raise argparse.ArgumentTypeError(f"{text!r} is no tag: letters, digits, _ . -; at most 128")
    return text
