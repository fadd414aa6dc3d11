"""Who a client is: secrets, routes, keys from the environment, and a file that changes."""

import hashlib
import logging
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import ConfigError
from serve.keys import NOBODY, Key, Keys, digest_of, key_of, new_secret
from serve.routes import FORWARDED
from tests.serve.keyrings import Clock, made, written

GIVEN = "a-secret-of-a-person"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_a_secret_says_its_id_and_is_256_random_bits() -> None:
    secrets = {new_secret() for _ in range(1000)}
    assert len(secrets) == 1000
    assert all(re.fullmatch(f"ph-{id_}-[A-Za-z0-9_-]{{43}}", secret) for id_, secret in secrets)
    assert all(re.fullmatch("[a-z0-9]{8}", id_) for id_, _ in secrets)


def test_a_key_is_found_by_its_secret_and_by_nothing_else(path: Path) -> None:
    record, secret = made(name="team-a", requests_per_minute=60, routes=("/v1/*",))
    keys = Keys(written(path, made()[0], record, made()[0]))
    found = keys.find(secret)
    assert found == key_of(record)
    assert (found.id, found.name, found.requests_per_minute) == (record.id, "team-a", 60)
    _, another = made()
    for wrong in (
        "",
        " ",
        secret[:-1],
        secret + "A",
        secret.swapcase(),
        f"{secret[:12]}{another[12:]}",
        another,
        record.id,
        record.sha256,
        f"sha256:{record.sha256}",
        f"ph-{record.id}-",
        "ph-" + "\ud800" * 20,
        "\xff" * 100_000,
    ):
        assert keys.find(wrong) is None


@given(st.text())
def test_no_text_is_a_key_and_none_ends_in_an_error(text: str) -> None:
    assert Keys(None, [GIVEN]).find(text) is None


def test_a_revoked_key_is_nobodys(path: Path) -> None:
    record, secret = made()
    keys = Keys(written(path, record.model_copy(update={"revoked": record.created})))
    assert keys.find(secret) is None


def test_neither_a_digest_nor_a_secret_is_shown_where_a_key_is(path: Path) -> None:
    record, secret = made(name="team-a")
    key = Keys(written(path, record)).find(secret)
    assert str(key) == f"team-a ({record.id})"
    assert record.sha256 not in repr(key)
    assert str(Key("k3j2x9qa")) == "k3j2x9qa"


def test_without_a_file_and_without_given_keys_nobody_is_asked(path: Path) -> None:
    assert not Keys(None).on
    assert Keys(None, [GIVEN]).on
    # An empty file asks everybody, and knows nobody.
    assert Keys(written(path)).on


ROUTES = [route.path for route in FORWARDED]


def test_nobody_in_particular_may_use_every_client_route_and_administer_nothing() -> None:
    assert all(NOBODY.allows(route) for route in ROUTES)
    assert not NOBODY.admin
    assert not NOBODY.counts_tokens


@pytest.mark.parametrize(
    ("patterns", "allowed"),
    [
        ((), ROUTES),
        (("*",), ROUTES),
        (("/v1/models",), ["/v1/models"]),
        (("/v1/chat/*", "/version"), [*ROUTES[:2], "/version"]),
        (("/v1/messages/*",), ["/v1/messages/count_tokens"]),
        (("/V1/*",), []),
        (("/v1/[!a-z]*",), []),
        (("/v1/model",), []),
    ],
)
def test_a_key_may_use_the_routes_that_a_pattern_of_its_own_fits(
    patterns: tuple[str, ...], allowed: list[str]
) -> None:
    key = Key("k3j2x9qa", routes=patterns)
    assert [route for route in ROUTES if key.allows(route)] == allowed


@pytest.mark.parametrize("patterns", [(), ("*",), ("/admin/*",), ("/v1/*",)])
def test_no_pattern_opens_what_administers_and_none_closes_it(patterns: tuple[str, ...]) -> None:
    assert not Key("k3j2x9qa", routes=patterns).allows("/admin/variant")
    assert Key("k3j2x9qa", routes=patterns, admin=True).allows("/admin/variant")


def test_tokens_count_where_a_limit_of_them_is() -> None:
    assert not Key("k3j2x9qa", requests_per_minute=1, concurrency=1).counts_tokens
    assert Key("k3j2x9qa", tokens_per_minute=1).counts_tokens
    assert Key("k3j2x9qa", tokens_per_day=1).counts_tokens


def test_given_keys_are_secrets_or_their_digests() -> None:
    hashed = hashlib.sha256(b"another-secret-of-a-person").hexdigest()
    keys = Keys(None, [GIVEN, f"sha256:{hashed.upper()}"])
    first, second = keys.find(GIVEN), keys.find("another-secret-of-a-person")
    assert first == Key(digest_of(GIVEN)[:8], digest=digest_of(GIVEN))
    assert second == Key(hashed[:8], digest=hashed)
    assert keys.find(hashed) is None
    assert keys.find(f"sha256:{hashed}") is None
    assert not first.admin


def test_given_keys_and_those_of_a_file_are_known_side_by_side(path: Path) -> None:
    record, secret = made()
    keys = Keys(written(path, record), [GIVEN, secret + "-longer"])
    found = [keys.find(one) for one in (secret, GIVEN, secret + "-longer")]
    assert [key.id for key in found] == [record.id, *(k.id for k in found[1:])]
    assert len({key.id for key in found}) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "shorter than 16 characters"),
        ("x" * 15, "shorter than 16 characters"),
        ("a secret of a person", "holds a character that is no visible ASCII, or a comma"),
        ("ein-schlüssel-eines", "holds a character that is no visible ASCII, or a comma"),
        ("a-secret,-and-a-comma", "holds a character that is no visible ASCII, or a comma"),
        ("sha256:", "expected 64 hex digits behind sha256:"),
        ("sha256:" + "0" * 63, "expected 64 hex digits behind sha256:"),
        ("sha256:" + "g" * 64, "expected 64 hex digits behind sha256:"),
        (GIVEN, "stands twice"),
        (f"sha256:{digest_of(GIVEN)}", "stands twice"),
    ],
)
def test_a_given_key_that_is_none_is_refused_by_its_number(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Keys(None, [GIVEN, text])
    assert refused.value.what == f"PREHEAT_KEYS: key 2: {said}"
    assert len(text) < 16 or text not in str(refused.value)


def test_an_id_that_a_given_key_has_is_refused_in_a_file(path: Path) -> None:
    record, _ = made()
    written(path, record.model_copy(update={"id": digest_of(GIVEN)[:8]}))
    with pytest.raises(ConfigError, match=f"id {digest_of(GIVEN)[:8]} is that of a key in PREH"):
        Keys(path, [GIVEN])


def test_a_gateway_does_not_start_on_a_file_that_is_damaged_or_not_there(path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Keys(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match="line 1 column 2"):
        Keys(path)


def test_a_change_of_the_file_is_seen_when_a_second_has_passed(path: Path) -> None:
    clock = Clock(step=0.0)
    (first, one), (second, other) = made(), made()
    keys = Keys(written(path, first), clock=clock)
    written(path, second)
    clock.now += 0.999
    assert keys.find(one)
    assert not keys.find(other)
    clock.now += 0.001
    assert not keys.find(one)
    assert keys.find(other)


def test_a_key_that_did_not_change_stays_the_same_object(path: Path) -> None:
    (same, one), (changed, other) = made(), made()
    keys = Keys(written(path, same, changed), clock=Clock())
    before = keys.find(one), keys.find(other)
    written(path, same, changed.model_copy(update={"concurrency": 4}))
    assert keys.find(one) is before[0]
    assert keys.find(other).concurrency == 4


def test_a_file_that_did_not_change_is_not_read_again(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    record, secret = made()
    keys = Keys(written(path, record), clock=Clock())
    for _ in range(5):
        assert keys.find(secret)
    assert caplog.records == []
    written(path, record)
    for _ in range(5):
        assert keys.find(secret)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: read again, 1 keys in force"
    ]


def faults(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


def test_a_file_that_becomes_damaged_is_told_once_and_the_last_good_keys_stay(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (record, secret), (second, other) = made(), made()
    keys = Keys(written(path, record), clock=Clock())
    path.write_text('{"schema_version": 1, "keys": [')
    for _ in range(5):
        assert keys.find(secret)
    said = f"{path}: Expecting value: line 1 column 32 (char 31)"
    assert keys.fault == said
    assert faults(caplog) == [f"{said}; the keys that were read last stay in force"]
    # Another fault is another line.
    path.write_text("{}")
    assert keys.find(secret)
    assert keys.fault == f"{path}: schema_version: Field required"
    assert len(faults(caplog)) == 2
    written(path, second)
    assert keys.find(other)
    assert not keys.find(secret)
    assert keys.fault == ""
    assert len(faults(caplog)) == 2


def test_a_file_that_is_gone_is_told_and_looked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder := tmp_path / "mount").mkdir()
    record, secret = made()
    keys = Keys(path := written(folder / "keys.json", record), clock=Clock())
    away = folder.rename(tmp_path / "away")
    for _ in range(5):
        assert keys.find(secret)
    assert keys.fault == f"{path}: cannot be read: No such file or directory"
    # The very same file: nothing of it differs from what was read first.
    away.rename(folder)
    assert keys.find(secret)
    assert keys.fault == ""
    assert len(faults(caplog)) == 1


def test_a_file_that_others_may_write_to_is_a_fault_until_they_may_not(path: Path) -> None:
    (first, one), (second, other) = made(), made()
    keys = Keys(written(path, first), clock=Clock())
    written(path, first, second)
    path.chmod(0o666)
    assert keys.find(one)
    assert not keys.find(other)
    assert "can be written by everybody" in keys.fault
    path.chmod(0o600)
    assert keys.find(other)
    assert keys.fault == ""


def test_a_mounted_secret_that_is_swapped_by_its_link_is_read_again(tmp_path: Path) -> None:
    """As Kubernetes does it: ``keys.json`` → ``..data/keys.json``, and ``..data`` is replaced."""
    (first, one), (second, other) = made(), made()
    for name, record in (("old", first), ("new", second)):
        (tmp_path / name).mkdir()
        written(tmp_path / name / "keys.json", record)
    (tmp_path / "..data").symlink_to("old")
    path = tmp_path / "keys.json"
    path.symlink_to("..data/keys.json")
    keys = Keys(path, clock=Clock())
    assert keys.find(one)
    (tmp_path / "..next").symlink_to("new")
    (tmp_path / "..next").rename(tmp_path / "..data")
    assert keys.find(other)
    assert not keys.find(one)


def test_a_pipe_in_the_files_place_holds_nobody_up(path: Path) -> None:
    record, secret = made()
    keys = Keys(written(path, record), clock=Clock())
    path.unlink()
    os.mkfifo(path)
    assert keys.find(secret)
    assert keys.fault == f"{path}: not a plain file"
