"""What a build gets to see, as the tar that a Docker engine takes: the same files, the same bytes.

Which files, says ``.dockerignore``, as it does to the docker command. Owners, times and the odd
umask of a checkout are left out. Streamed: a model of many gigabytes is not copied first.
"""

import os
import stat
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from docker.utils import exclude_paths

from bake.errors import BakeError
from blob.manifest import is_blob

# 1980 is the first year that a zip archive, and so a wheel, can tell.
THE_TIME = 315_619_200
CHUNK_BYTES = 2**20
BAKED = ".cache/image/baked"


def files(repository: Path, model: str, roots: Mapping[str, Path]) -> dict[str, Path]:
    """Name in the context → file. Of the models only ``model``, of baked roots only ``roots``.

    ``roots`` are folders by ``<target>/<model>/<variant>``.

    :raises BakeError: there is no ``.dockerignore`` or no such model.
    """
    try:
        ignored = (repository / ".dockerignore").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BakeError(f"{error.filename}: {error.strerror}", "run it in a checkout") from error
    patterns = [line for line in map(str.strip, ignored) if line and not line.startswith("#")]
    chosen = {
        name: repository / name
        for name in exclude_paths(str(repository), patterns)
        if _wanted(name, model) and not (repository / name).is_dir()
    }
    for name, root in roots.items():
        found = (path for path in root.rglob("*") if not path.is_dir())
        chosen |= {f"{BAKED}/{name}/{path.relative_to(root)}": path for path in found}
    for name, path in chosen.items():
        if not (path.is_file() and os.access(path, os.R_OK)):
            raise BakeError(
                f"{name}: no plain file that can be read, so it cannot go into an image",
                f"look at it: ls -l {path}",
            )
    if not any(name.startswith(f"weights/{model}/") for name in chosen):
        raise BakeError(
            f"no model in {repository / 'weights' / model}: an image holds what lies in weights/",
            "fetch it there, or say MODEL=tiny",
        )
    if is_blob(repository / "weights" / model):
        raise BakeError(
            f"weights/{model} is a blob: an image has no numba to decode it with, and holds none",
            "build the image of the checkpoint it was packed from, or serve it from a checkout",
        )
    return dict(sorted(chosen.items()))


def _wanted(name: str, model: str) -> bool:
    if name.startswith("weights/"):
        return name.startswith(f"weights/{model}/")
    return not name.startswith((".cache/", ".dockerignore"))


def pack(chosen: Mapping[str, Path]) -> Iterator[bytes]:
    """The tar of ``chosen``, in pieces.

    :raises BakeError: a file changed while it was read.
    """
    for name, path in chosen.items():
        about = path.stat()
        info = tarfile.TarInfo(name)
        info.size, info.mtime = about.st_size, THE_TIME
        info.mode = 0o755 if about.st_mode & stat.S_IXUSR else 0o644
        yield info.tobuf(tarfile.PAX_FORMAT)
        left = info.size
        with path.open("rb") as file:
            while left and (data := file.read(min(CHUNK_BYTES, left))):
                left -= len(data)
                yield data
        if left:
            raise BakeError(f"{path}: became shorter while it was read", "build again")
        yield bytes(-info.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)
