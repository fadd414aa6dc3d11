"""An engine on a baked root outlives what nobody baked, and a bake's verification does not."""

from pathlib import Path

import pytest

from serve.plugin.compiler import FOLDER, Recorder
from tests.serve.plugin.fresh import python

pytestmark = pytest.mark.torch

# A small function that is compiled when it is called, as vLLM's that ranks logprobs, and no g++.
UNBAKED = """
import os, sys
root, role = sys.argv[1:]
os.environ |= {"TORCHINDUCTOR_CACHE_DIR": root, "VLLM_FORCE_AOT_LOAD": "1", "PATH": ""}
os.environ["VLLM_CACHE_ROOT"] = f"{root}/vllm"
if role == "verify":
    os.environ["PREHEAT_RECORD_FACTORS"] = f"{root}/factors"
import torch
from serve.plugin.patches import FROZEN, REPLAY_COMPILER, apply_all
if role != "stock":
    apply_all([FROZEN, REPLAY_COMPILER])
@torch.compile
def ranks(x, values):
    return (x >= values).sum(-1)
for rows in 1, 2, 5:
    print(ranks(torch.arange(12.0).repeat(rows, 1), torch.full((rows, 1), 3.0)).tolist())
"""


@pytest.mark.parametrize("answers", [False, True])
def test_what_was_not_baked_is_run_uncompiled_where_there_is_no_compiler(
    tmp_path: Path, answers: bool
) -> None:
    if answers:
        # Then Inductor believes that there is one, until it calls it.
        Recorder(tmp_path / FOLDER, lambda *_, **__: b"g++ 12.2.0\n")(["g++", "--version"])
    done = python(UNBAKED, None, str(tmp_path), "serve")
    assert done.stdout.splitlines() == ["[9]", "[9, 9]", "[9, 9, 9, 9, 9]"], done.stderr


@pytest.mark.parametrize("role", ["stock", "verify"])
def test_without_the_patch_and_while_a_bake_is_verified_it_ends_the_engine(
    tmp_path: Path, role: str
) -> None:
    done = python(UNBAKED, None, str(tmp_path), role)
    assert done.returncode == 1
    assert "No working C++ compiler" in done.stderr
