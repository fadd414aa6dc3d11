"""A fresh interpreter, to import and patch in what no other test has touched."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]


def python(
    code: str, path: Path | None = None, *arguments: str
) -> subprocess.CompletedProcess[str]:
    env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    if path:
        env["PYTHONPATH"] = str(path)
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, env=env, cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
