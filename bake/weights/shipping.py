"""Takes a blob to another machine: proven before it is packed and after it arrived.

The archive is ``bake.archive``'s: one blob, under its own name, the same bytes for the same blob.
"""

from pathlib import Path

from bake import tree
from bake.archive import pack
from bake.shipping import (
    Arrived,
    Progress,
    Shipped,
    Terms,
    replacing,
    silent,
    sized,
    told,
    unpack,
)
from blob import manifest
from blob.store import SEALED, Kept, Store
from blob.verify import require_sound, verify

# Quantized weights hardly shrink: the fastest that still packs what is raw.
LEVEL = 1
DEPTH = 1


def export(folder: Path, out: Path, progress: Progress = silent) -> Shipped:
    """Pack the blob in ``folder`` into the archive ``out``.

    :raises BakeError: it cannot be written.
    :raises BlobError: the blob is not what was written.
    """
    folder = folder.absolute()
    require_sound(verify(folder, silent), folder)
    stood = manifest.read(folder)
    names = [manifest.NAME, *(file.path for file in stood.everything)]
    files = sorted((f"{folder.name}/{name}", folder / name) for name in names)
    total = sum(path.stat().st_size for _, path in files)
    with replacing(out) as file:
        pack(told(files, total, progress), file, LEVEL)
        size, digest = sized(file)
    return Shipped(out, size, digest, (folder.name,), len(files), total)


def receive(
    file: Path, root: Path, store: Store, terms: Terms, progress: Progress = silent
) -> Arrived:
    """Unpack the archive ``file``, prove each blob in it, and put it below ``root``.

    :raises BakeError: no such archive, or a blob that stands there already.
    :raises BlobError: what arrived is not what its manifest says. Nothing stays of it.
    """

    def check(folder: Path) -> None:
        part = tree.beside(folder, ".part")
        require_sound(verify(part, silent), part)
        stood = manifest.read(part)
        for listed in stood.everything:
            (part / listed.path).chmod(SEALED)
            store.adopt(Kept(listed.sha256, listed.size), part / listed.path)
        (part / manifest.NAME).chmod(SEALED)

    with store.in_use():
        return unpack(file, root, terms, progress, check, DEPTH)
