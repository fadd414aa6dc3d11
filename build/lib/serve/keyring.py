"""The file of keys: who may ask and how much, and no secret.

    {"schema_version": 1, "keys": [{"id": "k3j2x9qa", "name": "team-a", "sha256": "…",
     "created": "2026-11-22T08:00:00Z", "requests_per_minute": 60}, …]}

People may edit it. What is not understood is refused, with its place and without its value: it
may be a secret that somebody pasted. A revoked key stays, so that its id in old logs is somebody's.

Writers hold ``.FILE.preheat.lock``, which stays, as its removal would let two in, and put another
file in the place of the old one: a reader sees one or the other, whole.
"""

import contextlib
import fcntl
import json
import os
import re
import shlex
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from blob.files import replace, sync
from blob.spelling import strict
from serve import writers
from serve.errors import ConfigError, ServeError

SCHEMA: Literal[1] = 1
ID_PATTERN = r"^[a-z0-9]{8}$"
MAX_KEYS = 10_000
MAX_BYTES = 16 * 1024**2
MODE = 0o600
WORD = re.compile(r"[a-z0-9_]{1,32}")
# A pipe that took the file's name does not block us. A link is followed: container platforms
# mount a secret as one, and replace what it leads to.
READ_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
HINT = "preheat serve keys add --file"

# What changes when a file does: its time, its change of state, its size and its inode.
Stamp = tuple[int, int, int, int]


class KeyringError(ServeError):
    """A file of keys cannot be written, or not as asked."""


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds a character that cannot be printed")
    return text


def _utc(time: datetime) -> datetime:
    if time.utcoffset() != timedelta():
        raise ValueError("is not UTC: 2026-11-22T08:00:00Z")
    return time


Limit = Annotated[int, Field(ge=1)]
Time = Annotated[AwareDatetime, AfterValidator(_utc)]
# Compared with paths as fnmatch does; what begins otherwise would fit none.
Pattern = Annotated[str, StringConstraints(pattern=r"^[/*][!-~]{0,199}$")]


class Record(BaseModel):
    """One key as the file has it. None: no such limit, or every client route."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str = Field(pattern=ID_PATTERN)
    name: Annotated[str, Field(max_length=64), AfterValidator(_printable)] = ""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created: Time
    revoked: Time | None = None
    # No empty list: who writes one means no route, and would get all.
    routes: Annotated[tuple[Pattern, ...], Field(min_length=1, max_length=64)] | None = None
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    tokens_per_day: Limit | None = None
    concurrency: Limit | None = None
    admin: bool = False


class Keyring(BaseModel):
    """The whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: Literal[1]
    keys: Annotated[tuple[Record, ...], Field(max_length=MAX_KEYS)]


Records = tuple[Record, ...]


def now() -> datetime:
    """The time of a record, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def stamp(status: os.stat_result) -> Stamp:
    """What tells one state of a file from the next."""
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def read(path: Path) -> tuple[Records, Stamp]:
    """The file's keys, and the state of it that they were read from.

    :raises ConfigError: it cannot be read, is damaged, or somebody else could have written it.
    """
    raw, status = _raw(path)
    if why := writers.others(status):
        raise _writable(path, why, writers.fix(status, path))
    return parse(raw, str(path)), stamp(status)


def as_owner(path: Path) -> tuple[Records, os.stat_result]:
    """As ``read``, whomever the file belongs to: root gives out the keys of a service.

    :raises ConfigError: as ``read``.
    """
    raw, status = _raw(path)
    if stat.S_IMODE(status.st_mode) & (stat.S_IWGRP | stat.S_IWOTH):
        raise _writable(path, "can be written by others", f"chmod go-w {shlex.quote(str(path))}")
    return parse(raw, str(path)), status


def parse(raw: bytes, where: str) -> Records:
    """The keys in a file's bytes.

    :raises ConfigError: naming ``where`` and the place in it, never a value.
    """
    try:
        strict(raw)
        records = Keyring.model_validate_json(raw).keys
    except ValidationError as error:
        # Without its cause, which quotes what it refuses: in a log, that may be a secret.
        raise ConfigError(f"{where}: {problem(error)}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: {error}") from error
    seen: set[str] = set()
    for number, record in enumerate(records):
        if record.id in seen:
            raise ConfigError(f"{where}: keys.{number}: id {record.id} stands twice")
        seen.add(record.id)
    return records


def problem(error: ValidationError) -> str:
    """What is wrong first, and where, without the value that is."""
    first = error.errors(include_input=False, include_url=False)[0]
    # An unknown field's name is a place too, but may be anything that was pasted.
    where = ".".join(word if WORD.fullmatch(word) else "…" for word in map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def dump(records: Records) -> bytes:
    """The file's bytes, for people to read: what a key does not have is left out."""
    keys = [record.model_dump(mode="json", exclude_defaults=True) for record in records]
    text = json.dumps({"schema_version": SCHEMA, "keys": keys}, indent=2, ensure_ascii=False)
    return f"{text}\n".encode()


def change(path: Path, edit: Callable[[Records], Records], *, create: bool = False) -> Records:
    """Give the file's keys to ``edit`` and keep what comes back. One writer at a time.

    :raises ConfigError: no file (unless it may be made), or a damaged one, which is left as it is.
    :raises KeyringError: it cannot be written; it then is what it was.
    """
    path = _resolved(path)
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent}: no such folder")
    # Before the lock: whoever mistyped a name gets no file beside it.
    if not create:
        as_owner(path)
    try:
        with _locked(path):
            new = create and not os.path.lexists(path)
            before, status = ((), None) if new else as_owner(path)
            after = edit(before)
            # Not written when it could not be read again.
            parse(raw := dump(after), str(path))
            _put(path, raw, status)
    except OSError as error:
        raise KeyringError(f"{path}: cannot be written: {error.strerror}") from error
    return after


def _raw(path: Path) -> tuple[bytes, os.stat_result]:
    """Status first: a file that is written to while it is read differs from its stamp then."""
    try:
        with open(path, "rb", opener=lambda name, _: os.open(name, READ_FLAGS)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{path}: not a plain file")
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        hint = f"{HINT} {shlex.quote(str(path))}" if isinstance(error, FileNotFoundError) else ""
        raise ConfigError(f"{path}: cannot be read: {error.strerror}", hint) from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes")
    return raw, status


def _writable(path: Path, why: str, fix: str) -> ConfigError:
    return ConfigError(f"{path}: {why}, who could give out keys of their own", fix)


def _resolved(path: Path) -> Path:
    """A link stays one: what it leads to is replaced."""
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{path}: leads nowhere: too many links") from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Be the only writer; the kernel lets go when this process ends, however it does."""
    descriptor = os.open(path.with_name(f".{path.name}.preheat.lock"), LOCK_FLAGS, MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _put(path: Path, raw: bytes, before: os.stat_result | None) -> None:
    """Replace the file by one with the same owner and mode: the gateway may be another user."""
    if before is None:
        replace(path, raw, MODE)
        return
    beside = path.with_name(f".{path.name}.preheat.new")
    replace(beside, raw, MODE)
    try:
        owner = (before.st_uid, before.st_gid)
        made = beside.stat()
        if owner != (made.st_uid, made.st_gid):
            os.chown(beside, *owner)
        beside.chmod(stat.S_IMODE(before.st_mode))
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync(path.parent)
