"""Takes blobs and baked roots into an OCI layout and out of it: proven before, proven after.

A blob goes file by file, so that what two of them share is carried and kept once: a node's store
is asked first, and only what it has not is read. A baked root goes as the one archive that
``bake.shipping`` makes of it: its thousands of small files belong together, and no registry wants a
layer for each.
"""

import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bake import shipping, tree
from bake.archive import DEPTH
from bake.errors import BakeError
from bake.oci.layout import TITLE, Artifact, Contents, Descriptor, Layout, Put, Source
from bake.progress import silent
from bake.shipping import Terms
from bake.weights import place
from blob import files, manifest
from blob.store import Kept, Store
from blob.verify import require_sound, verify
from serve import manifest as baked_manifest

BLOB = "application/vnd.preheat.blob.v1"
BAKED = "application/vnd.preheat.baked.v1"
FILE = "application/vnd.preheat.file.v1"
ARCHIVE = "application/vnd.preheat.baked.v1.tar+zstd"
# What an artifact of ours says of itself.
FINGERPRINT = "dev.preheat.fingerprint"
ROOT = "dev.preheat.root"

# Bytes done of bytes in all.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Pulled:
    """What a pull made: bytes that were read from the layout, of bytes in all."""

    folder: Path
    kind: str
    size: int
    fetched_bytes: int
    files: int
    fetched_files: int


def push(folder: Path, layout: Layout, tag: str, progress: Progress = silent) -> Put:
    """Add the blob or the baked root in ``folder``, and let ``tag`` name it.

    :raises BakeError: it is neither; something cannot be written.
    :raises BlobError: the blob is not what was written.
    """
    if (folder / baked_manifest.NAME).is_file() and _is_baked(folder):
        return _push_baked(folder.resolve(), layout, tag, progress)
    require_sound(verify(folder, silent), folder)
    stood = manifest.read(folder)
    sha256, size = files.digest(folder / manifest.NAME, manifest.MAX_BYTES)
    own = Source(manifest.NAME, folder / manifest.NAME, sha256, size)
    listed = [Source(one.path, folder / one.path, one.sha256, one.size) for one in stood.everything]
    contents = Contents(BLOB, FILE, [own, *listed], {FINGERPRINT: stood.fingerprint})
    return layout.put(tag, contents, _counted(progress, sum(one.size for one in contents.files)))


def _is_baked(folder: Path) -> bool:
    """Whether its manifest is a root's: a blob's has another form."""
    try:
        baked_manifest.parse(baked_manifest.read(folder))
    except baked_manifest.ManifestError:
        return False
    return True


def _push_baked(root: Path, layout: Layout, tag: str, progress: Progress) -> Put:
    if len(root.parts) <= DEPTH:
        raise BakeError(f"{root}: no <target>/<model>/<variant> below a folder of baked roots")
    name = "/".join(root.parts[-DEPTH:])
    with tempfile.TemporaryDirectory(prefix="preheat-push-") as folder:
        packed = Path(folder) / "root.tar.zst"
        shipped = shipping.export(root.parents[DEPTH - 1], [name], packed, progress)
        title = f"{name.replace('/', '-')}.tar.zst"
        source = Source(title, packed, shipped.sha256, shipped.size)
        return layout.put(tag, Contents(BAKED, ARCHIVE, [source], {ROOT: name}), lambda _: None)


@dataclass(frozen=True)
class Place:
    """Where what is pulled goes: blobs below ``blobs``, sharing ``store``; roots below ``baked``,
    on ``terms``.
    """

    blobs: Path
    store: Store
    baked: Path
    terms: Terms


def pull(
    layout: Layout, tag: str, where: Place, name: str = "", progress: Progress = silent
) -> Pulled:
    """Make what ``tag`` names: the blob ``name`` (the tag's own), or the root that it was.

    :raises BakeError: there is no such tag, it is nothing of ours, or its place is taken.
    :raises BlobError: what arrived is not what its manifest says; nothing of it gets a name.
    """
    artifact = layout.artifact(tag)
    if artifact.size > where.terms.limits.total_bytes:
        raise BakeError(
            f"{layout.root}: {tag} is of {artifact.size} bytes; at most "
            f"{where.terms.limits.total_bytes} are let in",
            "say --max-bytes if it is to be so large",
        )
    if artifact.kind == BAKED:
        if name:
            raise BakeError(f"{tag} is a baked root, which has a name of its own", "leave --name")
        return _pull_baked(layout, artifact, where, progress)
    if artifact.kind != BLOB:
        raise BakeError(
            f"{layout.root}: {tag} is of type {files.printable(artifact.kind)}",
            f"expected {BLOB} or {BAKED}: what `preheat bake push` made",
        )
    return _pull_blob(layout, artifact, where, name or tag, progress)


def _pull_blob(
    layout: Layout, artifact: Artifact, where: Place, name: str, progress: Progress
) -> Pulled:
    try:
        folder = where.blobs / files.check_path(name)
    except ValueError as error:
        raise BakeError(f"--name: {error}") from error
    fetched: list[Descriptor] = []
    told = _counted(progress, artifact.size)
    with where.store.in_use(), ExitStack() as held:
        place.check(folder, where.store.root, force=where.terms.force)
        held.enter_context(tree.locked(folder))
        tree.recover(folder)
        place.check(folder, where.store.root, force=where.terms.force)
        part = tree.beside(folder, ".part")
        held.callback(tree.remove, part)
        part.mkdir(mode=0o755)
        _check_listed(artifact, layout)
        _check_room(part, artifact.size)
        for layer in artifact.layers:
            kept = Kept(layer.sha256, layer.size)
            if where.store.take(kept, layout.read(layer, told)):
                fetched.append(layer)
            else:
                told(layer.size)
            where.store.link(kept, part / layer.annotations[TITLE])
        require_sound(verify(part, silent), part)
        tree.put_in_place(folder)
    return Pulled(
        folder,
        artifact.kind,
        artifact.size,
        sum(layer.size for layer in fetched),
        len(artifact.layers),
        len(fetched),
    )


def _check_listed(artifact: Artifact, layout: Layout) -> None:
    """Whether the layers are what the blob's own manifest lists: nothing else is fetched, so that
    what is refused has filled no store.

    :raises BakeError: one is missing, or there is one more.
    """
    named = {layer.annotations[TITLE]: layer for layer in artifact.layers}
    own = named.get(manifest.NAME)
    if own is None or len(named) != len(artifact.layers):
        raise BakeError(f"{layout.root}: no {manifest.NAME} among its files, or one of them twice")
    if own.size > manifest.MAX_BYTES:
        raise BakeError(f"{layout.root}: {manifest.NAME} of {own.size} bytes")
    stood = manifest.parse(b"".join(layout.read(own, lambda _: None)))
    listed = {one.path: (one.sha256, one.size) for one in stood.everything}
    there = {name: (one.sha256, one.size) for name, one in named.items() if one is not own}
    if differ := sorted(path for path in listed | there if listed.get(path) != there.get(path)):
        raise BakeError(
            f"{layout.root}: {files.printable(differ[0])}: not as the blob's own manifest has it",
            "push the blob again",
        )


def _check_room(part: Path, needed: int) -> None:
    """:raises BakeError: there is less than all of it would take."""
    if (free := shutil.disk_usage(part).free) < needed:
        raise BakeError(f"{part.parent}: {needed} bytes are needed at most, {free} are free")


def _pull_baked(layout: Layout, artifact: Artifact, where: Place, progress: Progress) -> Pulled:
    if len(artifact.layers) != 1:
        raise BakeError(f"{layout.root}: a baked root of {len(artifact.layers)} files; expected 1")
    (layer,) = artifact.layers
    told = _counted(progress, layer.size)
    with tempfile.TemporaryDirectory(prefix="preheat-pull-") as folder:
        packed = Path(folder) / "root.tar.zst"
        try:
            with packed.open("xb") as file:
                for piece in layout.read(layer, told):
                    file.write(piece)
        except OSError as error:
            raise shipping.failed(error, packed) from error
        said = artifact.annotations.get(ROOT, "")
        if (held := shipping.names(packed, where.terms.limits)) != (said,):
            raise BakeError(
                f"{layout.root}: holds {files.printable(', '.join(held))}, "
                f"and says that it is {files.printable(said)}"
            )
        (root,) = shipping.receive(packed, where.baked, where.terms, silent).roots
    return Pulled(root, artifact.kind, layer.size, layer.size, 1, 1)


def _counted(progress: Progress, total: int) -> Callable[[int], None]:
    """Tells ``progress`` the sum of what it is told."""
    done = 0

    def more(size: int) -> None:
        nonlocal done
        done += size
        progress(min(done, total), total)

    return more
