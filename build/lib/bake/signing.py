"""The private half of a signature: makes keys, and signs the manifests of baked roots.

preheat.key    private, PKCS#8 PEM, readable by its owner alone
preheat.pub    public, base64, one line: what PREHEAT_TRUSTED_KEYS takes
"""

import base64
import json
import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from bake import tree
from bake.errors import BakeError
from blob.files import replace
from serve import manifest
from serve.signature import key_id

PRIVATE, PUBLIC = "preheat.key", "preheat.pub"
MAX_KEY_BYTES = 16 * 1024
OTHERS = 0o077


def keygen(folder: Path) -> tuple[Path, Path]:
    """Make a new key pair in ``folder``.

    :raises BakeError: one of the two files exists; keys are never overwritten.
    """
    private, public = folder / PRIVATE, folder / PUBLIC
    for path in (private, public):
        if path.exists() or path.is_symlink():
            raise BakeError(f"{path} exists: keys are never overwritten", "give another --out")
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    raw = public_bytes(key)
    line = f"{base64.b64encode(raw).decode()}  # {key_id(raw)}\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _create(private, pem, 0o600)
        _create(public, line.encode(), 0o644)
    except OSError as error:
        raise BakeError(f"{folder}: cannot be written: {error.strerror}") from error
    return private, public


def sign(root: Path, key_file: Path) -> str:
    """Sign the root's manifest, after checking the root against it. Returns the key's id.

    :raises BakeError: the root is not what its manifest says, or the key cannot be used.
    """
    key = load_key(key_file)
    try:
        raw = manifest.read(root)
        violations = manifest.compare(root, manifest.parse(raw))
    except manifest.ManifestError as error:
        raise BakeError(error.what, "only a baked root can be signed") from error
    if violations:
        raise BakeError(f"{root}: not signed: {violations[0]}", "bake it again")
    name = key_id(public_bytes(key))
    said = {"key": name, "signature": base64.b64encode(key.sign(raw)).decode()}
    text = json.dumps(said, sort_keys=True, separators=(",", ":")) + "\n"
    try:
        with tree.unsealed(root):
            replace(root / manifest.SIGNATURE, text.encode())
    except OSError as error:
        raise BakeError(f"{root}: cannot be written: {error.strerror}") from error
    return name


def load_key(path: Path) -> Ed25519PrivateKey:
    """The private key in ``path``.

    :raises BakeError: it cannot be read, is no Ed25519 key, or others can read it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            pem = file.read(MAX_KEY_BYTES)
    except OSError as error:
        raise BakeError(
            f"{path}: cannot be read: {error.strerror}", "preheat bake keygen --out FOLDER"
        ) from error
    if mode & OTHERS:
        raise BakeError(f"{path}: others can read it (mode {mode:03o})", f"chmod 600 {path}")
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BakeError(f"{path}: no PEM private key without a password: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BakeError(f"{path}: expected an Ed25519 key, got {type(key).__name__}")
    return key


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """The raw public half."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _create(path: Path, raw: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(raw)
        os.fchmod(descriptor, mode)
