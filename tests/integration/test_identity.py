"""An engine that is to go by a name which it may not have does not start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serve.command import engine_environment
from serve.plan import make_plan
from serve.settings import REPOSITORY, read_settings
from tests.integration.conftest import settings

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

GPU_LOST = Path(__file__).parent / "gpu_lost"


def start(folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    plan = make_plan(
        read_settings(settings("seq8", folder)), Path(sys.executable), folder / "engine.sock"
    )
    base = engine_environment(plan.command, os.environ) | {"PREHEAT_PRESENT_AS": "NVIDIA A40"}
    return subprocess.run(
        plan.command.argv, env=base | env, capture_output=True, text=True, check=False
    )


def test_a_build_without_cuda_refuses_before_anything_is_loaded(tmp_path):
    done = start(tmp_path)
    assert done.returncode == 1
    reason = "PREHEAT_PRESENT_AS=NVIDIA A40: this torch is built without CUDA"
    assert done.stderr.splitlines()[-1].endswith(f"PresentRefused: {reason}")


def test_a_refusal_at_inductors_first_look_ends_the_engine_too(tmp_path):
    """vLLM compiles again after many an error; not after this one."""
    done = start(tmp_path, PYTHONPATH=f"{GPU_LOST}:{REPOSITORY}")
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "PresentRefused: PREHEAT_PRESENT_AS=NVIDIA A40: torch finds no GPU here" in said
    assert "saved AOT compiled function" not in said
