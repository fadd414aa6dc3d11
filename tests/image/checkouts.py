"""Copies of this checkout, to change and to build in; ``preheat`` as a person runs it there."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serve.settings import BARE, PREFIX, REPOSITORY

VARIANT, MODEL, TARGET = "seq8-best", "tiny", "cpu"
ROOT = f"{TARGET}/{MODEL}/{VARIANT}"
BAKED = Path(".cache/image/baked")
# What a person may have set is not for us. How wheels and the engine are found, is.
SETTABLE = (PREFIX, *BARE, "IMAGE", "RUNTIME", "BASE_IMAGE", "VARIANTS", "CACHE")
NAMED = {"MODEL": MODEL, "TARGET": TARGET}
# What the entry point does, with the packages of the folder that it is run in.
COMMAND = "import sys, preheat; sys.exit(preheat.main())"
GIT = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "gc.auto=0")


@dataclass(frozen=True)
class Checkout:
    """One folder that holds what this repository does."""

    path: Path

    def start(self, *words: str, **env: str) -> "subprocess.Popen[str]":
        """``preheat WORDS`` of this checkout, not waited for."""
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, *words],
            cwd=self.path,
            env=environment(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def preheat(self, *words: str, **env: str) -> "subprocess.CompletedProcess[str]":
        """``preheat WORDS`` of this checkout, to its end."""
        with self.start(*words, **env) as process:
            try:
                out, err = process.communicate(timeout=1700)
            except BaseException:
                # By SIGTERM: it removes what it has made in the engine.
                process.terminate()
                process.communicate(timeout=60)
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def copy(self, path: Path) -> "Checkout":
        shutil.copytree(self.path, path, symlinks=True)
        return Checkout(path)

    def add(self, name: str, text: str) -> None:
        """``text`` at the end of a file."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(text)

    @property
    def root(self) -> Path:
        """Where the baked root lies that the image takes."""
        return self.path / BAKED / ROOT

    def git(self, *words: str) -> str:
        done = subprocess.run(
            [*GIT, *words], cwd=self.path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()


HERE = Checkout(REPOSITORY)


def environment(said: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(SETTABLE)}
    return kept | NAMED | dict(said)


def fresh(path: Path) -> Checkout:
    """This checkout as it is now, in ``path``: one commit, and the roots that were baked here."""
    listed = HERE.git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in listed.split("\0"):
        if name and (REPOSITORY / name).is_file():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, path / name)
    if (REPOSITORY / BAKED).is_dir():
        shutil.copytree(REPOSITORY / BAKED, path / BAKED, symlinks=True)
    made = Checkout(path)
    made.git("init", "--quiet")
    made.git("add", "--all")
    made.git("commit", "--quiet", "--message", "as it is")
    derived = made.preheat("bake", "derive", VARIANT)
    assert derived.returncode == 0, derived.stderr
    return made
