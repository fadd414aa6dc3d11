"""Who could write to a file beside us: what sshd asks of its keys, asked of code that we run.

A judgement over ``stat`` results. Root may always; we may; nobody else.
"""

import os
import shlex
import stat
from pathlib import Path

TRUSTED_ROOT = 0


def others(status: os.stat_result) -> str:
    """Who else could write, in words; empty when nobody can."""
    if status.st_uid not in (TRUSTED_ROOT, os.geteuid()):
        return f"belongs to uid {status.st_uid}, neither root nor us"
    if status.st_mode & stat.S_IWOTH:
        return "can be written by everybody"
    if status.st_mode & stat.S_IWGRP:
        return f"can be written by group {status.st_gid}"
    return ""


def fix(status: os.stat_result, path: Path) -> str:
    """What to type so that nobody else can."""
    quoted = shlex.quote(str(path)).encode(errors="backslashreplace").decode()
    if status.st_uid not in (TRUSTED_ROOT, os.geteuid()):
        return f"chown {os.geteuid()} {quoted}"
    return f"chmod go-w {quoted}"


def above(path: Path) -> list[str]:
    """Folders above ``path`` in which somebody else could put another in its place, and why."""
    found = []
    for folder in path.parents:
        status = folder.lstat()
        if (why := others(status)) and not _harmless(status):
            found.append(f"{folder} {why}: {fix(status, folder)}")
    return found


def _harmless(status: os.stat_result) -> bool:
    """A folder of ours or root's that is sticky (as /tmp), or whose group is the owner alone."""
    if status.st_uid not in (TRUSTED_ROOT, os.geteuid()):
        return False
    if status.st_mode & stat.S_ISVTX:
        return True
    return not status.st_mode & stat.S_IWOTH and _private_group(status)


def _private_group(status: os.stat_result) -> bool:
    """Debian's user-private groups, with which a person's umask is 002."""
    import grp
    import pwd

    try:
        group, name = grp.getgrgid(status.st_gid), pwd.getpwuid(status.st_uid).pw_name
    except KeyError:
        return False
    return group.gr_name == name and set(group.gr_mem) <= {name}
