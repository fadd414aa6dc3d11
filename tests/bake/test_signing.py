import os
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bake import tree
from bake.errors import BakeError
from bake.signing import keygen, load_key, public_bytes, sign
from serve import manifest
from serve.signature import Signed, check, trusted_keys
from tests.serve.roots import baked


def test_what_a_new_key_signs_its_public_half_vouches_for(tmp_path: Path) -> None:
    private, public = keygen(tmp_path / "keys")
    root = baked(tmp_path / "r")
    tree.seal(root)
    name = sign(root, private)
    assert check(manifest.read(root), root, trusted_keys(str(public))) == Signed(name)
    assert manifest.verify(root) == []
    assert stat.S_IMODE(root.stat().st_mode) == 0o555


def test_signing_again_replaces_the_signature(tmp_path: Path) -> None:
    first, _ = keygen(tmp_path / "a")
    second, public = keygen(tmp_path / "b")
    root = baked(tmp_path / "r")
    sign(root, first)
    name = sign(root, second)
    assert check(manifest.read(root), root, trusted_keys(str(public))) == Signed(name)


def test_the_private_key_is_for_its_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        private, public = keygen(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert stat.S_IMODE(public.stat().st_mode) == 0o644


@pytest.mark.parametrize("name", ["preheat.key", "preheat.pub"])
def test_keys_are_never_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(BakeError, match="keys are never overwritten"):
        keygen(tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


def test_a_dangling_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "preheat.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BakeError, match="exists"):
        keygen(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BakeError, match="cannot be written: Not a directory"):
        keygen(tmp_path / "file" / "keys")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_private_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    private, _ = keygen(tmp_path)
    private.chmod(mode)
    with pytest.raises(BakeError, match=f"others can read it .*\nhint: chmod 600 {private}"):
        load_key(private)


def test_openssl_reads_the_private_key(tmp_path: Path) -> None:
    private, _ = keygen(tmp_path)
    try:
        told = subprocess.run(
            ["openssl", "pkey", "-in", private, "-pubout", "-outform", "DER"],
            capture_output=True,
            check=True,
        )
    except FileNotFoundError:
        pytest.skip("no openssl here")
    assert told.stdout.endswith(public_bytes(load_key(private)))


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n", b"\xff" * 99])
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(BakeError, match="no PEM private key"):
        load_key(path)


def test_a_key_of_another_kind_is_named(tmp_path: Path) -> None:
    key = generate_private_key(65537, 1024)
    path = tmp_path / "key"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    with pytest.raises(BakeError, match="expected an Ed25519 key, got RSAPrivateKey"):
        load_key(path)


def test_a_root_that_is_not_what_its_manifest_says_is_not_signed(tmp_path: Path) -> None:
    private, _ = keygen(tmp_path / "keys")
    root = baked(tmp_path / "r")
    (root / "identity.json").write_bytes(b"{...}\n")
    with pytest.raises(BakeError, match=r"not signed: identity\.json: size differs"):
        sign(root, private)
    assert not (root / "manifest.sig").exists()
    with pytest.raises(BakeError, match="only a baked root can be signed"):
        sign(tmp_path, private)


def test_a_key_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(BakeError, match="hint: preheat bake keygen"):
        sign(baked(tmp_path / "r"), tmp_path / "key")
