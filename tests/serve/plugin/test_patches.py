"""Each patch is still needed, still enough, and stays out of versions it was not tried with."""

import subprocess
from dataclasses import replace

import pytest

from serve.command import EARLY
from serve.plugin.patches import (
    TORCHVISION_OPS,
    NotTried,
    Patch,
    apply_all,
    installed,
    mismatch,
)
from serve.startlog import StartLog
from tests.serve.plugin.fresh import python


@pytest.mark.torch
def test_torchvision_still_cannot_be_imported_without_the_patch():
    """Fails when ``torchvision_ops`` is no longer needed: then delete the patch."""
    done = python("import torchvision")
    assert "operator torchvision::nms does not exist" in done.stderr


@pytest.mark.torch
def test_with_the_patch_vllm_imports_qwen():
    done = python("import vllm.model_executor.models.qwen3_5 as q; print(q.__name__)", EARLY)
    assert done.stdout.endswith("vllm.model_executor.models.qwen3_5\n"), done.stderr


@pytest.mark.torch
def test_a_patch_that_was_applied_is_not_needed_again():
    code = (
        "from serve.plugin.patches import PATCHES, apply_all\n"
        "apply_all(); print(any(p.needed() for p in PATCHES))"
    )
    assert python(code, EARLY).stdout.endswith("False\n")


# One sequence of `tokens` in rows of `width`, of which 64 are meant; prints what the kernel says.
CONVOLVE = """
import sys, torch
from vllm import _custom_ops as ops
from serve.plugin.patches import apply_all
if not torch.cpu._is_avx512_bf16_supported(): print("other CPU"); sys.exit()
patch, tokens, width = sys.argv[1] == "patched", int(sys.argv[2]), int(sys.argv[3])
if patch: apply_all()
torch.manual_seed(0)
weight = ops.causal_conv1d_weight_pack(torch.randn(64, 4, dtype=torch.bfloat16))
rows = torch.randn(tokens, 64, dtype=torch.bfloat16)
wide = torch.zeros(tokens, width, dtype=torch.bfloat16)
wide[:, :64] = rows
def convolve(x):
    state = torch.zeros(1, 3, 64, dtype=torch.bfloat16).transpose(1, 2)
    where, which = torch.tensor([0, tokens], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    fresh = torch.tensor([False])
    return ops.causal_conv1d_fwd_cpu(x, weight, None, state, where, which, fresh, True, True)
print(torch.equal(convolve(wide[:, :64].transpose(0, 1)), convolve(rows.transpose(0, 1))))
"""


def convolve(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = python(CONVOLVE, EARLY, *arguments)
    if done.stdout.endswith("other CPU\n"):
        pytest.skip("this CPU has no AVX-512 BF16, so vLLM takes another kernel")
    return done


@pytest.mark.torch
def test_the_convolution_still_refuses_strided_rows_without_the_patch():
    """Fails when ``conv_layout`` is no longer needed: then delete the patch."""
    assert "expect x to be transposed" in convolve("stock", "5", "96").stderr


@pytest.mark.torch
@pytest.mark.parametrize("tokens", ["1", "5"])
def test_with_the_patch_strided_rows_convolve_as_dense_ones(tokens):
    done = convolve("patched", tokens, "96")
    assert done.stdout.endswith("True\n"), done.stderr


# Temperatures of two requests spread over five drafted tokens, by the platform's kernel.
EXPAND = """
import sys, torch
import vllm._custom_ops
from vllm.utils import cpu_triton_utils as kernels
from serve.plugin.patches import apply_all
if sys.argv[1] == "patched": apply_all()
spread, ends = torch.full((5,), 7.0), torch.tensor([2, 5], dtype=torch.int32)
kernels._expand_kernel_impl(spread, torch.tensor([0.5, -1.0]), ends, -1, 1)
print(spread.tolist())
"""


@pytest.mark.torch
def test_temperatures_are_still_lost_without_the_patch():
    """Fails when ``expand_values`` is no longer needed: then delete the patch."""
    done = python(EXPAND, EARLY, "stock")
    assert done.stdout.endswith("[7.0, 7.0, 7.0, 7.0, 7.0]\n"), done.stderr


@pytest.mark.torch
def test_with_the_patch_every_drafted_token_has_its_temperature():
    done = python(EXPAND, EARLY, "patched")
    assert done.stdout.endswith("[0.5, 0.5, 1.0, 1.0, 1.0]\n"), done.stderr


def test_looking_for_other_modules_imports_nothing_of_ours():
    code = "import sys, json, http.client; print('serve' in sys.modules, 'torch' in sys.modules)"
    assert python(code, EARLY).stdout == "False False\n"


def patch(applied: list[str], **tried: str) -> Patch:
    return Patch("p", "why", tried, lambda: True, lambda: applied.append("p"))


def test_a_patch_is_applied_for_the_versions_it_was_tried_with(caplog):
    applied: list[str] = []
    with caplog.at_level("INFO", "vllm.preheat"):
        apply_all([patch(applied, pydantic=installed("pydantic") or "")])
    assert applied == ["p"]
    assert [r.getMessage() for r in caplog.records] == ["preheat: patch p applied: why"]


def test_before_there_are_logs_it_is_said_all_the_same(caplog, capsys):
    """vLLM's front end, which the engine's other processes are forks of, has none yet."""
    with caplog.at_level("WARNING", "vllm.preheat"):
        apply_all([patch([], pydantic=installed("pydantic") or "")])
    said = capsys.readouterr().err
    assert said == "preheat: patch p applied: why\n"
    log = StartLog(0)
    log.observe(said, 1)
    assert log.patches == {"p"}


def test_a_patch_is_left_out_for_other_versions_and_says_so(caplog):
    applied: list[str] = []
    with caplog.at_level("INFO", "vllm.preheat"):
        apply_all([patch(applied, pydantic="0.1")])
    assert applied == []
    assert "not applied, tried with pydantic 0.1, here 2" in caplog.text


def test_a_required_patch_stops_the_engine_for_other_versions():
    applied: list[str] = []
    required = replace(patch(applied, pydantic="0.1"), required=True)
    with pytest.raises(NotTried, match="patch p, tried with pydantic"):
        apply_all([required])
    assert applied == []


def test_a_patch_that_is_not_needed_says_nothing(caplog):
    apply_all([replace(TORCHVISION_OPS, needed=lambda: False)])
    assert caplog.records == []


def test_a_package_that_is_missing_is_a_mismatch():
    assert mismatch({"absent": "1"}, lambda _: None) == "tried with absent 1, here none"


# One recurrent step; the state's index is a view of one element, as vLLM takes it of its table.
RECUR = """
import sys, torch
from vllm import _custom_ops as ops
from serve.plugin.patches import apply_all
if sys.argv[1] == "patched": apply_all()
torch.manual_seed(0)
def of(*shape): return torch.randn(*shape, dtype=torch.bfloat16)
operands = dict(
    A_log=torch.randn(4), dt_bias=of(4), q=of(1, 1, 4, 32), k=of(1, 1, 4, 32), v=of(1, 1, 4, 32),
    a=of(1, 4), b=of(1, 4), cu_seqlens=torch.tensor([0, 1], dtype=torch.int32),
    use_qk_l2norm_in_kernel=True,
)
table = torch.full((3, 5), 2, dtype=torch.int32)
def step(index):
    states = torch.ones(3, 4, 32, 32)
    out = ops.fused_sigmoid_gating_delta_rule_update_cpu(
        **operands, initial_state_source=states, initial_state_indices=index)
    return torch.cat([out.flatten().float(), states.flatten()])
lone = table[:1, 0].contiguous()
print(lone.stride(), torch.equal(step(lone), step(torch.tensor([2], dtype=torch.int32))))
"""


@pytest.mark.torch
def test_the_recurrent_step_still_refuses_the_index_of_a_lone_token():
    """Fails when ``decode_kernel`` need no longer make operands dense."""
    assert "must be contiguous at last dimension" in python(RECUR, EARLY, "stock").stderr


@pytest.mark.torch
def test_with_the_patch_a_lone_token_steps_as_any_other_and_its_state_is_kept():
    done = python(RECUR, EARLY, "patched")
    assert done.stdout.endswith("(5,) True\n"), done.stderr
