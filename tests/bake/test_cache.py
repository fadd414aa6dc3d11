"""A bake is whole and proven, or it is not there; over a real process in the place of vLLM."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bake import answer, tree
from bake.__main__ import main
from bake.baking import bake_all
from bake.cache import report_path
from bake.errors import BakeError, Busy
from bake.explain import read
from bake.progress import Plain
from serve import baked, identity, manifest
from serve.errors import EngineFailed
from serve.keeper import descendants
from serve.settings import Settings, read_settings
from tests.bake.faked import MODEL, NAME, fakes
from tests.serve.live import assert_gone, wait_for

FAKED = Path(__file__).with_name("faked.py")
AOT = "vllm/torch_compile_cache/torch_aot_compile"

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def nothing_left_in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Temporary folders go, however a bake ends."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield
    left = [path for path in folder.iterdir() if path.name.startswith("preheat-")]
    assert not left


def settings(tmp_path: Path) -> Settings:
    return read_settings(
        {
            "PREHEAT_BAKED_ROOT": str(tmp_path / "baked"),
            "PREHEAT_CHECK_MEMORY": "false",
            "PREHEAT_STOP_SECONDS": "5",
        }
    )


@pytest.fixture
def bake(tmp_path, monkeypatch) -> Callable[..., Path]:
    def bake(*switches: str) -> Path:
        fakes(monkeypatch, tmp_path, switches)
        (report,) = bake_all(settings(tmp_path), ["fake"], Plain())
        return Path(report.root)

    return bake


def root_in(tmp_path: Path) -> Path:
    return tmp_path / "baked" / NAME


def beside(tmp_path: Path) -> list[str]:
    """What lies where the root would, less the lock, which stays."""
    folder = root_in(tmp_path).parent
    return (
        sorted(p.name for p in folder.iterdir() if p.suffix != ".lock") if folder.exists() else []
    )


def test_a_bake_makes_a_sound_root_and_says_what_it_did(bake, tmp_path):
    root = bake()
    assert root == root_in(tmp_path)
    found = baked.inspect(root, {})
    assert isinstance(found, baked.Sound), found
    assert [(graph.name, graph.hash) for graph in found.identity.graphs] == [
        ("backbone", "aa" * 32),
        ("eagle_head", "bb" * 32),
    ]
    report = json.loads(report_path(root).read_text())
    assert (report["compiled"], report["loaded"]) == (0, 2)
    assert len(report["phases"]) == 9
    assert report["files"] == found.files
    assert beside(tmp_path) == ["fake", "fake.report.json"]


def test_a_root_is_complete_and_read_only(bake):
    root = bake()
    for path in (root, *root.rglob("*")):
        assert path.stat().st_mode & 0o222 == 0, path
    assert not list(root.rglob("*.lock"))
    # vLLM and Inductor make these when they are missing, which they cannot in a read-only root.
    assert all((root / name).is_dir() for name in ("vllm", "inductor", "triton", "flashinfer"))
    copy = root.with_name("copy")
    for entry in manifest.parse(manifest.read(root)).files:
        (copy / entry.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / entry.path, copy / entry.path)
    folders = {str(p.relative_to(root)) for p in root.rglob("*") if p.is_dir()}
    assert folders == {str(p.relative_to(copy)) for p in copy.rglob("*") if p.is_dir()}


def test_the_identity_and_the_factors_are_in_the_root(bake):
    root = bake()
    known = identity.parse((root / identity.FILE).read_bytes())
    assert known.env["VLLM_CACHE_ROOT"] == "{root}/vllm"
    assert str(root) not in (root / identity.FILE).read_text()
    assert {record["graph"] for record in read(root).records} == {"backbone", "eagle_head"}


def test_what_the_engine_said_is_in_the_root_and_listed_and_can_be_asked_for_again(bake):
    root = bake()
    listed = {entry.path for entry in manifest.parse(manifest.read(root)).files}
    assert answer.FILE in listed
    recorded = answer.load((root / answer.FILE).read_bytes())
    assert (recorded.path, recorded.body) == (
        "/v1/completions",
        answer.request(MODEL).body,
    )
    assert len(recorded.token_ids) == answer.TOKENS
    assert json.loads(report_path(root).read_text())["answer"] == recorded.text


def test_a_second_bake_replaces_the_first(bake, tmp_path):
    first = bake()
    before = (first / manifest.NAME).stat().st_ino
    second = bake()
    assert second == first
    assert (second / manifest.NAME).stat().st_ino != before
    assert beside(tmp_path) == ["fake", "fake.report.json"]


FAULTS = {
    "refused": ["the engine died at start", "Source code has changed", "no recorded factor"],
    "other-key": ["model_config:", "A: /models/tiny", "B: /elsewhere/tiny", "as it is spelled"],
    "compiles-again": ["compiled /", "did not load", "B: /elsewhere/tiny"],
    "scribbles": ["changed its root", "more.so", "is not in the manifest"],
    "tampers": ["changed its root", "model: size differs"],
    "stray": ["compiled outside the root", "header.h.gch"],
    "no-records": ["no key factors were recorded for"],
    "unsaved": ["compiled no graph that can be saved"],
    "wanders": [
        "answers 'The capital of France is' differently: token 20 of 48: expected",
        "got 7",
    ],
    "stutters": ["token 47 of 48: expected", "got the end"],
    "mute": ["no answer to record: choices.0.prompt_token_ids: "],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bake_that_is_not_proven_fails_and_names_why(bake, tmp_path, fault):
    with pytest.raises(BakeError) as caught:
        bake("--fault", fault)
    for words in FAULTS[fault]:
        assert words in str(caught.value)
    assert not root_in(tmp_path).exists()
    assert beside(tmp_path) == [".fake.preheat.part"]


def test_what_a_failed_bake_left_is_removed_by_the_next(bake, tmp_path, capsys):
    with pytest.raises(BakeError):
        bake("--fault", "refused")
    root = bake()
    assert isinstance(baked.inspect(root, {}), baked.Sound)
    assert (
        f"removed {tree.beside(root, '.part')}: making it was interrupted"
        in capsys.readouterr().err
    )
    assert beside(tmp_path) == ["fake", "fake.report.json"]


def test_a_failed_bake_leaves_the_root_that_was_there(bake, tmp_path):
    root = bake()
    stood = manifest.read(root)
    with pytest.raises(BakeError):
        bake("--fault", "scribbles")
    assert manifest.read(root) == stood
    assert isinstance(baked.inspect(root, {}), baked.Sound)


def test_an_engine_that_dies_at_start_says_why(bake, tmp_path):
    with pytest.raises(EngineFailed, match="No available memory for the cache blocks"):
        bake("--crash-at-start")
    assert not root_in(tmp_path).exists()


def test_an_engine_that_dies_while_it_is_warmed_ends_the_bake(bake, tmp_path):
    with pytest.raises(EngineFailed, match="the engine died"):
        bake("--crash-after", "0")
    assert not root_in(tmp_path).exists()


def test_an_engine_that_never_answers_ends_the_bake_in_time(tmp_path, monkeypatch):
    fakes(monkeypatch, tmp_path, ["--hang"])
    quick = settings(tmp_path).model_copy(update={"start_seconds": 1.0})
    with pytest.raises(EngineFailed, match="was not ready in 1 s"):
        bake_all(quick, ["fake"], Plain())


def test_two_bakes_into_one_root_are_refused_with_the_holder_named(bake, tmp_path):
    with tree.locked(root_in(tmp_path)), pytest.raises(Busy, match=f"process {os.getpid()} is"):
        bake()
    bake()


def test_a_folder_that_cannot_be_made_is_a_clean_error(tmp_path, monkeypatch, capsys):
    fakes(monkeypatch, tmp_path, ())
    (tmp_path / "file").touch()
    monkeypatch.setenv("PREHEAT_BAKED_ROOT", str(tmp_path / "file" / "below"))
    monkeypatch.setenv("PREHEAT_CHECK_MEMORY", "false")
    assert main(["cache", "fake"]) == 1
    said = capsys.readouterr().err
    assert "Not a directory" in said
    assert "Traceback" not in said


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system of our own, or the test is skipped: mounting takes a privilege."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    if (
        not shutil.which("mount")
        or subprocess.run(command, capture_output=True, check=False).returncode
    ):
        pytest.skip("may not mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_during_the_bake_is_named(bake, tmp_path):
    with mounted(tmp_path / "baked", "size=4m"):
        with pytest.raises(BakeError, match="the disk is full"):
            bake("--fault", "fills")
        assert not root_in(tmp_path).exists()


def test_a_read_only_disk_is_named(bake, tmp_path):
    with mounted(tmp_path / "baked", "ro"), pytest.raises(BakeError, match="disk is read-only"):
        bake()


class Bake:
    """A bake as a process of its own."""

    def __init__(self, folder: Path, *switches: str) -> None:
        self.log = folder / "bake.log"
        with self.log.open("wb") as file:
            self.popen = subprocess.Popen(
                [sys.executable, str(FAKED), *switches],
                env={
                    "PATH": "/usr/bin:/bin",
                    "TMPDIR": os.environ["TMPDIR"],
                    "PREHEAT_BAKED_ROOT": str(folder / "baked"),
                    "PREHEAT_CHECK_MEMORY": "false",
                    "PREHEAT_STOP_SECONDS": "5",
                },
                stderr=file,
                stdout=file,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def until(self, words: str) -> None:
        wait_for(lambda: words in self.said or self.popen.poll() is not None, words)
        assert words in self.said, self.said


PHASES = (
    "start the engine, compiling …",
    "warm every shape …",
    "collect, digest and seal …",
    "start from a read-only copy …",
    "warm it again …",
)


# Killed in each phase, and asked to end in the longest two.
INTERRUPTIONS = [
    *((phase, signal.SIGKILL) for phase in PHASES),
    (PHASES[0], signal.SIGTERM),
    (PHASES[4], signal.SIGTERM),
    (PHASES[3], signal.SIGINT),
]


@pytest.mark.parametrize(("phase", "number"), INTERRUPTIONS)
def test_a_bake_that_is_interrupted_leaves_no_root_and_no_process(tmp_path, phase, number):
    running = Bake(tmp_path, "--ready-after", "0.2", "--slow-tokens", "0.01")
    running.until(phase)
    time.sleep(0.1)
    below = descendants(running.popen.pid)
    running.popen.send_signal(number)
    status = running.popen.wait(30)
    assert status == {signal.SIGTERM: 143, signal.SIGINT: 130}.get(number, -number), running.said
    assert_gone(below)
    assert not root_in(tmp_path).exists()
    assert beside(tmp_path) in ([], [".fake.preheat.part"])
    assert "Traceback" not in running.said
    if number is signal.SIGKILL:
        # Nobody was left to do it.
        for folder in Path(os.environ["TMPDIR"]).glob("preheat-*"):
            tree.remove(folder)


def test_a_bake_after_a_killed_one_is_whole(bake, tmp_path):
    running = Bake(tmp_path, "--slow-tokens", "0.01")
    running.until("warm it again …")
    running.popen.kill()
    running.popen.wait(30)
    for folder in Path(os.environ["TMPDIR"]).glob("preheat-*"):
        tree.remove(folder)
    assert isinstance(baked.inspect(bake(), {}), baked.Sound)


def test_a_bake_beside_a_running_one_is_refused_at_once(tmp_path, bake):
    running = Bake(tmp_path, "--ready-after", "30")
    try:
        running.until("start the engine")
        with pytest.raises(Busy, match=f"process {running.popen.pid} is making it"):
            bake()
    finally:
        running.popen.terminate()
        running.popen.wait(30)
