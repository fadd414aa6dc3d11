"""Who a client is: the keys in force, found by their secrets.

Knows no HTTP and no quota. A secret is ``ph-<id>-<32 random bytes>``: its id finds the record at
once, and stands in logs and metrics; then digests are compared in constant time.

The digest is SHA-256 and nothing slow: 256 random bits are guessed by nobody, however fast a guess
is, and each request asks. For a key from the environment that a person made up this does not hold:
it is as strong as what they made up.
"""

import hashlib
import hmac
import logging
import re
import secrets
import string
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from serve import keyring
from serve.errors import ConfigError

logger = logging.getLogger(__name__)

PREFIX = "ph-"
ID_LETTERS = string.ascii_lowercase + string.digits
ID_LENGTH = 8
SECRET_BYTES = 32
# How soon a change of the file is seen.
LOOK_SECONDS = 1.0
ADMIN = "/admin/"

HASHED = "sha256:"
SHORTEST_GIVEN = 16
# What a header carries as it is, and what a list split at commas can hold.
GIVEN = re.compile(r"[!-+\--~]+")
# The digest of no secret that anybody knows: what an unknown id is compared with.
NO_DIGEST = "0" * 64


@dataclass(frozen=True)
class Key:
    """One client, and what it may do; None is no limit."""

    id: str
    name: str = ""
    digest: str = field(default="", repr=False)
    routes: tuple[str, ...] = ()
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    concurrency: int | None = None
    admin: bool = False

    def allows(self, route: str) -> bool:
        """Whether ``route`` may be asked for. No pattern opens what administers: ``admin`` does."""
        if route.startswith(ADMIN):
            return self.admin
        return not self.routes or any(fnmatchcase(route, pattern) for pattern in self.routes)

    @property
    def counts_tokens(self) -> bool:
        """Whether anything depends on what its requests cost."""
        return self.tokens_per_minute is not None or self.tokens_per_day is not None

    def __str__(self) -> str:
        return f"{self.name} ({self.id})" if self.name else self.id


# Every client, where keys are off.
NOBODY = Key("-")


class Keys:
    """The live set: a file that may change at any time, and keys that do not."""

    def __init__(
        self,
        path: Path | None,
        given: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """:raises ConfigError: the file is damaged, or a given key is none. No secret is named."""
        self.fault = ""
        self._path = path
        self._clock = clock
        self._looked = clock()
        self._given = _given(given)
        self._filed: dict[str, Key] = {}
        self._stamp: keyring.Stamp | None = None
        if path is not None:
            self._filed, self._stamp = self._read(path)

    @property
    def on(self) -> bool:
        """Whether clients are asked for a key at all. A file without keys lets nobody in."""
        return self._path is not None or bool(self._given)

    def find(self, secret: str) -> Key | None:
        """Whose ``secret`` it is; None when it is nobody's, or was revoked.

        Every given key is compared, and an unknown id with a dummy: how long it takes tells
        nothing of what is known.
        """
        self._look()
        digest = digest_of(secret)
        filed = self._filed.get(secret[len(PREFIX) : len(PREFIX) + ID_LENGTH])
        same = hmac.compare_digest(digest, filed.digest if filed else NO_DIGEST)
        found = filed if same else None
        for key in self._given:
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found

    def _look(self) -> None:
        """Read the file again when it changed; a bad one leaves the last good keys in force."""
        now = self._clock()
        if self._path is None or now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        if not self.fault and self._stamp == _stamp(self._path):
            return
        try:
            filed, self._stamp = self._read(self._path)
        except ConfigError as error:
            self._tell(error.what)
            return
        # Equal ones stay the objects that they were: what was counted for them goes on.
        self._filed = {id_: _same(self._filed.get(id_), key) for id_, key in filed.items()}
        self.fault = ""
        logger.info("%s: read again, %d keys in force", self._path, len(filed))

    def _tell(self, fault: str) -> None:
        # Once, not each second; another fault is another line.
        if fault != self.fault:
            logger.error("%s; the keys that were read last stay in force", fault)
        self.fault = fault

    def _read(self, path: Path) -> tuple[dict[str, Key], keyring.Stamp]:
        records, stamp = keyring.read(path)
        ids = {key.id for key in self._given}
        for record in records:
            if record.id in ids:
                raise ConfigError(f"{path}: id {record.id} is that of a key in PREHEAT_KEYS")
        return {r.id: key_of(r) for r in records if r.revoked is None}, stamp


def digest_of(secret: str) -> str:
    """What is kept of a secret."""
    # Any text has bytes so: a client may send what no encoding allows.
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


def new_secret() -> tuple[str, str]:
    """An id, and a secret that begins with it."""
    made = "".join(secrets.choice(ID_LETTERS) for _ in range(ID_LENGTH))
    return made, f"{PREFIX}{made}-{secrets.token_urlsafe(SECRET_BYTES)}"


def key_of(record: keyring.Record) -> Key:
    """A record of the file as a key."""
    return Key(
        id=record.id,
        name=record.name,
        digest=record.sha256,
        routes=record.routes or (),
        requests_per_minute=record.requests_per_minute,
        tokens_per_minute=record.tokens_per_minute,
        tokens_per_day=record.tokens_per_day,
        concurrency=record.concurrency,
        admin=record.admin,
    )


def _given(given: Sequence[str]) -> tuple[Key, ...]:
    """Keys from the environment, told by their place there."""
    keys: dict[str, Key] = {}
    for number, text in enumerate(given, start=1):
        where = f"PREHEAT_KEYS: key {number}"
        digest = _given_digest(text, where)
        key = Key(digest[:ID_LENGTH], digest=digest)
        if key.id in keys:
            raise ConfigError(f"{where}: stands twice")
        keys[key.id] = key
    return tuple(keys.values())


def _given_digest(text: str, where: str) -> str:
    if text.startswith(HASHED):
        digest = text.removeprefix(HASHED).lower()
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ConfigError(f"{where}: expected 64 hex digits behind {HASHED}")
        return digest
    if len(text) < SHORTEST_GIVEN:
        raise ConfigError(
            f"{where}: shorter than {SHORTEST_GIVEN} characters",
            "openssl rand -hex 32 makes a good one",
        )
    if not GIVEN.fullmatch(text):
        raise ConfigError(f"{where}: holds a character that is no visible ASCII, or a comma")
    return digest_of(text)


def _stamp(path: Path) -> keyring.Stamp | None:
    try:
        return keyring.stamp(path.stat())
    except OSError:
        return None


def _same(before: Key | None, now: Key) -> Key:
    return before if before == now else now
