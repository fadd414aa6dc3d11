"""Machine code is kept by what the sources say, also where nobody can write."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from blob.codecs import kernel

USE = """
import numpy as np
from blob.codecs.q8_0 import Q8_0, encode_rows
from blob.rows import encode
encode(Q8_0(), np.ones((1, 32), np.float32))
print(sum(encode_rows.stats.cache_hits.values()), sum(encode_rows.stats.cache_misses.values()))
"""


def used(folder: Path) -> str:
    env = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", USE], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_second_process_compiles_nothing_even_from_a_folder_that_it_cannot_write_to(
    tmp_path: Path,
) -> None:
    assert used(tmp_path) == "0 1"
    for path in tmp_path.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    tmp_path.chmod(0o555)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert files
    assert used(tmp_path) == "1 0"
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


@pytest.mark.parametrize("changed", ["codecs", "home"])
def test_other_sources_are_another_stamp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    for name in ("codecs", "home"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lanes.py").write_text("as it was")
    monkeypatch.setattr(kernel, "HERE", tmp_path / "codecs")
    kernel._stamp.cache_clear()
    before = kernel._stamp(tmp_path / "home")
    (tmp_path / changed / "lanes.py").write_text("changed")
    kernel._stamp.cache_clear()
    assert kernel._stamp(tmp_path / "home") != before
    kernel._stamp.cache_clear()


def test_kernels_of_others_are_left_to_numba(tmp_path: Path) -> None:
    def work() -> None:
        """Not one of ours."""

    assert kernel.Locator.from_function(work, str(tmp_path / "other.py")) is None
