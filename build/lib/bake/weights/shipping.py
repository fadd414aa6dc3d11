"""Takes a blob to another machine: proven before it is packed and after it arrived.

The archive is ``bake.archive``'s: one blob, under its own name, the same bytes for the same blob.
"""

from pathlib import Path

from bake import tree
from bake.archive import pack
from bake.errors import BakeError
from bake.progress import silent
from bake.shipping import (
    Arrived,
    Kind,
    Progress,
    Shipped,
    Terms,
    replacing,
    sized,
    told,
    unpack,
)
from bake.weights import place
from blob import manifest
from blob.store import SEALED, Kept, Store
from blob.verify import require_sound, verify

# Quantized weights hardly shrink: the fastest that still packs what is raw.
LEVEL = 1
DEPTH = 1


def export(folder: Path, out: Path, progress: Progress = silent) -> Shipped:
    """Pack the blob in ``folder`` into the archive ``out``.

    Its name in there is that of the folder itself, whatever leads to it.

    :raises BakeError: it cannot be written, or would become a part of the blob.
    :raises BlobError: the blob is not what was written.
    """
    folder = folder.resolve()
    if out.parent.resolve().is_relative_to(folder):
        raise BakeError(f"{out}: lies in the blob itself", "choose another file with --out")
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

    :raises BakeError: no such archive, or something that may not be replaced stands there.
    :raises BlobError: what arrived is not what its manifest says. Nothing stays of it.
    """

    def check_place(folder: Path) -> None:
        place.check(folder, store.root, force=terms.force)

    def check(folder: Path) -> None:
        part = tree.beside(folder, ".part")
        require_sound(verify(part, silent), part)
        stood = manifest.read(part)
        for listed in stood.everything:
            (part / listed.path).chmod(SEALED)
            store.adopt(Kept(listed.sha256, listed.size), part / listed.path)
        (part / manifest.NAME).chmod(SEALED)

    with store.in_use():
        return unpack(file, root, terms, Kind(DEPTH, check_place, check), progress)
