"""What a build gets to see, as the tar that a Docker engine takes: the same files, the same bytes.

Which files, says ``.dockerignore``, as it does to the docker command; which models, whoever asks
for the image. Owners, times and the odd
umask of a checkout are left out. Streamed: a model of many gigabytes is not copied first.
"""

import os
import stat
import tarfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from docker.utils.build import PatternMatcher, exclude_paths

from bake.errors import BakeError
from blob.manifest import is_blob

# 1980 is the first year that a zip archive, and so a wheel, can tell.
THE_TIME = 315_619_200
CHUNK_BYTES = 2**20
BAKED = ".cache/image/baked"
# Chosen by who asks for the image, and the file that chooses the rest.
ELSEWHERE = ("weights/", ".cache/", ".dockerignore")


def files(repository: Path, weights: Collection[str], roots: Mapping[str, Path]) -> dict[str, Path]:
    """Name in the context → file. Of the models only ``weights``, of baked roots only ``roots``.

    ``weights`` are folders below ``weights/``, ``roots`` folders by ``<target>/<model>/<variant>``.

    :raises BakeError: there is no ``.dockerignore`` or no such model.
    """
    chosen = {
        name: repository / name
        for name in exclude_paths(str(repository), _ignored(repository))
        if not name.startswith(ELSEWHERE) and not (repository / name).is_dir()
    }
    for folder in weights:
        chosen |= model(repository, folder)
    for name, root in roots.items():
        found = (path for path in root.rglob("*") if not path.is_dir())
        chosen |= {f"{BAKED}/{name}/{path.relative_to(root)}": path for path in found}
    return dict(sorted(plain(chosen).items()))


def plain(chosen: Mapping[str, Path]) -> Mapping[str, Path]:
    """``chosen``, if each is a file that can be read.

    :raises BakeError: one is not: a link to nowhere, a socket, another's.
    """
    for name, path in chosen.items():
        if not (path.is_file() and os.access(path, os.R_OK)):
            raise BakeError(
                f"{name}: no plain file that can be read, so it cannot go into an image",
                f"look at it: ls -l {path}",
            )
    return chosen


def model(repository: Path, folder: str) -> dict[str, Path]:
    """Name in the context → file, of what an image takes of ``weights/<folder>``.

    :raises BakeError: no such model, or one that no image can serve.
    """
    # What lets a folder in is not asked: it was asked for by its name.
    out = [line for line in _ignored(repository) if not line.startswith("!") and line != "*"]
    matcher, top = PatternMatcher(out), repository / "weights" / folder
    found = (str(path.relative_to(repository)) for path in top.rglob("*") if not path.is_dir())
    chosen = {name: repository / name for name in found if not matcher.matches(name)}
    if not chosen:
        raise BakeError(
            f"no model in {repository / 'weights' / folder}: an image holds what lies in weights/",
            "fetch it there, or say MODEL=tiny",
        )
    if is_blob(repository / "weights" / folder):
        raise BakeError(
            f"weights/{folder} is a blob: an image has no numba to decode it with, and holds none",
            "build the image of the checkpoint it was packed from, or serve it from a checkout",
        )
    return chosen


def _ignored(repository: Path) -> list[str]:
    try:
        lines = (repository / ".dockerignore").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BakeError(f"{error.filename}: {error.strerror}", "run it in a checkout") from error
    return [line for line in map(str.strip, lines) if line and not line.startswith("#")]


def pack(chosen: Mapping[str, Path], folders: Sequence[str] = ()) -> Iterator[bytes]:
    """The tar of ``chosen``, in pieces. ``folders`` are there even if no file is in them.

    :raises BakeError: a file changed while it was read.
    """
    for name in folders:
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, THE_TIME
        yield info.tobuf(tarfile.PAX_FORMAT)
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
