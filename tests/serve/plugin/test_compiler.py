"""What the compiler said at the bake is said again without it, and a root needs none to serve."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serve.plugin.compiler import Recorder, Replayer, Subprocess, recording_needed, replay_needed
from tests.serve.plugin.fresh import python

VERSION = ["g++", "--version"]


class Fake:
    """``subprocess.check_output`` with a compiler that can be missing."""

    def __init__(self, answer: bytes | None = b"g++ 12\n") -> None:
        self.answer = answer
        self.asked: list[list[str]] = []

    def __call__(self, arguments: list[str], **_: object) -> bytes:
        self.asked.append(arguments)
        if self.answer is None:
            raise FileNotFoundError(2, "No such file or directory", arguments[0])
        return self.answer


def test_what_was_said_at_the_bake_is_said_again_and_nobody_is_asked(tmp_path: Path) -> None:
    assert Recorder(tmp_path / "compiler", Fake())(VERSION) == b"g++ 12\n"
    absent = Fake(None)
    assert Replayer(tmp_path / "compiler", absent)(VERSION) == b"g++ 12\n"
    assert absent.asked == []


def test_bytes_that_are_no_text_come_back_as_they_were(tmp_path: Path) -> None:
    Recorder(tmp_path, Fake(b"\xff\x00g\xc3\xa4\n"))(VERSION)
    assert Replayer(tmp_path, Fake(None))(VERSION) == b"\xff\x00g\xc3\xa4\n"


def test_another_question_is_asked_and_said_so(tmp_path: Path, caplog) -> None:
    Recorder(tmp_path, Fake())(VERSION)
    here = Fake(b"here\n")
    replayer = Replayer(tmp_path, here)
    assert replayer(["g++", "-v"]) == b"here\n"
    assert replayer(VERSION, stderr=subprocess.STDOUT) == b"here\n"
    assert len(here.asked) == 2
    assert "nobody asked at the bake: ['g++', '-v']" in caplog.text


def test_without_a_compiler_a_question_that_nobody_asked_fails_as_ever(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Replayer(tmp_path, Fake(None))(VERSION)


def test_the_language_is_no_part_of_a_question(tmp_path: Path) -> None:
    Recorder(tmp_path, Fake())(VERSION, env={"LC_ALL": "C"})
    assert Replayer(tmp_path, Fake(None))(VERSION, env={"LC_ALL": "de"}) == b"g++ 12\n"


def test_a_failure_is_passed_on_and_not_kept(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Recorder(tmp_path, Fake(None))(VERSION)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("how", [{"text": True}, {"input": b"x"}, {"stderr": 7}])
def test_what_is_asked_in_another_way_is_let_through(tmp_path: Path, how) -> None:
    Recorder(tmp_path, Fake())(VERSION, **how)
    assert [*tmp_path.iterdir()] == []
    Recorder(tmp_path, Fake())(VERSION)
    with pytest.raises(FileNotFoundError):
        Replayer(tmp_path, Fake(None))(VERSION, **how)


def test_an_answer_that_cannot_be_kept_is_given_all_the_same(tmp_path: Path, caplog) -> None:
    (tmp_path / "file").touch()
    assert Recorder(tmp_path / "file" / "compiler", Fake())(VERSION) == b"g++ 12\n"
    assert "not recorded what ['g++', '--version'] said: [Errno 20]" in caplog.text


def test_of_many_who_ask_at_once_whole_answers_stay_and_nothing_else(tmp_path: Path) -> None:
    said = b"x" * 2**16
    recorder = Recorder(tmp_path, Fake(said))
    questions = [["g++", f"-{number % 4}"] for number in range(64)]
    with ThreadPoolExecutor(16) as pool:
        assert [*pool.map(recorder, questions)] == [said] * 64
    assert len({*tmp_path.iterdir()}) == 4
    assert {json.loads(path.read_text())["answer"] for path in tmp_path.iterdir()} == {
        said.decode()
    }


def test_all_else_that_the_module_offers_stays_its_own() -> None:
    seen = Subprocess(subprocess, Fake())
    assert (seen.check_output(VERSION), seen.STDOUT, seen.run) == (
        b"g++ 12\n",
        subprocess.STDOUT,
        subprocess.run,
    )


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"VLLM_CACHE_ROOT": "{root}/vllm"},
        {"PREHEAT_RECORD_FACTORS": "{root}/factors"},
        # Somebody who wants to know why a cache misses bakes nothing.
        {"VLLM_CACHE_ROOT": "{root}/vllm", "PREHEAT_RECORD_FACTORS": "/elsewhere/factors"},
        # A root that was baked without one, or holds no C++.
        {"VLLM_CACHE_ROOT": "{root}/vllm", "VLLM_FORCE_AOT_LOAD": "1"},
    ],
)
def test_nobody_listens_where_nothing_is_baked_and_nothing_was(tmp_path, monkeypatch, env) -> None:
    for variable in ("VLLM_CACHE_ROOT", "PREHEAT_RECORD_FACTORS", "VLLM_FORCE_AOT_LOAD"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in env.items():
        monkeypatch.setenv(variable, value.format(root=tmp_path))
    assert not recording_needed()
    assert not replay_needed()


# As the engine: bakes a kernel, or serves from what was baked, in the last case unpatched.
KERNEL = """
import os, sys
root, role = sys.argv[1:]
os.environ |= {"VLLM_CACHE_ROOT": f"{root}/vllm", "TORCHINDUCTOR_CACHE_DIR": f"{root}/inductor"}
if role == "bake":
    os.environ["PREHEAT_RECORD_FACTORS"] = f"{root}/factors"
else:
    os.environ |= {"VLLM_FORCE_AOT_LOAD": "1", "PATH": ""}
from serve.plugin.patches import FROZEN, RECORD_COMPILER, REPLAY_COMPILER, apply_all
if role != "stock":
    apply_all([RECORD_COMPILER, REPLAY_COMPILER, FROZEN])
from torch._inductor.codecache import CppCodeCache
library = CppCodeCache.load('extern "C" int answer() { return 42; }')
print(library.answer(), library.key)
"""


@pytest.mark.torch
def test_a_baked_kernel_is_found_without_a_compiler_and_not_without_the_answers(
    tmp_path: Path,
) -> None:
    """Fails when ``compiler`` is no longer needed: then delete both patches."""
    baked = python(KERNEL, None, str(tmp_path), "bake")
    assert baked.stdout.startswith("42 "), baked.stderr
    served = python(KERNEL, None, str(tmp_path), "serve")
    assert served.stdout == baked.stdout, served.stderr
    assert "No working C++ compiler" in python(KERNEL, None, str(tmp_path), "stock").stderr
