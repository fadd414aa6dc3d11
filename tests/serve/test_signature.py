import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from bake.signing import public_bytes
from serve.errors import ConfigError
from serve.signature import Keys, NotSigned, Signed, check, key_id, trusted_keys

RAW = b'{"files":[],"schema":1}\n'


def spelled(key: Ed25519PrivateKey) -> str:
    return base64.b64encode(public_bytes(key)).decode()


def keys_of(*keys: Ed25519PrivateKey) -> Keys:
    return trusted_keys(",".join(map(spelled, keys)))


def put(root: Path, key: str, signature: bytes) -> None:
    said = {"key": key, "signature": base64.b64encode(signature).decode()}
    (root / "manifest.sig").write_text(json.dumps(said))


@pytest.fixture
def ours() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


def test_a_trusted_key_vouches_for_the_very_bytes_it_signed(
    tmp_path: Path, ours: Ed25519PrivateKey
) -> None:
    name = key_id(public_bytes(ours))
    put(tmp_path, name, ours.sign(RAW))
    keys = keys_of(Ed25519PrivateKey.generate(), ours)
    assert check(RAW, tmp_path, keys) == Signed(name)
    other = check(RAW + b" ", tmp_path, keys)
    assert other == NotSigned("manifest.sig: not the signature of this manifest.json")


def test_a_key_that_is_not_trusted_does_not_and_is_named(
    tmp_path: Path, ours: Ed25519PrivateKey
) -> None:
    theirs = Ed25519PrivateKey.generate()
    name = key_id(public_bytes(theirs))
    put(tmp_path, name, theirs.sign(RAW))
    answer = check(RAW, tmp_path, keys_of(ours))
    assert isinstance(answer, NotSigned)
    assert answer.reason.startswith(f"manifest.sig: key {name} is not trusted")


def test_a_signature_under_the_name_of_a_trusted_key_is_checked_with_that_key(
    tmp_path: Path, ours: Ed25519PrivateKey
) -> None:
    put(tmp_path, key_id(public_bytes(ours)), Ed25519PrivateKey.generate().sign(RAW))
    assert isinstance(check(RAW, tmp_path, keys_of(ours)), NotSigned)


def test_a_missing_signature_is_none(tmp_path: Path, ours: Ed25519PrivateKey) -> None:
    assert check(RAW, tmp_path, keys_of(ours)) == NotSigned(
        "manifest.sig: missing, and PREHEAT_TRUSTED_KEYS is set"
    )


def test_a_signature_that_is_a_link_is_none(tmp_path: Path, ours: Ed25519PrivateKey) -> None:
    put(tmp_path, key_id(public_bytes(ours)), ours.sign(RAW))
    (tmp_path / "manifest.sig").rename(tmp_path / "elsewhere")
    (tmp_path / "manifest.sig").symlink_to("elsewhere")
    assert isinstance(check(RAW, tmp_path, keys_of(ours)), NotSigned)


@given(said=st.binary(max_size=1100))
def test_whatever_stands_there_is_no_signature_by_chance(
    tmp_path_factory: pytest.TempPathFactory, said: bytes
) -> None:
    root = tmp_path_factory.mktemp("root")
    (root / "manifest.sig").write_bytes(said)
    assert isinstance(check(RAW, root, keys_of(Ed25519PrivateKey.generate())), NotSigned)


def test_keys_are_named_one_by_one_or_by_a_file(tmp_path: Path, ours: Ed25519PrivateKey) -> None:
    other = Ed25519PrivateKey.generate()
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{spelled(ours)}  # made today\n\n{spelled(other)}\n")
    assert trusted_keys(str(file)) == keys_of(ours, other)
    assert trusted_keys(f" {spelled(ours)} ,") == keys_of(ours)
    assert trusted_keys(None) == {}


@pytest.mark.parametrize("value", ["", ",", "no-such-file", "a,b", "\0", "~nobody-of-that-name/x"])
def test_what_is_neither_keys_nor_a_file_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"PREHEAT_TRUSTED_KEYS="):
        trusted_keys(value)


@pytest.mark.parametrize("content", [b"", b"# none\n", b"\xff\n"])
def test_a_file_without_a_key_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "keys").write_bytes(content)
    with pytest.raises(ConfigError, match=r"PREHEAT_TRUSTED_KEYS="):
        trusted_keys(str(tmp_path / "keys"))


def test_a_line_that_is_no_key_is_named(tmp_path: Path, ours: Ed25519PrivateKey) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{spelled(ours)}\n{spelled(ours)[:-2]}=\n")
    with pytest.raises(ConfigError, match=r"keys:2: no base64 Ed25519 public key"):
        trusted_keys(str(file))


def test_a_gateway_without_trusted_keys_does_without_cryptography() -> None:
    script = "import sys, serve.run, serve.__main__; print('cryptography' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_trusted_keys_without_cryptography_are_an_error_that_says_what_to_install(
    tmp_path: Path, ours: Ed25519PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, key_id(public_bytes(ours)), ours.sign(RAW))
    keys = keys_of(ours)
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(ConfigError, match=r"pip install 'preheat\[sign\]'"):
        check(RAW, tmp_path, keys)
