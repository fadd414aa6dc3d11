"""Drafts verified by vLLM's own function and kernels: by the convolution's kernel, and by torch."""

import json

import pytest

from serve.command import EARLY
from tests.serve.plugin.fresh import python

pytestmark = pytest.mark.torch

# Three sequences of a layer as tiny has it. Each step brings its drafts, and accepts some of the
# step before: the states that two steps leave must be the same whichever way convolves.
STEPS = """
import json, sys, torch
from types import SimpleNamespace
from vllm.platforms import current_platform
current_platform.import_kernels()
import vllm._custom_ops as ops
from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention as gdn
from serve.plugin import conv_state

if not torch.cpu._is_avx512_bf16_supported():
    sys.exit("no AVX-512 BF16")

HEADS, SIZE, WIDTH, K, SLOTS = (2, 2, 4), 64, 4, 4, 24
DIM = sum(HEADS) * SIZE

def layer():
    made = torch.Generator().manual_seed(1)
    weight = (torch.randn(DIM, WIDTH, generator=made) * 0.3).bfloat16()
    conv1d = SimpleNamespace(bias=None, weight=ops.causal_conv1d_weight_pack(weight.clone()))
    conv1d._cpu_unpacked_conv_weight = weight
    def rearrange(mixed):
        parts = mixed.split([heads * SIZE for heads in HEADS], -1)
        return [p.reshape(1, len(mixed), h, SIZE) for p, h in zip(parts, HEADS)]
    decay = torch.zeros(HEADS[2])
    return SimpleNamespace(conv1d=conv1d, activation="silu", rearrange_mixed_qkv=rearrange,
        A_log=decay, dt_bias=decay.bfloat16())

def run(steps):
    made = torch.Generator().manual_seed(2)
    state_len = WIDTH - 1 + K
    conv = torch.randn(SLOTS, state_len, DIM, generator=made).bfloat16().transpose(1, 2)
    ssm = torch.zeros(SLOTS, HEADS[2], SIZE, SIZE)
    said = []
    for lengths, accepted in steps:
        ends = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
        rows = torch.arange(len(lengths) * (K + 1), dtype=torch.int32).view(-1, K + 1)
        before = torch.tensor(accepted, dtype=torch.int32)
        metadata = SimpleNamespace(num_spec_decodes=len(lengths), num_accepted_tokens=before,
            spec_state_indices_tensor=rows, spec_query_start_loc=ends)
        mixed = torch.randn(int(ends[-1]), DIM, generator=made).bfloat16()
        gates = torch.randn(2, len(mixed), HEADS[2], generator=made).bfloat16()
        out = gdn._spec_forward(layer(), metadata, mixed, *gates, conv, ssm, WIDTH, state_len)
        said.append(out.float())
    return conv.clone(), said

conv_state.apply()
WHOLE, SHORT, RAGGED = [5, 5, 5], [3, 3, 3], [5, 2, 1]
for case in ([(WHOLE, [1, 3, 5]), (WHOLE, [2, 5, 1])],
             [(WHOLE, [1, 1, 1]), (SHORT, [5, 4, 5]), (WHOLE, [3, 2, 1])],
             [(RAGGED, [1, 5, 2]), (WHOLE, [5, 2, 1])]):
    by_kernel, first = run(case)
    there, torch.cpu._is_avx512_bf16_supported = torch.cpu._is_avx512_bf16_supported, lambda: False
    by_torch, second = run(case)
    torch.cpu._is_avx512_bf16_supported = there
    apart = max(float((a - b).abs().max()) for a, b in zip(first, second))
    same = bool(torch.equal(by_kernel, by_torch))
    print(json.dumps({"kernel": there(), "same": same, "apart": apart}))
"""
SOURCES = """
import inspect
from serve.plugin import conv_state as c
print(c.needed())
c.apply()
print(c.needed())
"""


def test_the_lines_that_it_exchanges_are_still_there():
    """Fails when ``conv_state`` is no longer needed: then delete the patch."""
    done = python(SOURCES, EARLY)
    assert done.stdout.endswith("True\nFalse\n"), done.stderr


def test_kernel_and_torch_leave_the_same_state_whatever_the_steps():
    done = python(STEPS, EARLY)
    if done.stderr.endswith("no AVX-512 BF16\n"):
        pytest.skip("this CPU has no AVX-512 BF16: torch convolves either way")
    cases = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(cases) == 3, done.stderr[-2000:]
    assert all(case["kernel"] for case in cases)
    assert [case["same"] for case in cases] == [True] * 3
    # Of numbers about 1, what BF16 rounds away once or twice.
    assert all(case["apart"] < 0.05 for case in cases), cases
