"""Who vouches for a baked root: an Ed25519 signature over the bytes of its manifest.

    manifest.sig    {"key":"<first 16 hex of sha256 of the raw public key>","signature":"<base64>"}

Which keys are trusted stands in the environment of the server, never beside what they vouch for.
``cryptography`` is imported when a signature is looked at, so that a gateway without trusted keys
runs without it. Knows public keys only; ``bake.signing`` holds the private half.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve import manifest
from serve.errors import ConfigError

RAW_KEY_BYTES = 32
MAX_SIGNATURE_BYTES = 1024
MAX_KEYS_BYTES = 64 * 1024
# A raw key has one spelling: the last letter carries four bits of it and two that are zero.
KEY = re.compile(r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=")
HINT = "PREHEAT_TRUSTED_KEYS takes base64 public keys (preheat.pub of `preheat bake keygen`) or a "

# Public keys by their id.
Keys = Mapping[str, bytes]


@dataclass(frozen=True)
class Signed:
    """A trusted key vouches for these bytes."""

    key: str


@dataclass(frozen=True)
class NotSigned:
    """No trusted key does."""

    reason: str


class Signature(BaseModel):
    """``manifest.sig``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    key: str = Field(pattern=r"^[0-9a-f]{16}$")
    signature: str = Field(pattern=r"^[A-Za-z0-9+/]{86}==$")


def key_id(public: bytes) -> str:
    """The name of a public key."""
    return hashlib.sha256(public).hexdigest()[:16]


def trusted_keys(value: str | None) -> Keys:
    """The keys that PREHEAT_TRUSTED_KEYS names: themselves, or a file with one a line.

    :raises ConfigError: no key, no such file, or something in it that is no key.
    """
    if value is None:
        return {}
    parts = [part.strip() for part in value.split(",") if part.strip()]
    if parts and all(KEY.fullmatch(part) for part in parts):
        return _by_id(parts)
    return _by_id(_lines(Path(value)))


def check(raw: bytes, root: Path, keys: Keys) -> Signed | NotSigned:
    """Whether one of ``keys`` signed ``raw``, by the signature that stands in ``root``."""
    path = root / manifest.SIGNATURE
    if not path.is_symlink() and not path.exists():
        return NotSigned(f"{manifest.SIGNATURE}: missing, and PREHEAT_TRUSTED_KEYS is set")
    try:
        said = Signature.model_validate_json(manifest.read_small(path, MAX_SIGNATURE_BYTES))
    except manifest.ManifestError as error:
        return NotSigned(error.what)
    except ValidationError as error:
        return NotSigned(f"{manifest.SIGNATURE}: no signature: {error.errors()[0]['msg']}")
    if said.key not in keys:
        known = ", ".join(keys)
        return NotSigned(
            f"{manifest.SIGNATURE}: key {said.key} is not trusted (those are: {known})"
        )
    if not _verified(keys[said.key], base64.b64decode(said.signature), raw):
        return NotSigned(f"{manifest.SIGNATURE}: not the signature of this {manifest.NAME}")
    return Signed(said.key)


def _verified(public: bytes, signature: bytes, raw: bytes) -> bool:
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError as error:
        raise ConfigError(
            "PREHEAT_TRUSTED_KEYS is set, and cryptography is not installed",
            "pip install 'preheat[sign]', or unset it",
        ) from error
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, raw)
    except InvalidSignature:
        return False
    return True


def _by_id(spelled: list[str]) -> Keys:
    keys = [base64.b64decode(text) for text in spelled]
    return {key_id(key): key for key in keys}


def _lines(path: Path) -> list[str]:
    try:
        with path.expanduser().open("rb") as file:
            text = file.read(MAX_KEYS_BYTES).decode()
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"PREHEAT_TRUSTED_KEYS={str(path)!r}: {error}", f"{HINT}file") from error
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    for number, line in enumerate(lines, start=1):
        if line and not KEY.fullmatch(line):
            raise ConfigError(f"{path}:{number}: no base64 Ed25519 public key", f"{HINT}file")
    if not any(lines):
        raise ConfigError(f"PREHEAT_TRUSTED_KEYS={str(path)!r}: no key in it", f"{HINT}file")
    return [line for line in lines if line]
