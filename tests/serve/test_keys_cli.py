"""``preheat serve keys``: what it prints where, what it leaves, and how it refuses."""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from serve.__main__ import main
from serve.keyring import read
from serve.keys import Keys, key_of
from tests.serve.keyrings import written


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a file of keys will be, and an environment that names none."""
    for name in list(os.environ):
        if name.startswith("PREHEAT_"):
            monkeypatch.delenv(name)
    return tmp_path / "keys.json"


Told = pytest.CaptureFixture[str]


def said(capsys: Told, *arguments: object, status: int = 0) -> tuple[str, str]:
    """Standard output and standard error of one verb."""
    try:
        done = main(["keys", *map(str, arguments)])
    except SystemExit as usage:
        done = usage.code
    assert done == status
    captured = capsys.readouterr()
    return captured.out, captured.err


def refused(capsys: Told, *arguments: object, status: int) -> str:
    out, err = said(capsys, *arguments, status=status)
    assert out == ""
    assert "Traceback" not in err
    return err.removeprefix("preheat: ")


def added(capsys: Told, path: Path, *arguments: object) -> tuple[str, str]:
    """The id and the secret of a new key."""
    secret = said(capsys, "add", "--file", path, *arguments)[0].strip()
    return secret[3:11], secret


def test_a_secret_is_all_that_standard_output_gets(path: Path, capsys: Told) -> None:
    out, err = said(capsys, "add", "--file", path, "--name", "team-a")
    assert re.fullmatch(r"ph-[a-z0-9]{8}-[A-Za-z0-9_-]{43}\n", out)
    assert out.strip() not in err
    assert f"key team-a ({out[3:11]}) is in {path}" in err
    assert out.strip() not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = Keys(path).find(out.strip())
    assert (key.id, key.name, key.admin, key.routes) == (out[3:11], "team-a", False, ())


def test_every_limit_that_is_asked_for_is_in_the_file(path: Path, capsys: Told) -> None:
    asked = ["--routes", "/v1/chat/*, /v1/models", "--requests-per-minute", "60"]
    asked += ["--tokens-per-minute", "20000", "--tokens-per-day", "1000000", "--concurrency", "4"]
    id_, secret = added(capsys, path, *asked, "--admin")
    key = Keys(path).find(secret)
    assert key == key_of(read(path)[0][0])
    assert (key.id, key.routes, key.admin) == (id_, ("/v1/chat/*", "/v1/models"), True)
    limits = (key.requests_per_minute, key.tokens_per_minute, key.tokens_per_day, key.concurrency)
    assert limits == (60, 20000, 1000000, 4)


def test_for_programs_a_new_key_is_told_with_its_secret_and_without_its_digest(
    path: Path, capsys: Told
) -> None:
    told = json.loads(said(capsys, "add", "--file", path, "--concurrency", "2", "--json")[0])
    assert Keys(path).find(told["secret"]).id == told["id"]
    assert (told["concurrency"], told["revoked"], told["routes"]) == (2, None, None)
    assert "sha256" not in told


def test_a_route_that_no_client_can_ask_for_is_noted(path: Path, capsys: Told) -> None:
    err = said(capsys, "add", "--file", path, "--routes", "/v1/model,/v1/chat/*")[1]
    assert "note: no route fits '/v1/model' (did you mean /v1/models?)\n" in err
    assert "/v1/chat" not in err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--concurrency", "0"], "expected a whole number above 0, got '0'"),
        (["--tokens-per-day", "1e6"], "expected a whole number above 0, got '1e6'"),
        (["--routes", ""], "routes.0: String should match pattern"),
        (["--routes", "/v1/models,v1"], "routes.1: String should match pattern"),
        (["--name", "a\x1b[2J"], "name: holds a character that cannot be printed"),
        (["--name", "a" * 65], "name: String should have at most 64 characters"),
        (["--name", "\udcff"], "name: "),
        (["--limit", "1"], "unrecognized arguments: --limit 1"),
    ],
)
def test_a_key_that_cannot_be_is_refused_before_there_is_a_file(
    path: Path, capsys: Told, arguments: list[str], why: str
) -> None:
    assert why in refused(capsys, "add", "--file", path, *arguments, status=2)
    assert list(path.parent.iterdir()) == []


def test_a_list_shows_every_key_and_no_digest(path: Path, capsys: Told) -> None:
    plain, _ = added(capsys, path, "--name", "team-a")
    limited, _ = added(capsys, path, "--routes", "/v1/chat/*", "--requests-per-minute", "60")
    admin, _ = added(capsys, path, "--name", "operator", "--admin")
    said(capsys, "revoke", "--file", path, plain)
    out, _ = said(capsys, "list", "--file", path)
    records = read(path)[0]
    day, gone = f"{records[0].created:%Y-%m-%d}", f"{records[0].revoked:%Y-%m-%d}"
    assert [re.split(r"  +", line) for line in out.splitlines()] == [
        ["ID", "NAME", "STATE", "CREATED", "REQ/MIN", "TOK/MIN", "TOK/DAY", "AT ONCE", "ROUTES"],
        [plain, "team-a", f"revoked {gone}", day, "-", "-", "-", "-", "all"],
        [limited, "-", "in force", day, "60", "-", "-", "-", "/v1/chat/*"],
        [admin, "operator", "in force, admin", day, "-", "-", "-", "-", "all"],
    ]
    assert not any(record.sha256 in out for record in records)
    listed = json.loads(said(capsys, "list", "--file", path, "--json")[0])
    assert [key["id"] for key in listed] == [plain, limited, admin]
    assert listed[0]["revoked"] is not None
    assert all("sha256" not in key for key in listed)


def test_an_empty_list_is_its_heading(path: Path, capsys: Told) -> None:
    assert said(capsys, "list", "--file", written(path))[0].startswith("ID  NAME")
    assert said(capsys, "list", "--file", path, "--json")[0] == "[]\n"


def test_a_revoked_key_is_found_no_more_and_the_others_are(path: Path, capsys: Told) -> None:
    gone, secret = added(capsys, path, "--name", "team-a")
    _, other = added(capsys, path)
    out, err = said(capsys, "revoke", "--file", path, gone)
    assert (out, err) == (f"key team-a ({gone}) is revoked in {path}\n", "")
    keys = Keys(path)
    assert keys.find(secret) is None
    assert keys.find(other)


def test_a_key_that_is_revoked_twice_or_unknown_is_told_and_nothing_changes(
    path: Path, capsys: Told
) -> None:
    id_, _ = added(capsys, path)
    said(capsys, "revoke", "--file", path, id_)
    before = path.read_bytes()
    err = refused(capsys, "revoke", "--file", path, id_, status=1)
    assert re.fullmatch(f"{path}: key {id_} was revoked [0-9: -]{{16}} UTC\n", err)
    near = id_[:-1] + ("a" if id_[-1] != "a" else "b")
    err = refused(capsys, "revoke", "--file", path, near, status=2)
    assert err.startswith(f"{path}: no key {near} (did you mean {id_}?)\nhint: preheat serve keys ")
    assert path.read_bytes() == before


def test_a_secret_that_is_given_for_an_id_is_not_repeated(path: Path, capsys: Told) -> None:
    _, secret = added(capsys, path)
    err = refused(capsys, "revoke", "--file", path, secret, status=2)
    assert "expected the 8 letters and digits of an id" in err
    assert secret not in err
    assert Keys(path).find(secret)


@pytest.mark.parametrize("verb", [["add"], ["list"], ["revoke", "k3j2x9qa"]])
def test_a_damaged_file_stops_every_verb_and_stays_as_it_is(
    path: Path, capsys: Told, verb: list[str]
) -> None:
    path.write_text("no keys")
    path.chmod(0o600)
    err = refused(capsys, *verb, "--file", path, status=2)
    assert err == f"{path}: Expecting value: line 1 column 1 (char 0)\n"
    assert path.read_text() == "no keys"


@pytest.mark.parametrize("verb", [["add"], ["list"], ["revoke", "k3j2x9qa"]])
def test_a_file_that_cannot_be_is_told_by_every_verb(
    path: Path, capsys: Told, verb: list[str]
) -> None:
    nowhere = path.parent / "nowhere" / "keys.json"
    told = f"{path.parent}/nowhere"
    assert refused(capsys, *verb, "--file", nowhere, status=2).startswith(told)
    assert "Is a directory" in refused(capsys, *verb, "--file", path.parent, status=2)
    assert refused(capsys, *verb, status=2) == (
        "no file of keys is named\nhint: --file FILE, or PREHEAT_KEYS_FILE\n"
    )
    if verb != ["add"]:
        err = refused(capsys, *verb, "--file", path, status=2)
        assert err.startswith(f"{path}: cannot be read: No such file or directory\nhint: preheat ")


def test_a_folder_that_takes_no_file_is_told(capsys: Told) -> None:
    err = refused(capsys, "add", "--file", "/sys/keys.json", status=1)
    assert err.startswith("/sys/keys.json: cannot be written: ")
    assert err.count("\n") == 1


def test_the_variable_names_the_file_and_the_option_another(
    path: Path, capsys: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREHEAT_KEYS_FILE", str(path))
    secret = said(capsys, "add")[0].strip()
    assert Keys(path).find(secret)
    another = path.with_name("another.json")
    said(capsys, "add", "--file", another)
    assert secret[3:11] not in said(capsys, "list", "--file", another)[0]
    assert secret[3:11] in said(capsys, "list")[0]
    monkeypatch.setenv("PREHEAT_KEYS_FIL", str(path))
    assert "did you mean PREHEAT_KEYS_FILE?" in refused(capsys, "list", status=2)


def test_the_file_that_a_hint_names_can_be_pasted(path: Path, capsys: Told) -> None:
    spaced = path.with_name("my keys.json")
    err = refused(capsys, "list", "--file", spaced, status=2)
    assert err.endswith(f"hint: preheat serve keys add --file '{spaced}'\n")
    added(capsys, spaced)
    err = refused(capsys, "revoke", "--file", spaced, "00000000", status=2)
    assert err.endswith(f"hint: preheat serve keys list --file '{spaced}'\n")


@pytest.mark.parametrize("verb", [[], ["add"], ["list"], ["revoke"]])
def test_help_says_what_a_verb_does(path: Path, capsys: Told, verb: list[str]) -> None:
    out, _ = said(capsys, *verb, "--help")
    assert ("examples:" in out) == (not verb)
    assert "--file" in out


def test_keys_that_real_processes_add_at_once_are_all_there(path: Path) -> None:
    program = "import preheat, sys; sys.exit(preheat.main())"
    words = ["serve", "keys", "add", "--file", str(path)]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={name: value for name, value in os.environ.items() if name[:8] != "PREHEAT_"},
        )
        for _ in range(4)
    ]
    secrets = [process.communicate()[0].strip() for process in started]
    assert [process.returncode for process in started] == [0] * 4
    keys = Keys(path)
    assert len({keys.find(secret).id for secret in secrets}) == 4
