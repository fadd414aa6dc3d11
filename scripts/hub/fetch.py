"""Fetches one repository's files at one commit into a folder, and says in a line what went wrong.

The transfers are huggingface_hub's, which resumes what broke off; what arrives is compared with
what the hub tells of it. Nothing that lay in the folder before is replaced, except what an older
lock proves to be a download of this command.
"""

import errno
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from scripts.hub.lock import Held, Lock, Told, digest, hold, inside
from scripts.hub.notes import clear, foreign

# Weights in Python's pickle run code when they are read; whoever wants them names them.
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
# Room that must stay free beside what is to come.
MARGIN = 64 * 2**20
TRIES = 3
ANSWERS = {
    401: "401: not there, or private: check the name, or set HF_TOKEN",
    403: "403: gated: accept its terms on its page, then set HF_TOKEN",
    404: "404: not there: check the name",
}


class NotFetched(RuntimeError):
    """One line that says what, and what to do."""


@dataclass(frozen=True)
class Wanted:
    """What to fetch: of which repository and revision, and which of its files."""

    repository: str
    revision: str
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def takes(self, path: str) -> bool:
        """Whether this file is wanted."""
        if self.include:
            return any(fnmatch(path, p) for p in self.include)
        return not any(fnmatch(path, p) for p in (*PICKLES, *self.exclude))


def listing(wanted: Wanted) -> tuple[str, list[Told]]:
    """The commit that the revision is now, and the wanted files as the hub tells them.

    :raises NotFetched: the hub cannot be asked, or says no.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(
            wanted.repository, revision=wanted.revision, files_metadata=True, timeout=30
        )
    except Exception as error:  # the library's errors share no class
        raise NotFetched(in_words(error, wanted)) from error
    told = [_told(item) for item in info.siblings or () if wanted.takes(item.rfilename)]
    for item in told:
        if not inside(item.path):
            raise NotFetched(f"{wanted.repository}: names a file outside: {item.path!r}")
    if not told or not info.sha:
        raise NotFetched(f"{wanted.repository}@{wanted.revision}: no file of it is wanted")
    return info.sha, told


def _told(item: object) -> Told:
    lfs = getattr(item, "lfs", None)
    path, size = str(item.rfilename), int(getattr(item, "size", 0) or 0)  # type: ignore[attr-defined]
    if lfs:
        return Told(path, int(lfs.size), "sha256", str(lfs.sha256))
    return Told(path, size, "git-sha1", str(item.blob_id))  # type: ignore[attr-defined]


def fetch(
    wanted: Wanted, folder: Path, say: Callable[[str], None], replaced: Lock | None = None
) -> Lock:
    """All wanted files in ``folder``, each as the hub tells it; those that lie there stay.

    Files that are as ``replaced`` has them may be replaced by what the hub tells now.

    :raises NotFetched: what differs, does not arrive or does not fit.
    """
    if found := foreign(folder):
        raise NotFetched(
            f"{folder}: {found} belongs to huggingface_hub's own cache: choose another --out"
        )
    commit, told = listing(wanted)
    ours = {item.path: item for item in replaced.files} if replaced else {}
    here = {item.path: _present(folder, item, ours.get(item.path)) for item in told}
    missing = [item for item in told if here[item.path] is None]
    need = sum(item.size for item in missing)
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < need + MARGIN:
        raise NotFetched(f"{folder}: {need + MARGIN:,} bytes needed, {free:,} free: make room")
    for number, item in enumerate(missing, 1):
        say(f"[{number}/{len(missing)}] {item.path} ({item.size:,} bytes)")
        here[item.path] = _one(wanted, commit, item, folder, say)
    held = tuple(found for found in here.values() if found)
    for path in sorted(ours.keys() - here.keys()):
        say(f"{path}: left as it was, locked no more")
    # Nothing is left to resume.
    clear(folder, [item.path for item in told])
    return Lock(wanted.repository, wanted.revision, commit, held)


def _present(folder: Path, item: Told, ours: Held | None) -> Held | None:
    path = folder / item.path
    if not path.exists():
        return None
    if found := hold(path, item):
        return found
    if ours and path.stat().st_size == ours.size and digest(path) == ours.sha256:
        return None
    raise NotFetched(
        f"{path}: not what the hub tells (expected {item.kind} {item.digest[:12]}…, "
        f"{item.size:,} bytes): move it away, or choose another --out"
    )


def _one(wanted: Wanted, commit: str, item: Told, folder: Path, say: Callable[[str], None]) -> Held:
    from huggingface_hub import hf_hub_download

    for tried in range(1, TRIES + 1):
        try:
            hf_hub_download(wanted.repository, item.path, revision=commit, local_dir=folder)
            break
        except Exception as error:  # the library's errors share no class
            line = in_words(error, wanted)
            if tried == TRIES or not passing(error):
                raise NotFetched(f"{item.path}: {line}") from error
            say(f"  {line}; again, from where it broke off")
    path = folder / item.path
    if found := hold(path, item):
        return found
    path.unlink()
    raise NotFetched(
        f"{item.path}: what arrived is not what the hub tells "
        f"({item.kind} {item.digest[:12]}…); removed: start again"
    )


def passing(error: Exception) -> bool:
    """Whether trying again may help: the transport failed, the hub did not say no."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled) or _errno(error) == errno.ENOSPC:
        return False
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status is None or status >= 500


def in_words(error: Exception, wanted: Wanted) -> str:
    """One line for each way in which a hub or a disk says no."""
    from huggingface_hub import errors

    name = f"{wanted.repository}@{wanted.revision}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it to download"
    if _errno(error) == errno.ENOSPC:
        return "no space left on the device: make room and run it again, it resumes"
    if isinstance(error, errors.HFValidationError):
        return f"{wanted.repository!r}: expected owner/name"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name}: no such revision: give a branch, tag or commit"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"{name}: {ANSWERS.get(status, f'the hub answered {status}: try again later')}"
    first = (str(error).strip().splitlines() or [""])[0][:160]
    return f"the hub cannot be reached (HF_ENDPOINT names it): {type(error).__name__}: {first}"


def _errno(error: BaseException | None) -> int | None:
    while error:
        if (number := getattr(error, "errno", None)) is not None:
            return int(number)
        error = error.__cause__ or error.__context__
    return None
