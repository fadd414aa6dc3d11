"""The two kernels of GatedDeltaNet's recurrence: one token at a time, and drafts in a block."""

import json

import pytest

from serve.command import EARLY
from tests.serve.plugin.fresh import python

pytestmark = pytest.mark.torch

# Five tokens of three sequences in a block, from the states that two, one and five accepted drafts
# left, and the same tokens one at a time. `b` is the gate whose sigmoid the kernels round.
STEPS = """
import json, sys, torch
from vllm import _custom_ops as ops
from serve.plugin import decode_kernel
if sys.argv[1] == "patched": decode_kernel.apply()

TOKENS, ACCEPTED, KEYS, VALUES, SIZE = 5, (2, 1, 5), 2, 4, 64
COUNT = len(ACCEPTED)

def both(gate):
    made = torch.Generator().manual_seed(0)
    def of(*shape): return torch.randn(*shape, generator=made).bfloat16()
    mixed = of(COUNT * TOKENS, (2 * KEYS + VALUES) * SIZE)
    parts = mixed.split([KEYS * SIZE, KEYS * SIZE, VALUES * SIZE], -1)
    qkv = [part.unflatten(-1, (-1, SIZE)) for part in parts]
    a, b = of(len(mixed), VALUES), of(len(mixed), VALUES) if gate is None else \\
        torch.full((len(mixed), VALUES), gate).bfloat16()
    weights = dict(A_log=torch.randn(VALUES, generator=made), dt_bias=of(VALUES),
        use_qk_l2norm_in_kernel=True)
    rows = torch.arange(COUNT * TOKENS, dtype=torch.int32).view(COUNT, TOKENS)
    states = torch.randn(COUNT * TOKENS, VALUES, SIZE, SIZE, generator=made)
    alone = states[[row[n - 1] for row, n in zip(rows.tolist(), ACCEPTED)]].clone()
    block = ops.fused_sigmoid_gating_delta_rule_update_spec_cpu(
        q=qkv[0], k=qkv[1], v=qkv[2], a=a, b=b, initial_state_source=states,
        spec_state_indices=rows, num_accepted_tokens=torch.tensor(ACCEPTED, dtype=torch.int32),
        cu_seqlens=torch.arange(COUNT + 1, dtype=torch.int32) * TOKENS, **weights)
    apart = []
    for token in range(TOKENS):
        here = slice(token, None, TOKENS)
        said = ops.fused_sigmoid_gating_delta_rule_update_cpu(
            q=qkv[0][None, here], k=qkv[1][None, here], v=qkv[2][None, here],
            a=a[here].contiguous(), b=b[here].contiguous(), initial_state_source=alone,
            initial_state_indices=torch.arange(COUNT, dtype=torch.int32),
            cu_seqlens=torch.arange(COUNT + 1, dtype=torch.int32), **weights)
        assert said.shape == (COUNT, 1, VALUES, SIZE), said.shape
        apart += [said[:, 0] - block[here], alone - states[rows[:, token].long()]]
    return max(float(one.abs().max()) for one in apart)

# A gate of 60 has a sigmoid of 1, whatever is rounded.
print(json.dumps({"any": both(None), "open": both(60.0)}))
"""


def apart(how):
    done = python(STEPS, EARLY, how)
    assert done.stdout.startswith("{"), done.stderr[-2000:]
    return json.loads(done.stdout)


ONES = """
import torch
from serve.plugin import decode_kernel
passed = []
def verify(num_accepted_tokens, **_):
    passed.append(num_accepted_tokens)
    return torch.zeros(len(num_accepted_tokens), 4, 64)
for count in (3, 5, 3):
    row = torch.zeros(1, count, 2, 64)
    named = dict.fromkeys(("q", "k", "v"), row) | dict.fromkeys(("a", "b", "cu_seqlens"), row[0, 0])
    rows = torch.arange(count, dtype=torch.int32)
    decode_kernel.step(verify, initial_state_indices=rows, **named)
print([one.tolist() for one in passed], passed[0] is passed[2], passed[0].dtype)
"""


def test_the_same_ones_are_passed_for_every_layer_of_every_step_of_a_length():
    done = python(ONES, EARLY)
    assert done.stdout == f"{[[1] * 3, [1] * 5, [1] * 3]} True torch.int32\n", done.stderr[-2000:]


def test_a_token_alone_still_rounds_otherwise_than_in_a_block_of_drafts():
    """Fails when ``decode_kernel`` is no longer needed: then delete the patch."""
    stock = apart("stock")
    assert stock["any"] > 1e-3
    # The rounding of the gate is all that is seen beyond F32's last bit.
    assert stock["open"] < 1e-5


def test_with_the_patch_both_say_the_same_and_leave_the_same_states_bit_by_bit():
    assert apart("patched") == {"any": 0.0, "open": 0.0}
