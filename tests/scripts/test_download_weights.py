"""Downloads over HTTP from a real process that speaks the hub's API, by the real library."""

import hashlib
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts.hub.fetch import Wanted, in_words, passing
from scripts.hub.lock import inside
from scripts.hub.notes import clear
from serve.settings import REPOSITORY

pytest.importorskip("huggingface_hub")
SERVER = Path(__file__).with_name("hub_server.py")
# The library keeps what arrived by pieces of 10 MiB.
WEIGHTS = bytes(range(256)) * 4096 * 30


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "x"}')
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    return folder


@contextmanager
def hub(folder, fault=""):
    """Its address, and its log so far."""
    log = folder.parent / "hub.log"
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, SERVER, folder, fault], stdout=out)
    try:
        while not (said := log.read_text().splitlines()):
            assert process.poll() is None
        yield f"http://127.0.0.1:{said[0]}", log
    finally:
        process.terminate()
        process.wait()


def download(endpoint, out, *more, repository="some/model", **env):
    base = {n: os.environ[n] for n in ("PATH", "HOME") if n in os.environ}
    base |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(out.parent / "home"), "NO_PROXY": "*"}
    command = [sys.executable, "-m", "scripts.download_weights", repository, "--out", out, *more]
    return subprocess.run(
        command, env=base | env, cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


def test_a_broken_transfer_goes_on_where_it_broke_and_all_is_locked(source, tmp_path):
    out = tmp_path / "out"
    with hub(source, "break") as (endpoint, log):
        done = download(endpoint, out, "--json")
        asked = log.read_text()
    assert done.returncode == 0, done.stderr
    assert (out / "model.safetensors").read_bytes() == WEIGHTS
    assert not (out / "pytorch_model.bin").exists()
    ranges = [line.split()[2] for line in asked.splitlines() if "GET" in line and " 206" in line]
    assert ranges, asked
    assert all(r != "bytes=0-" for r in ranges)
    lock = json.loads((out / "download.lock.json").read_text())
    assert lock["commit"].startswith("c0ffee")
    digests = {f["path"]: f["sha256"] for f in lock["files"]}
    assert digests["model.safetensors"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert json.loads(done.stdout)["folder"] == str(out)


def test_a_second_run_transfers_nothing_and_names_the_check(source, tmp_path):
    out = tmp_path / "out"
    with hub(source) as (endpoint, log):
        assert download(endpoint, out).returncode == 0
        transferred = log.read_text().count("resolve")
        again = download(endpoint, out)
        assert log.read_text().count("resolve") == transferred
    assert again.stdout.endswith(f"next: preheat bake verify-checkpoint {out}\n")


def test_other_bytes_than_told_are_removed(source, tmp_path):
    with hub(source, "lie") as (endpoint, _):
        done = download(endpoint, tmp_path / "out")
    assert done.returncode == 1
    assert "is not what the hub tells" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out" / "download.lock.json").exists()


def test_a_file_of_the_users_is_not_replaced(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("mine")
    with hub(source) as (endpoint, _):
        done = download(endpoint, out)
    assert done.returncode == 1
    assert "move it away" in done.stderr
    assert (out / "config.json").read_text() == "mine"


def test_the_cache_and_the_token_of_a_home_directory_stay(source, tmp_path):
    home = tmp_path / "user"
    cache = home / ".cache" / "huggingface"
    (cache / "hub").mkdir(parents=True)
    (cache / "hub" / "weights").write_text("mine")
    (cache / "token").write_text("secret")
    with hub(source) as (endpoint, _):
        done = download(endpoint, home)
    assert done.returncode == 1
    assert "huggingface_hub's own cache: choose another --out" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (cache / "hub" / "weights").read_text() == "mine"
    assert (cache / "token").read_text() == "secret"


def test_a_folder_that_would_be_the_librarys_home_is_refused_when_it_is_empty(source, tmp_path):
    out = tmp_path / "user"
    with hub(source) as (endpoint, _):
        done = download(endpoint, out, HF_HOME=str(out / ".cache" / "huggingface"))
        again = download(endpoint, out)
    assert done.returncode == 1
    assert again.returncode == 0
    assert not (out / ".cache").exists()


def test_only_notes_of_these_files_are_removed(tmp_path):
    notes = tmp_path / ".cache" / "huggingface" / "download"
    (notes / "sub").mkdir(parents=True)
    for name in ("a.json.metadata", "sub/b.json.lock", "other.json.metadata"):
        (notes / name).write_text("")
    (tmp_path / ".cache" / "else").write_text("")
    clear(tmp_path, ["a.json", "sub/b.json"])
    left = sorted(p.name for p in (tmp_path / ".cache").rglob("*") if p.is_file())
    assert left == ["else", "other.json.metadata"]
    clear(tmp_path, ["other.json"])
    assert [p.name for p in (tmp_path / ".cache").iterdir()] == ["else"]


def test_asking_for_some_files_later_keeps_the_others_locked(source, tmp_path):
    out = tmp_path / "out"
    with hub(source) as (endpoint, _):
        assert download(endpoint, out, "--include", "*.safetensors").returncode == 0
        assert download(endpoint, out, "--include", "*.json").returncode == 0
    lock = json.loads((out / "download.lock.json").read_text())
    assert [f["path"] for f in lock["files"]] == ["config.json", "model.safetensors"]


def test_an_update_replaces_what_the_lock_proves_and_nothing_else(source, tmp_path):
    out = tmp_path / "out"
    with hub(source) as (endpoint, _):
        assert download(endpoint, out).returncode == 0
    (source / "config.json").write_text('{"model_type": "newer"}')
    source.with_suffix(".commit").write_text("beef" + "0" * 36)
    with hub(source) as (endpoint, _):
        held = (out / "config.json").read_bytes()
        (out / "config.json").write_text("mine")
        refused = download(endpoint, out, "--revision", "main", "--update")
        assert "move it away" in refused.stderr
        (out / "config.json").write_bytes(held)
        done = download(endpoint, out, "--revision", "main", "--update")
    assert done.returncode == 0, done.stderr
    assert (out / "config.json").read_text() == '{"model_type": "newer"}'
    lock = json.loads((out / "download.lock.json").read_text())
    assert lock["commit"].startswith("beef")


@pytest.mark.parametrize(
    ("fault", "says"), [("401", "set HF_TOKEN"), ("403", "gated"), ("404", "not there")]
)
def test_a_hub_that_says_no_is_told_in_one_line(source, tmp_path, fault, says):
    with hub(source, fault) as (endpoint, _):
        done = download(endpoint, tmp_path / "out")
    assert done.returncode == 1
    assert says in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_offline_unreachable_and_unknown_revisions_are_told_in_one_line(source, tmp_path):
    out = tmp_path / "out"
    with hub(source) as (endpoint, _):
        offline = download(endpoint, out, HF_HUB_OFFLINE="1")
        revision = download(endpoint, out, "--revision", "nowhere")
    gone = download(endpoint, out)
    for done, says in ((offline, "HF_HUB_OFFLINE"), (revision, "no such revision")):
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert says in done.stderr
    assert "cannot be reached" in gone.stderr
    assert gone.stderr.count("\n") == 1, gone.stderr


def test_a_full_disk_is_told_and_not_tried_again():
    full = OSError(28, "No space left on device")
    assert "no space left" in in_words(full, Wanted("a/b", "main"))
    assert not passing(full)
    assert passing(ConnectionResetError())


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a\\..\\x", ""])
def test_names_that_lead_out_of_the_folder_are_seen(name):
    assert not inside(name)


def test_a_name_without_owner_is_a_usage_error(tmp_path):
    done = download("http://127.0.0.1:1", tmp_path / "out", repository="tiny")
    assert done.returncode == 2
